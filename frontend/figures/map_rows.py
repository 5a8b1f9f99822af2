"""The rows of the map: layers in the model's order or the worst first, filtered, and folded by block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Float64Array, Layer

Order = Literal["model", "worst", "sick"]

MOST, TOGETHER = 60, 40
"""Rows of the map, and rows if even the blocks are more. With more layers, the layers of a block share a row."""
_NUMBERED = re.compile(r"(\D+\.)\d+\.")
_TO_NUMBER = re.compile(r"(.*?)\d+$")
_BLOCK = re.compile(r"(?:^|.*?\.)[^.]*?\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Row:
    """A row: a layer, or a block of layers.

    `members` are the places of the layers in the grid. `opened` is None for a layer, and for a block says whether the
    rows of its layers follow.
    """

    name: str
    members: tuple[int, ...]
    opened: bool | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows that the map shows, and how many layers that match are left out."""

    rows: tuple[Row, ...]
    left_out: int = 0


def choose(
    layers: Sequence[Layer],
    has: NDArray[np.bool_],
    severity: Float64Array,
    *,
    order: Order = "model",
    pattern: str = "",
    opened: Collection[str] = (),
    sick: Collection[int] = (),
) -> Chosen:
    """Return the rows of a map.

    Args:
        layers: the layers in the model's order.
        has: which layers have anything to show.
        severity: each layer's worst severity in the shown steps; NaN if it was never judged.
        order: the model's order, the worst layer first, or the sick layers alone.
        pattern: a part of a name, or a pattern with `*` and `?` for the whole name.
        opened: names of the blocks whose layers are shown.
        sick: places of layers that verdicts name: they are sick whatever their severity.
    """
    places = [place for place in np.flatnonzero(has).tolist() if matches(layers[place].name, pattern)]
    worst = np.nan_to_num(severity, nan=-1.0)
    if order == "sick":
        places = [place for place in places if worst[place] >= 1.0 or place in sick]
    if order == "worst":
        places.sort(key=lambda place: -worst[place])
    if order != "model":
        return Chosen(tuple(Row(layers[place].name, (place,)) for place in places[:MOST]), max(0, len(places) - MOST))
    if len(places) <= MOST:
        return Chosen(tuple(Row(layers[place].name, (place,)) for place in places))
    return Chosen(tuple(_folded(layers, places, opened)))


def matches(name: str, pattern: str) -> bool:
    """Return whether a name has a pattern's text in it or, if the pattern has `*` or `?`, fits the pattern."""
    name, pattern = name.lower(), pattern.strip().lower()
    return fnmatchcase(name, pattern.replace("[", "[[]")) if set(pattern) & set("*?") else pattern in name


def _folded(layers: Sequence[Layer], places: Sequence[int], opened: Collection[str]) -> list[Row]:
    """Return a row for each block and for each layer of no block, with the rows of opened blocks below theirs."""
    rows: list[Row] = []
    for name, members in _blocks([(place, layers[place].name) for place in places]):
        if len(members) == 1:
            rows.append(Row(layers[members[0]].name, members))
            continue
        rows.append(Row(name, members, name in opened))
        if name in opened:
            rows.extend(Row(layers[place].name, (place,)) for place in members)
    return rows


def _blocks(named: Sequence[tuple[int, str]]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the blocks in the model's order; several neighbours are one block if the blocks are too many."""
    blocks: list[tuple[str, list[int]]] = []
    for place, name in named:
        found = _BLOCK.match(name)
        block = found[0] if found else name
        if blocks and blocks[-1][0] == block:
            blocks[-1][1].append(place)
        else:
            blocks.append((block, [place]))
    together = 1 if len(blocks) <= MOST else -(-len(blocks) // TOGETHER)
    joined = [blocks[start : start + together] for start in range(0, len(blocks), together)]
    labels = [_joined([name for name, _ in part]) for part in joined]
    twice = Counter(labels)
    return [
        # A block that the model's order visits twice has two rows, which need two names.
        (
            f"{label} ({part[0][1][0]})" if twice[label] > 1 else label,
            tuple(at for _, members in part for at in members),
        )
        for label, part in zip(labels, joined, strict=True)
    ]


def _joined(names: Sequence[str]) -> str:
    """Return a name for neighbouring blocks: blocks.0–7."""
    first, last = names[0], names[-1]
    if len(names) == 1:
        return first
    start = _TO_NUMBER.match(first)
    if start and last.startswith(start[1]) and last[len(start[1]) :].isdigit():
        return f"{first}–{last[len(start[1]) :]}"
    return f"{first} – {last}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return shorter names, without the parts that most names share: `3.attn.v` for `blocks.3.attn.v.weight`."""
    last = {name.rpartition(".")[2] for name in names}
    suffix = f".{last.pop()}" if len(last) == 1 and len(names) > 1 and all("." in name for name in names) else ""
    starts = Counter(match[1] for name in names if (match := _NUMBERED.match(name)))
    prefix, often = starts.most_common(1)[0] if starts else ("", 0)
    prefix = prefix if often > len(names) / 2 else ""
    short = {name: name.removesuffix(suffix).removeprefix(prefix) or name for name in names}
    return {name: text for name, text in short.items() if text != name}


def cut(name: str, most: int = 26) -> str:
    """Cut the middle out of a long name."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[-(most - 1 - head) :]}"
