"""The sentinels of a run: what was read of every gradient at every step, kept until a frame takes it along."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.limits.budget import FLUSHED_SECONDS
from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.monitor.quantities.sentinels import NONE, SENTINELS
from root_dash.monitor.sentinels.gradients import Reading, Small, read
from root_dash.optim.matrices.batches import matrix_shape
from root_dash.optim.matrices.shards import cut_alike, is_dtensor, local, local_part
from root_dash.records import Float64Array, IntArray

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_ALL = slice(None)

FLUSHED_ROWS = 2048
"""Rows after which the sentinels get a frame of their own if no other frame takes them along."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds of a layer: the layer's position and its shape, and the entries held if it is a shard."""

    position: int
    shape: tuple[int, int] = (0, 0)
    entries: int | None = None


@dataclass(frozen=True, slots=True)
class SentinelRow:
    """What was read of an optimizer's gradients at a step: the layers that had one, and their norms and entries."""

    step: int
    watched: tuple[Held, ...]
    """All layers that the optimizer steps, also those that had no gradient."""
    readings: tuple[tuple[IntArray | slice, Reading], ...]
    """Which of the watched layers each reading is of."""

    @property
    def arrived(self) -> bool:
        """Whether the host has all values."""
        return all(reading.arrived for _, reading in self.readings)

    def values(self) -> Float64Array:
        """Return norms and largest entries of the watched layers, (2, L), `NONE` without a gradient; waits for them."""
        if len(self.readings) == 1 and isinstance(self.readings[0][0], slice):
            return self.readings[0][1].array()
        found = np.full((2, len(self.watched)), NONE)
        for places, reading in self.readings:
            found[:, places] = reading.array()
        return found


