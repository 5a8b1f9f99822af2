"""The parts of a quantity: what the device computes, how ranks merge their parts, and what the host makes of them.

A quantity measures L layers of one shape at one step. Its `on_device` makes small tensors of a `LayerBatch`, its
`merge` adds up what several processes measured of their shards, and its `on_host` makes statistics and records of the
arrays that arrived. `root_dash.monitor.quantities.registry` lists all quantities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.records import Float64Array, Kind

Tensors = dict[str, Tensor]
"""Tensors of one quantity on the device, by name. The first dimension is the layer; a tensor () counts for all."""

Arrays = Mapping[str, NDArray[Any]]
"""The same tensors on the host."""

Columns = dict[str, Float64Array]
"""Statistics by name, each (L,)."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class MeasureLimits:
    """How much is measured exactly, and how much at a time.

    `exact_side` is the largest short side whose spectra are exact, by Gram matrices and their eigenvalues. On one
    thread the spectra of a layer of 512 x 1024 take 150 ms exactly and 120 ms estimated, those of 1024 x 2048 take
    940 ms and 330 ms; and four Gram matrices of 1024 x 1024 are half of what the writer's queue holds.

    `entries` is the number of entries of layers of one shape that are measured together, unless one layer has more.
    Temporary tensors then do not grow with the model: in float32 they took ten times the memory of the weights that
    are measured together. The numbers of a layer do not depend on the layers measured beside it.

    `copied_bytes` is the most that is copied of an optimizer's gradients, and the most of its weights, to live until
    after its step. If there are more gradients, none is copied and all are read after the step. If there are more
    weights, updates come with the spectra alone and the layers take turns; a layer that is larger by itself has none.
    """

    exact_side: int = 512
    entries: int = 2**24
    copied_bytes: int = 2**30


DEFAULT_LIMITS = MeasureLimits()


