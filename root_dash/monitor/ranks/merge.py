"""Measurements of several processes' shards, put together to measurements of whole layers.

Counts and sums add up, whichever process holds the entries; each quantity's `merge` says how. If one process sees a
whole matrix, because it orthogonalizes the matrix, its measurements of the matrix are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.quantities.quantity import Arrays, Quantity, ShardPart
from root_dash.monitor.quantities.registry import QUANTITIES, of_kind
from root_dash.monitor.quantities.sentinels import SENTINELS
from root_dash.records import Event, IntArray, Kind


@dataclass(frozen=True, slots=True)
class HeldRows:
    """The measurements by one process of L layers, which are some rows of a group."""

    group: LayerGroup
    rows: IntArray

    @property
    def entries(self) -> int:
        """How many entries of each layer the process measured."""
        return prod(self.group.shape) if self.group.entries is None else self.group.entries

    def arrays(self, quantity: str) -> Arrays:
        """Return the arrays (L, ...) of a quantity; a number that counts for all layers is repeated for each."""
        return {
            name: array[self.rows] if array.ndim else np.full(len(self.rows), array)
            for name, array in self.group.arrays.get(quantity, {}).items()
        }


@dataclass(frozen=True, slots=True)
class ShardedLayers:
    """L layers that the same processes hold alike: what each measured, and the process that saw them whole, if any."""

    positions: tuple[int, ...]
    parts: tuple[HeldRows, ...]
    whole: HeldRows | None


@dataclass(frozen=True, slots=True)
class Joined:
    """What there is of a step after all processes were heard."""

    groups: list[LayerGroup]
    events: tuple[Event, ...] = ()
    lost: int = 0
    """1 if what another process measured is missing."""


def merged(sources: Sequence[Sequence[LayerGroup]], quantities: Sequence[Quantity] = QUANTITIES) -> list[LayerGroup]:
    """Return the groups of whole layers that follow from what each process measured.

    A layer whose entries were not all measured, once each, is left out of the kind: a sum over some entries says
    nothing. If a process measured a layer twice, the last measurement counts, as with one process.
    """
    whole = [group for groups in sources for group in groups if group.entries is None]
    parts = [[group for group in groups if group.entries is not None] for groups in sources]
    if not any(parts):
        return whole
    # Sentinels wait for a row longer than what is measured in its step, in other groups of layers.
    measured = [quantity for quantity in quantities if quantity is not SENTINELS]
    kinds: dict[Kind, None] = dict.fromkeys(quantity.kind for quantity in measured if quantity.merge is not None)
    together = [of_kind(measured, kind) for kind in kinds] + ([[SENTINELS]] if SENTINELS in quantities else [])
    return whole + [group for own in together for group in _merged_together(parts, whole, own)]


def with_earlier(earlier: Sequence[LayerGroup], groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """Return the groups of a step with the sentinels of earlier steps, which the same process read: one group each."""
    found: dict[tuple[object, ...], LayerGroup] = {}
    rest = []
    for group in (*earlier, *groups):
        if SENTINELS.name not in group.arrays:
            rest.append(group)
            continue
        key = (group.positions, group.shape, group.entries)
        if key in found:
            before, now = found[key].arrays[SENTINELS.name], group.arrays[SENTINELS.name]
            joined = {name: np.concatenate([before[name], now[name]], 1) for name in now}
            group = replace(group, arrays={SENTINELS.name: joined})
        found[key] = group
    return [*rest, *found.values()]


def _merged_together(
    parts: Sequence[Sequence[LayerGroup]], whole: Sequence[LayerGroup], own: Sequence[Quantity]
) -> Iterator[LayerGroup]:
    """Yield the groups of quantities that are measured together, the first that is merged leading."""
    first = next(quantity for quantity in own if quantity.merge is not None)
    owned = [
        group
        for group in whole
        if first.name not in group.arrays and any(quantity.name in group.arrays for quantity in own)
    ]
    for layers in _sharded(parts, owned, first.name):
        found = {quantity.name: _merged_quantity(layers, quantity) for quantity in own}
        arrays = {name: values for name, values in found.items() if values}
        yield LayerGroup(layers.positions, layers.parts[0].group.shape, arrays)


def _merged_quantity(layers: ShardedLayers, quantity: Quantity) -> Arrays:
    """Return what was measured of the layers as a whole, and the sums of the parts if all processes have them."""
    whole = {} if layers.whole is None else layers.whole.arrays(quantity.name)
    if quantity.merge is None or not all(quantity.name in part.group.arrays for part in layers.parts):
        return whole
    parts = [ShardPart(part.arrays(quantity.name), part.entries) for part in layers.parts]
    return {**whole, **quantity.merge(parts)}


def _sharded(parts: Sequence[Sequence[LayerGroup]], owned: Sequence[LayerGroup], name: str) -> Iterator[ShardedLayers]:
    """Yield the layers whose parts that have the quantity of that name make up all their entries."""
    sources = [[group for group in groups if name in group.arrays] for groups in parts]
    places = [_places(groups) for groups in sources]
    owners = _places(owned)
    alike: dict[tuple[int | None, ...], list[int]] = {}
    for position in sorted(set().union(*places)):
        # The group in which each process has the layer, and the group of the process that saw it whole.
        key = tuple(place[position][0] if position in place else None for place in (*places, owners))
        alike.setdefault(key, []).append(position)
    for (*indices, owner), positions in alike.items():
        held = tuple(
            HeldRows(groups[index], np.array([place[position][1] for position in positions]))
            for groups, place, index in zip(sources, places, indices, strict=True)
            if index is not None
        )
        if sum(part.entries for part in held) == prod(held[0].group.shape):
            rows = np.array([owners[position][1] for position in positions]) if owner is not None else None
            whole = None if owner is None or rows is None else HeldRows(owned[owner], rows)
            yield ShardedLayers(tuple(positions), held, whole)


def _places(groups: Sequence[LayerGroup]) -> dict[int, tuple[int, int]]:
    """Return the group and the row of each layer; the last, if a layer is in several groups."""
    return {
        position: (index, row) for index, group in enumerate(groups) for row, position in enumerate(group.positions)
    }