class GradientReader:
    """Reads the gradients of one optimizer's watched parameters, as the optimizer is about to see them."""

    def __init__(self, adapter: Adapter, positions: Mapping[Tensor, int]) -> None:
        self._adapter = adapter
        self._positions = positions
        self._parameters: list[tuple[Tensor, int]] = []
        self._cut: list[tuple[Tensor, Mapping[str, object], int]] = []
        self._cut_shards: list[tuple[Tensor, int, slice | Tensor]] = []
        self._pieces: dict[Tensor, list[tuple[int, tuple[int, int], slice | Tensor]]] = {}
        self._watched: tuple[Held, ...] = ()
        self._own: list[Tensor] = []
        self._seen: object = None
        self._plain = False
        self._may_be_sparse = False
        self._small: Small | None = None
        self.refresh(positions)

    def refresh(self, positions: Mapping[Tensor, int]) -> None:
        """Look again which parameters the optimizer has, and which of them are watched."""
        self._positions = positions
        watched: list[Held] = []
        parameters: list[tuple[Tensor, int]] = []
        self._cut, self._cut_shards = [], []
        plain = True
        for group in self._adapter.optimizer.param_groups:
            for parameter in group["params"]:
                position = positions.get(parameter)
                if position is None or not local(parameter).numel():
                    continue
                pieces = len(self._adapter.matrices(parameter, group))
                if is_dtensor(parameter) and pieces > 1:
                    plain = False
                    if parameter not in self._pieces:
                        self._pieces[parameter] = list(self._held_pieces(parameter, group))
                    for piece, shape, held in self._pieces[parameter]:
                        self._cut_shards.append((parameter, len(watched), held))
                        count = held.stop - held.start if isinstance(held, slice) else len(held)
                        watched.append(Held(position + piece, shape, count))
                elif is_dtensor(parameter):
                    plain = False
                    parameters.append((parameter, len(watched)))
                    watched.append(Held(position, matrix_shape(parameter.shape), local(parameter).numel()))
                elif pieces > 1:
                    self._cut.append((parameter, group, len(watched)))
                    watched += [Held(position + piece) for piece in range(pieces)]
                else:
                    parameters.append((parameter, len(watched)))
                    watched.append(Held(position))
        own = [parameter for parameter, _ in parameters]
        kinds = {(parameter.device, parameter.dtype) for parameter in own}
        seen = (tuple(watched), list(map(id, own)), kinds)
        if seen == self._seen:
            return
        self._seen, self._own, self._parameters = seen, own, parameters
        if self._watched != tuple(watched):
            self._watched = tuple(watched)
        self._may_be_sparse = any(parameter.ndim == 2 for parameter in own)
        self._plain = plain and not self._cut and len(kinds) == 1
        self._small = Small(own) if self._plain and own[0].is_cpu else None

    def _held_pieces(
        self, parameter: DTensor, group: Mapping[str, object]
    ) -> Iterator[tuple[int, tuple[int, int], slice | Tensor]]:
        """Yield the matrices of a sharded parameter that this process has entries of: which, its shape, which entries.

        The entries are those of the flattened shard.
        """
        owner = torch.empty(parameter.shape, dtype=torch.int32)
        for piece, matrix in enumerate(self._adapter.cut(owner, group)):
            matrix.fill_(piece)
        own = local_part(owner, parameter).reshape(-1).cpu()
        for piece, (rows, cols) in enumerate(self._adapter.matrices(parameter, group)):
            places = (own == piece).nonzero().view(-1)
            if len(places):
                first, last = int(places[0]), int(places[-1])
                together = last - first + 1 == len(places)
                yield piece, (rows, cols), slice(first, last + 1) if together else places.to(parameter.device)

    def row(self, step: int) -> SentinelRow | None:
        """Return what is read of the gradients now; None if there is no gradient."""
        scale = getattr(self._adapter.optimizer, "grad_scale", None)
        scale = local(scale) if isinstance(scale, Tensor) else None
        if self._plain:
            gradients = [gradient for parameter in self._own if (gradient := parameter.grad) is not None]
            sparse = self._may_be_sparse and any([gradient.is_sparse for gradient in gradients])
            if len(gradients) == len(self._own) and not sparse:
                return SentinelRow(step, self._watched, ((_ALL, read(gradients, scale, self._small)),))
        together: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
        for place, gradient in self._gradients():
            places, gradients_alike = together.setdefault((gradient.device, gradient.dtype), ([], []))
            places.append(place)
            gradients_alike.append(gradient)
        if not together:
            return None
        readings = tuple((np.array(places), read(own, scale)) for places, own in together.values())
        return SentinelRow(step, self._watched, readings)

    def _gradients(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each gradient that this process has, with its layer's place among the watched."""
        for parameter, place in self._parameters:
            gradient = parameter.grad
            if gradient is None or not cut_alike(parameter, gradient):
                continue
            held = local(gradient)
            if held.layout is torch.sparse_coo and (held.is_cpu or held.is_coalesced()):
                held = held.coalesce().values()  # what is not stored is 0; on a device it would be waited for
            if held.layout is not torch.strided:
                continue
            if held.numel():
                yield place, held
        for parameter, place, span in self._cut_shards:
            gradient = parameter.grad
            if gradient is not None and cut_alike(parameter, gradient):
                yield place, local(gradient).reshape(-1)[span]
        for parameter, group, place in self._cut:
            if parameter.grad is not None and parameter.grad.layout is torch.strided:
                for piece, matrix in enumerate(self._adapter.cut(parameter.grad, group)):
                    yield place + piece, matrix


class Sentinels:
    """The rows that no frame has taken along yet. Another thread may take them, when a signal ends the process."""

    def __init__(self) -> None:
        self._rows: list[SentinelRow] = []
        self._since = time.perf_counter()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def wait_too_long(self) -> bool:
        """Whether the rows need a frame of their own, since no other frame took them along."""
        rows = self._rows
        return bool(rows) and (len(rows) >= FLUSHED_ROWS or time.perf_counter() - self._since > FLUSHED_SECONDS)

    def add(self, row: SentinelRow) -> None:
        """Keep a row. A row of the same step and optimizer replaces the last: the step failed, and is tried again."""
        rows = self._rows
        for index in range(len(rows) - 1, -1, -1):
            if rows[index].step < row.step:
                break
            if rows[index].watched is row.watched:
                rows[index] = row
                return
        rows.append(row)

    def take(self) -> tuple[SentinelRow, ...]:
        """Return all rows, and keep none."""
        rows, self._rows, self._since = self._rows, [], time.perf_counter()
        return tuple(rows)


def groups_of_rows(rows: Sequence[SentinelRow]) -> list[LayerGroup]:
    """Return the groups of layers whose arrays the quantity `SENTINELS` makes statistics of; waits for the values."""
    if not rows:
        return []
    steps = np.unique([row.step for row in rows])
    watched = {one.position: one for row in rows for one in row.watched}
    places = {position: place for place, position in enumerate(sorted(watched))}
    values = np.full((2, len(places), len(steps)), NONE)
    of_row: dict[int, IntArray] = {}
    for row in rows:
        if id(row.watched) not in of_row:
            of_row[id(row.watched)] = np.array([places[one.position] for one in row.watched])
        values[:, of_row[id(row.watched)], np.searchsorted(steps, row.step)] = row.values()
    alike: dict[tuple[tuple[int, int], int | None], list[int]] = {}
    ever = (values[1] != NONE).any(1)
    for position, place in places.items():
        if not ever[place] and watched[position].entries is None:
            continue  # a layer without a gradient is missing; of a shard the other parts are told
        alike.setdefault((watched[position].shape, watched[position].entries), []).append(position)
    groups = []
    for (shape, entries), positions in alike.items():
        norm, entry = values[:, [places[position] for position in positions]]
        arrays = {"steps": np.tile(steps, (len(positions), 1)), "norm": norm, "entry": entry}
        groups.append(LayerGroup(tuple(positions), shape, {SENTINELS.name: arrays}, entries))
    assert all(entries is None or entries <= prod(shape) for shape, entries in alike)
    return groups
