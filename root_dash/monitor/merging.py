"""What processes measured of their shards of a layer, put together: counts and sums add up, whoever holds the entries.

Sums come in pieces, each about its own mean (`root_dash.monitor.statistics`), and the pieces of another process are but
more of them: `root_dash.monitor.columns` makes the layer's statistics of all, in float64. What one process measured of
the whole matrix, since it orthogonalized it, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.columns import piece_widths
from root_dash.monitor.frames import Group
from root_dash.records import TENSORS, Event, Float64Array

Row = Mapping[str, NDArray[Any]]
"""The arrays of one layer, named as those of a group but without its first axis."""

GRADIENT_COLUMNS = 9
"""Of a piece: mean, the sums of powers, zeros, maximum and minimum; and NaNs and infinities, which may be left out."""

_POWERS = np.array([1, 2, 3, 2, 0, 1, 1, 0, 0])
"""Of the unit of the entries, in which each of these columns is; that of the fourth powers is their sum's root."""


@dataclass(frozen=True, slots=True)
class Held:
    """One layer's row in a group: what one process measured of it."""

    group: Group
    index: int

    def __contains__(self, name: object) -> bool:
        return name in self.group.arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self.group.arrays[name]
        row: NDArray[Any] = array[self.index] if array.ndim else array
        return row

    @property
    def entries(self) -> int:
        """How many entries of the layer it is of."""
        return prod(self.group.shape) if self.group.entries is None else self.group.entries


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
    seen_whole = _rows([group for group in whole if "statistics.gradient" not in group.arrays])
    rows: list[tuple[int, tuple[int, int], Row]] = []
    for position, held in _complete(parts, "statistics.gradient"):
        rows.append((position, held[0].group.shape, _statistics(held, seen_whole.get(position, []))))
    for position, held in _complete(parts, "histograms.gradient"):
        rows.append((position, held[0].group.shape, _histograms(held)))
    return whole + _stacked(rows)


def _complete(parts: Sequence[Sequence[Group]], name: str) -> Iterator[tuple[int, list[Held]]]:
    """Each layer's parts with an array of that name, where they make up the layer; in the order of the layers."""
    found: dict[int, list[Held]] = {}
    for groups in parts:
        for position, rows in _rows([group for group in groups if name in group.arrays]).items():
            found.setdefault(position, []).append(rows[-1])
    for position, held in sorted(found.items()):
        if sum(part.entries for part in held) == prod(held[0].group.shape):
            yield position, held


def _rows(groups: Sequence[Group]) -> dict[int, list[Held]]:
    rows: dict[int, list[Held]] = {}
    for group in groups:
        for index, position in enumerate(group.positions):
            rows.setdefault(position, []).append(Held(group, index))
    return rows


def _statistics(held: Sequence[Held], whole: Sequence[Held]) -> Row:
    """The sums of a layer's parts, and what was measured of it as a whole."""
    row: dict[str, NDArray[Any]] = {}
    if whole:
        last = whole[-1]
        row |= {name: last[name] for name in last.group.arrays if name.startswith("statistics.")}
    row |= _gradient(held)
    row["statistics.weight_norm"] = _norm(held, "statistics.weight_norm")
    if all("statistics.momentum" in part for part in held):
        row |= _momentum(held)
    if all("statistics.update_norm" in part for part in held):
        row["statistics.update_norm"] = _norm(held, "statistics.update_norm")
        row["statistics.lr"] = held[0]["statistics.lr"]
    return row


def _gradient(held: Sequence[Held]) -> Row:
    """All pieces in one unit, the largest of the parts': what another leaves out then, is nothing beside it."""
    units = [_scalar(part, "statistics.gradient.unit", 1.0) for part in held]
    unit = max(units)
    pieces, widths = [], []
    for part, own in zip(held, units, strict=True):
        sums = part["statistics.gradient"].astype(np.float64)
        padded = np.zeros((len(sums), GRADIENT_COLUMNS))
        padded[:, : sums.shape[1]] = sums
        pieces.append(padded * (own / unit) ** _POWERS)
        widths.append(piece_widths(part.entries, len(sums)))
    return {
        "statistics.gradient": np.concatenate(pieces),
        "statistics.gradient.widths": np.concatenate(widths),
        "statistics.gradient.unit": np.asarray(unit),
    }


def _momentum(held: Sequence[Held]) -> Row:
    """The same of the angle of gradient and momentum, each in a unit of its own."""
    units = [part["statistics.momentum.units"] if "statistics.momentum.units" in part else np.ones(2) for part in held]
    largest = np.max(units, 0)
    pieces, norms = [], []
    for part, own in zip(held, units, strict=True):
        sums = part["statistics.momentum"].astype(np.float64)
        gradient, momentum = own / largest
        pieces.append(sums * np.array([gradient, momentum, gradient * momentum]))
        norm = np.sqrt((sums[:, 1] ** 2).sum()) * own[1]
        norms.append(_scalar(part, "statistics.momentum.norm", norm))
    return {
        "statistics.momentum": np.concatenate(pieces),
        "statistics.momentum.norm": np.asarray(np.linalg.norm(norms)),
    }


def _histograms(held: Sequence[Held]) -> Row:
    row: dict[str, NDArray[Any]] = {}
    for tensor in TENSORS:
        for name in (f"histograms.{tensor}", f"histograms.{tensor}.nonfinite"):
            if all(name in part for part in held):
                row[name] = np.asarray(np.sum([part[name] for part in held], 0, dtype=np.int64))
    return row


def _norm(held: Sequence[Held], name: str) -> NDArray[Any]:
    """Of the whole, given each part's."""
    norms: Float64Array = np.array([part[name] for part in held], np.float64)
    return np.asarray(np.linalg.norm(norms))


def _scalar(part: Held, name: str, otherwise: float) -> float:
    return float(part[name]) if name in part else otherwise


def _stacked(rows: Sequence[tuple[int, tuple[int, int], Row]]) -> list[Group]:
    """The rows as groups of what can be stacked."""
    alike: dict[tuple[object, ...], list[tuple[int, Row]]] = {}
    for position, shape, row in rows:
        key = (shape, *sorted((name, array.shape) for name, array in row.items()))
        alike.setdefault(key, []).append((position, row))
    return [
        Group(
            tuple(position for position, _ in members),
            shape,
            {name: np.stack([row[name] for _, row in members]) for name in members[0][1]},
        )
        for (shape, *_), members in alike.items()
        if isinstance(shape, tuple)
    ]