@dataclass(frozen=True, slots=True)
class LayerBatch:
    """L layers of one shape at one step, each tensor (L, rows, cols).

    `momentum`, `base` and `update` are None if the optimizer has no such tensor or does not show it. `gradient` and
    `weight_norm` are None if the process sees sharded matrices whole. `shard_of` is the shape of the whole matrices if
    the tensors are this process's shards of them.
    """

    positions: tuple[int, ...]
    gradient: Tensor | None
    weight_norm: Tensor | None
    momentum: Tensor | None = None
    threshold: Tensor | None = None
    base: Tensor | None = None
    update: Tensor | None = None
    lr: float | Tensor = 0.0
    orthogonalized: bool = False
    """Whether the optimizer orthogonalizes these layers: whether `update` should be orthogonal."""
    of_base: bool = True
    """Whether `base` is what was orthogonalized, so that the polar error is an error of `update`."""
    shard_of: tuple[int, int] | None = None
    limits: MeasureLimits = DEFAULT_LIMITS
    weight: Sequence[Tensor] | None = None
    """The weights, L views (rows, cols), as they are when the batch is made; None if the process has shards of them."""
    memory: dict[int, Tensor] = field(default_factory=dict)
    """What the quantity keeps of each layer on the device until its next recording, by position."""
    one_pass: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums by quantity, (L, pieces, fields), that a kernel made in one pass; empty if no kernel drives the device."""

    @property
    def seen(self) -> Tensor:
        """The gradient or, if there is none, the momentum: a tensor of the batch's shape, on its device."""
        tensor = self.momentum if self.gradient is None else self.gradient
        assert tensor is not None
        return tensor

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Return the entries of gradient and momentum, as far as known, each (L, n) in any order of the entries."""
        found = [] if self.gradient is None else [("gradient", self.gradient.flatten(1))]
        return found if self.momentum is None else [*found, ("momentum", flat(self.momentum)[0])]


def flat(*tensors: Tensor) -> list[Tensor]:
    """Return tensors (L, rows, cols) as (L, n), all in the one order of entries in which the first lies in memory.

    ROOT keeps tall matrices transposed in memory. To flatten them in the order of the weights would copy each.
    """
    transposed = tensors[0].mT.is_contiguous()
    return [(tensor.mT if transposed else tensor).flatten(1) for tensor in tensors]


class Fields:
    """The named columns of a quantity's sums, in order, each with the power of the scale unit that it is measured in.

    Entries may be scaled by a power of two before they are summed. A sum of squares is then in units of power 2, a
    count in units of power 0. Trailing columns that are zero may be left out of the sums.
    """

    def __init__(self, **powers: int) -> None:
        self.names = tuple(powers)
        self.powers = np.array(list(powers.values()))

    def stack(self, **columns: Tensor) -> Tensor:
        """Join columns, each (l,), to sums (l, fields).

        Raises:
            ValueError: the columns are not the first fields, in their order.
        """
        if tuple(columns) != self.names[: len(columns)]:
            raise ValueError(f"columns must be the first of {self.names} in this order, got {tuple(columns)}")
        return torch.stack(list(columns.values()), -1)

    def split(self, sums: NDArray[Any]) -> Columns:
        """Return the columns of sums (..., fields) by name, in float64; columns that were left out are 0."""
        padded = self.padded(sums)
        return {name: padded[..., index] for index, name in enumerate(self.names)}

    def padded(self, sums: NDArray[Any]) -> Float64Array:
        """Return sums with all fields, in float64; columns that were left out are 0."""
        padded = np.zeros((*sums.shape[:-1], len(self.names)))
        padded[..., : sums.shape[-1]] = sums
        return padded

    def column(self, sums: Tensor, name: str) -> Tensor:
        """Return one column, (L, pieces), of sums (L, pieces, fields) on the device."""
        return sums[..., self.names.index(name)]


@dataclass(frozen=True, slots=True)
class ShardPart:
    """What one process measured of its shards of L layers: the arrays of one quantity, and the entries per layer."""

    arrays: Arrays
    entries: int


@dataclass(frozen=True, slots=True)
class HostBatch:
    """The arrays of one quantity of L whole layers of one shape, as they arrived on the host."""

    arrays: Arrays
    positions: tuple[int, ...]
    shape: tuple[int, int]
    step: int
    memory: dict[int, Any] = field(default_factory=dict)
    """What the quantity wants to remember of each layer until its next recording, by position."""

    @property
    def entries(self) -> int:
        """Entries of each layer."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class HostResult:
    """What the host makes of a quantity of L layers: statistics by name, each (L,), and a record of each layer.

    A record that is None leaves the layer out. A quantity that makes no records has an empty tuple.
    """

    statistics: Columns = field(default_factory=dict)
    records: Sequence[object] = ()


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity by its name, and the kind of recording that it comes with.

    `statistics` names the statistics that it makes, as `root_dash.vocabulary` defines them. `merge` is None if the
    quantity needs the whole matrix, or order statistics: shards are not measured then.
    """

    name: str
    kind: Kind
    on_device: Callable[[LayerBatch], Tensors]
    on_host: Callable[[HostBatch], HostResult]
    merge: Callable[[Sequence[ShardPart]], Arrays] | None = None
    statistics: tuple[str, ...] = ()


def quiet(function: Function) -> Function:
    """Decorate a function of the host for which 0 / 0 is NaN, and is meant to be."""
    wrapped: Function = np.errstate(divide="ignore", invalid="ignore")(function)
    return wrapped


def or_zero(value: Float64Array, energy: Float64Array) -> Float64Array:
    """Return values, and 0 for those relative to an energy of 0: a constant has no skew, a zero tensor no angle."""
    return np.where(energy == 0, 0.0, value)


def every_part_has(parts: Sequence[ShardPart], name: str) -> bool:
    """Return whether all parts have an array of that name."""
    return all(name in part.arrays for part in parts)


def norm_of_parts(parts: Sequence[ShardPart], name: str) -> Float64Array:
    """Return the norms (L,) of whole layers, given the norms of their parts."""
    norms: Float64Array = np.linalg.norm([part.arrays[name].astype(np.float64) for part in parts], axis=0)
    return norms
