"""What processes measured of their shards of a layer, put together: counts and sums add up, whoever holds the entries.

Sums come in pieces, each about its own mean (`monitor.quantities.sums`), and the pieces of another process are but
more of them: `quantities.statistics` makes the layer's statistics of all, in float64. What one process measured of
the whole matrix, since it orthogonalized it, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.frames import Group
from root_dash.monitor.quantities.statistics import piece_widths
from root_dash.records import TENSORS, Event, Float64Array, IntArray

Arrays = dict[str, NDArray[Any]]

GRADIENT_COLUMNS = 9
"""Of a piece: mean, the sums of powers, zeros, maximum and minimum; and NaNs and infinities, which may be left out."""

_POWERS = np.array([1, 2, 3, 2, 0, 1, 1, 0, 0])
"""Of the unit of the entries, in which each of these columns is; that of the fourth powers is their sum's root."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one process measured of L layers, which are some rows of a group."""

    group: Group
    rows: IntArray

    def __contains__(self, name: object) -> bool:
        return name in self.group.arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array of that name, (L, ...)."""
        array = self.group.arrays[name]
        found: NDArray[Any] = array[self.rows] if array.ndim else np.full(len(self.rows), array)
        return found

    @property
    def entries(self) -> int:
        """How many entries of each layer it is of."""
        return prod(self.group.shape) if self.group.entries is None else self.group.entries


@dataclass(frozen=True, slots=True)
class Block:
    """L layers that the same processes hold alike: what each measured, and the one that saw them whole, if any."""

    positions: tuple[int, ...]
    parts: tuple[Held, ...]
    whole: Held | None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole layers."""
        return self.parts[0].group.shape

    def have(self, name: str) -> bool:
        """Whether all parts have an array of that name."""
        return all(name in part for part in self.parts)


@dataclass(frozen=True, slots=True)
class Joined:
    """What there is of a step once all processes were heard."""

    groups: list[Group]
    events: tuple[Event, ...] = ()
    lost: int = 0
    """1 where what another process measured is missing."""


def merged(sources: Sequence[Sequence[Group]]) -> list[Group]:
    """The groups of whole layers that follow from what each process measured.

    A layer whose entries were not all measured, once each, is left out of the kind: a sum of some is nobody's number.
    Of a layer that a process measured twice the last counts, as where there is one process.
    """
    whole = [group for groups in sources for group in groups if group.entries is None]
    parts = [[group for group in groups if group.entries is not None] for groups in sources]
    if not any(parts):
        return whole
    owned = [group for group in whole if "statistics.gradient" not in group.arrays]
    statistics = [
        Group(block.positions, block.shape, _statistics(block))
        for block in _blocks(parts, owned, "statistics.gradient")
    ]
    histograms = [
        Group(block.positions, block.shape, _histograms(block)) for block in _blocks(parts, [], "histograms.gradient")
    ]
    return whole + statistics + histograms


def _blocks(parts: Sequence[Sequence[Group]], owned: Sequence[Group], name: str) -> Iterator[Block]:
    """The layers whose parts with an array of that name make them up."""
    sources = [[group for group in groups if name in group.arrays] for groups in parts]
    places = [_places(groups) for groups in sources]
    owners = _places(owned)
    alike: dict[tuple[int | None, ...], list[int]] = {}
    for position in sorted(set().union(*places)):
        # Which of its groups each process has it in, and the owner.
        key = tuple(place[position][0] if position in place else None for place in (*places, owners))
        alike.setdefault(key, []).append(position)
    for (*indices, owner), positions in alike.items():
        held = tuple(
            Held(groups[index], np.array([place[position][1] for position in positions]))
            for groups, place, index in zip(sources, places, indices, strict=True)
            if index is not None
        )
        if sum(part.entries for part in held) == prod(held[0].group.shape):
            rows = np.array([owners[position][1] for position in positions]) if owner is not None else None
            whole = None if owner is None or rows is None else Held(owned[owner], rows)
            yield Block(tuple(positions), held, whole)


def _places(groups: Sequence[Group]) -> dict[int, tuple[int, int]]:
    """In which group and row each layer is, the last if in several."""
    return {
        position: (index, row) for index, group in enumerate(groups) for row, position in enumerate(group.positions)
    }


def _statistics(block: Block) -> Arrays:
    """The sums of the parts, and what was measured of the layers as a whole."""
    arrays: Arrays = {}
    if block.whole is not None:
        names = [name for name in block.whole.group.arrays if name.startswith("statistics.")]
        arrays |= {name: block.whole[name] for name in names}
    arrays |= _gradient(block.parts)
    arrays["statistics.weight_norm"] = _norm(block.parts, "statistics.weight_norm")
    if block.have("statistics.momentum"):
        arrays |= _momentum(block.parts)
    if block.have("statistics.update_norm"):
        arrays["statistics.update_norm"] = _norm(block.parts, "statistics.update_norm")
        arrays["statistics.lr"] = block.parts[0]["statistics.lr"]
    return arrays


def _gradient(parts: Sequence[Held]) -> Arrays:
    """All pieces in one unit, the largest of the parts': what another leaves out then, is nothing beside it."""
    units = [_or(part, "statistics.gradient.unit", np.ones(len(part.rows))) for part in parts]
    unit = np.max(units, 0)
    pieces, widths = [], []
    for part, own in zip(parts, units, strict=True):
        sums = part["statistics.gradient"].astype(np.float64)
        padded = np.zeros((*sums.shape[:2], GRADIENT_COLUMNS))
        padded[..., : sums.shape[2]] = sums
        pieces.append(padded * (own / unit)[:, None, None] ** _POWERS)
        widths.append(np.tile(piece_widths(part.entries, sums.shape[1]), (len(sums), 1)))
    return {
        "statistics.gradient": np.concatenate(pieces, 1),
        "statistics.gradient.widths": np.concatenate(widths, 1),
        "statistics.gradient.unit": unit,
    }


def _momentum(parts: Sequence[Held]) -> Arrays:
    """The same of the angle of gradient and momentum, each in a unit of its own."""
    units = [_or(part, "statistics.momentum.units", np.ones((len(part.rows), 2))) for part in parts]
    largest = np.max(units, 0)
    pieces, norms = [], []
    for part, own in zip(parts, units, strict=True):
        sums = part["statistics.momentum"].astype(np.float64)
        ratios = own / largest
        pieces.append(sums * np.concatenate([ratios, ratios.prod(1, keepdims=True)], 1)[:, None])
        norm = np.sqrt((sums[..., 1] ** 2).sum(1)) * own[:, 1]
        norms.append(_or(part, "statistics.momentum.norm", norm))
    return {
        "statistics.momentum": np.concatenate(pieces, 1),
        "statistics.momentum.norm": np.linalg.norm(norms, axis=0),
    }


def _histograms(block: Block) -> Arrays:
    names = [f"histograms.{tensor}{suffix}" for tensor in TENSORS for suffix in ("", ".nonfinite")]
    return {name: _sum([part[name] for part in block.parts]) for name in names if block.have(name)}


def _sum(arrays: Sequence[NDArray[Any]]) -> IntArray:
    total: IntArray = np.sum(arrays, 0, dtype=np.int64)
    return total


def _norm(parts: Sequence[Held], name: str) -> Float64Array:
    """Of the whole, given each part's: (L,)."""
    norms: Float64Array = np.linalg.norm([part[name].astype(np.float64) for part in parts], axis=0)
    return norms


def _or(part: Held, name: str, otherwise: Float64Array) -> Float64Array:
    return part[name].astype(np.float64) if name in part else otherwise
