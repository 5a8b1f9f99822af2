"""Frames from what arrived of a step's measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.quantities import lanczos
from root_dash.monitor.quantities.mask import Packed, mask_of, mask_statistics
from root_dash.monitor.quantities.spectrum import (
    Grams,
    base_and_polar_error,
    estimated_statistics,
    singular_values,
    spectral_statistics,
)
from root_dash.monitor.quantities.statistics import statistics_of
from root_dash.records import (
    TENSORS,
    Event,
    Float64Array,
    Frame,
    Histogram,
    Mask,
    Quantiles,
    Spectrum,
    TensorName,
    statistic_names,
)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Group:
    """The measured arrays of L layers of one shape, named as `measure.measure` names its tensors."""

    positions: tuple[int, ...]
    shape: tuple[int, int]
    arrays: Arrays
    entries: int | None = None
    """How many entries of each layer the arrays are of, where they are of a shard; None: of all of them."""


@dataclass(frozen=True, slots=True)
class Assembler:
    """Builds frames in order; remembers each layer's last mask, for the overlap with it."""

    masks: dict[int, Packed] = field(default_factory=dict)

    def frame(
        self,
        groups: Sequence[Group],
        *,
        seq: int,
        step: int,
        time: float,
        scalars: Mapping[str, float],
        events: tuple[Event, ...] = (),
        lost: int,
        cost: float,
    ) -> Frame:
        """The frame of one step."""
        layers, statistics = _statistics(groups)
        return Frame(
            seq=seq,
            step=step,
            time=time,
            layers=layers,
            statistics=statistics,
            histograms=dict(item for group in groups for item in _histograms(group, step)),
            quantiles=dict(item for group in groups for item in _quantiles(group, step)),
            spectra=dict(item for group in groups for item in _spectra(group, step)),
            masks=dict(item for group in groups for item in self._masks(group, step)),
            scalars=dict(scalars),
            events=events,
            lost=lost,
            cost=cost,
        )

    def _masks(self, group: Group, step: int) -> Iterator[tuple[int, tuple[Mask, dict[str, float]]]]:
        if "masks.packed" not in group.arrays:
            return
        names = ("masks.threshold", "masks.packed", "masks.largest", "masks.largest_values")
        rows = zip(group.positions, *(group.arrays[name] for name in names), strict=True)
        for position, threshold, packed, largest, values in rows:
            if np.isnan(threshold):
                continue  # a layer that is not finite has no outliers to speak of
            mask = mask_of(packed, largest, values, *group.shape, step)
            yield position, (mask, mask_statistics(mask, packed, self.masks.get(position)))
            self.masks[position] = packed.copy()  # a view would keep the whole frame's buffer alive


def _statistics(groups: Sequence[Group]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    measured = [group for group in groups if "statistics.gradient" in group.arrays]
    if not measured:
        return np.empty(0, np.int64), np.empty((0, len(statistic_names("statistics"))), np.float32)
    layers = np.concatenate([np.array(group.positions, np.int64) for group in measured])
    statistics = np.concatenate([_statistics_of(group) for group in measured])
    # A layer that two optimizers step in turn was measured twice: the last one counts.
    positions, last = np.unique(layers[::-1], return_index=True)
    return positions, statistics[::-1][last]


def _statistics_of(group: Group) -> NDArray[np.float32]:
    prefix = "statistics."
    sums = {name.removeprefix(prefix): array for name, array in group.arrays.items() if name.startswith(prefix)}
    return statistics_of(sums, prod(group.shape))


def _histograms(group: Group, step: int) -> Iterator[tuple[int, dict[TensorName, Histogram]]]:
    tensors = [tensor for tensor in TENSORS if f"histograms.{tensor}" in group.arrays]
    for row, position in enumerate(group.positions if tensors else ()):
        histograms: dict[TensorName, Histogram] = {}
        for tensor in tensors:
            counts = group.arrays[f"histograms.{tensor}"][row].astype(np.uint32)
            nan, inf = map(int, group.arrays[f"histograms.{tensor}.nonfinite"][row])
            histograms[tensor] = Histogram(counts, nan, inf, step)
        yield position, histograms


def _quantiles(group: Group, step: int) -> Iterator[tuple[int, dict[TensorName, Quantiles]]]:
    tensors = [tensor for tensor in TENSORS if f"quantiles.{tensor}" in group.arrays]
    for row, position in enumerate(group.positions if tensors else ()):
        values = {t: (group.arrays[f"quantiles.{t}"][row], group.arrays[f"quantiles.{t}.count"][row]) for t in tensors}
        yield position, {tensor: Quantiles(value.copy(), int(count), step) for tensor, (value, count) in values.items()}


def _spectra(group: Group, step: int) -> Iterator[tuple[int, tuple[Spectrum, dict[str, float]]]]:
    if "spectra.momentum" in group.arrays:
        momentum, base, update, statistics = _exact(group)
    elif "lanczos.momentum" in group.arrays:
        momentum, base, update, statistics = _estimated(group)
    else:
        return
    for row, position in enumerate(group.positions):
        own = [values[row].astype(np.float32) for values in (momentum, base, update)]
        spectrum = Spectrum(own[0], own[1], own[2], step, estimated="lanczos.momentum" in group.arrays)
        yield position, (spectrum, {name: float(values[row]) for name, values in statistics.items()})


Spectra = tuple[Float64Array, Float64Array, Float64Array, dict[str, Float64Array]]
"""Singular values of M, B and X of L layers, (L, m) or (L, 0) where there is no update, and statistics (L,)."""


def _exact(group: Group) -> Spectra:
    arrays = group.arrays
    grams = Grams(
        arrays["spectra.momentum"], arrays["spectra.base"], arrays.get("spectra.update"), arrays.get("spectra.cross")
    )
    momentum, (base, errors) = singular_values(grams.momentum), base_and_polar_error(grams, *group.shape)
    update = np.empty((len(group.positions), 0)) if grams.update is None else singular_values(grams.update)
    return momentum, base, update, spectral_statistics(momentum, *group.shape) | {"polar_error": errors}


def _estimated(group: Group) -> Spectra:
    momentum, base, update = (
        lanczos.singular_values(group.arrays[name], min(group.shape)) if name in group.arrays else None
        for name in ("lanczos.momentum", "lanczos.base", "lanczos.update")
    )
    assert momentum is not None
    assert base is not None
    orthogonal = update if "lanczos.orthogonalized" in group.arrays else None
    statistics = estimated_statistics(momentum, orthogonal, group.arrays["lanczos.norm"], *group.shape)
    return momentum, base, np.empty((len(momentum), 0)) if update is None else update, statistics
