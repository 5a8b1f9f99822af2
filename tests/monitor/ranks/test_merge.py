"""Shards of a tensor, measured apart and put together, are the tensor measured as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.measure import Measurement, measure
from root_dash.monitor.optimizers.adapter import outliers_of
from root_dash.monitor.quantities.norms import norms
from root_dash.monitor.quantities.quantity import LayerBatch
from root_dash.monitor.ranks.merge import merged
from root_dash.monitor.writing.transfer import send
from root_dash.records import Frame, Histogram, Kind, statistic_names

KINDS: tuple[Kind, ...] = ("statistics", "histograms", "quantiles", "spectra", "masks")
Tensors = tuple[Tensor, Tensor, Tensor]
"""Gradient, momentum and weight, each (1, rows, cols)."""

COUNTED = ("grad_nan", "grad_inf", "grad_zero", "grad_abs_max", "threshold", "outlier_fraction")
"""What has to be the same to the last bit, however the entries were split."""

UNITLESS = ("alignment", "grad_skewness", "grad_kurtosis")


def arrived(measurement: Measurement) -> LayerGroup:
    """Return the group that the writer makes of a measurement."""
    keys = {(quantity, name): one for quantity, found in measurement.tensors.items() for name, one in found.items()}
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for (quantity, name), array in send(keys).wait().items():
        arrays.setdefault(quantity, {})[name] = array
    return LayerGroup(measurement.positions, measurement.shape, arrays, measurement.entries)


def whole(gradient: Tensor, momentum: Tensor, weight: Tensor) -> LayerGroup:
    """Measure one layer as a single process does."""
    base, threshold = outliers_of(momentum, 0.9)
    norm = norms(weight.flatten(1))
    return arrived(measure(LayerBatch((3,), gradient, norm, momentum, threshold, base, momentum, 0.1), KINDS))


def owner(momentum: Tensor) -> LayerGroup:
    """Measure the layer as the process that orthogonalizes it does."""
    base, threshold = outliers_of(momentum, 0.9)
    return arrived(measure(LayerBatch((3,), None, None, momentum, threshold, base, momentum, 0.1), KINDS))


def shard(gradient: Tensor, momentum: Tensor, weight: Tensor, rows: slice) -> LayerGroup:
    """Measure some rows of the layer, as the process that holds them does."""
    _, height, width = gradient.shape
    norm = norms(weight[:, rows].flatten(1))
    held = LayerBatch((3,), gradient[:, rows], norm, momentum[:, rows], shard_of=(height, width))
    return arrived(measure(held, KINDS))


def frame(groups: list[LayerGroup]) -> Frame:
    return Assembler().frame(groups, seq=0, step=1, time=0.0, scalars={}, lost=0, cost=0.0)


def drawn(seed: int, shape: tuple[int, int], scale: float, dtype: torch.dtype, spoiled: int) -> Tensors:
    """Tensors with heavy tails, some zeros and `spoiled` entries not finite."""
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn(3, 1, *shape, generator=generator, dtype=torch.float64) ** 3 * scale
    tensors[0][tensors[0].abs() < 1e-3 * scale] = 0.0
    entries = torch.randperm(shape[0] * shape[1], generator=generator)[:spoiled]
    tensors[0].view(-1)[entries] = torch.tensor([torch.nan, torch.inf, -torch.inf] * 3)[: len(entries)].double()
    gradient, momentum, weight = tensors.to(dtype)
    return gradient, momentum, weight


def assert_same(ours: Frame, theirs: Frame) -> None:
    """Counts and histograms exactly, the rest to 2e-6 of what it is measured by.

    Both are sums in float32: of tails as heavy as these a single process' norms are themselves up to 1e-6 off those in
    float64, and the kurtosis 3e-6.
    """
    assert ours.layers.tolist() == theirs.layers.tolist() == [3]
    names = statistic_names("statistics")
    mine, single = (dict(zip(names, f.statistics[0].astype(np.float64), strict=True)) for f in (ours, theirs))
    for name in names:
        if name in COUNTED:
            assert mine[name] == single[name] or np.isnan(mine[name]) and np.isnan(single[name]), name
        else:
            rtol = 2e-6
            by = single["grad_std"] if name == "grad_mean" else 1.0 if name in UNITLESS else 0.0
            np.testing.assert_allclose(mine[name], single[name], rtol=rtol, atol=rtol * by, err_msg=name)
    for tensor, histogram in theirs.histograms[3].items():
        found = ours.histograms[3][tensor]
        np.testing.assert_array_equal(found.counts, histogram.counts)
        assert (found.nan, found.inf) == (histogram.nan, histogram.inf)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 40),
    cols=st.sampled_from([1, 7, 300, 5000]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    scale=st.sampled_from([1.0, 1e-30, 1e-12, 1e15]),
    spoiled=st.sampled_from([0, 0, 1, 5]),
)
def test_any_split_gives_what_the_whole_gives(
    seed: int, rows: int, cols: int, cuts: list[int], scale: float, spoiled: int
) -> None:
    """One process or five, pieces of any height, any scale, entries that are not finite: the frame is the same."""
    tensors = drawn(seed, (rows, cols), scale, torch.float32, spoiled)
    bounds = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    slices = [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False) if ends[0] < ends[1]]
    sources = [[shard(*tensors, each)] for each in slices]
    sources[seed % len(sources)].insert(0, owner(tensors[1]))
    assert_same(frame(merged(sources)), frame([whole(*tensors)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_of_other_types_and_of_very_different_scale_add_up(dtype: torch.dtype) -> None:
    """A process that holds zeros or tiny entries measures in another unit than one that holds huge ones."""
    gradient, momentum, weight = drawn(1, (24, 50), 1.0, torch.float64, 0)
    scale = torch.tensor([0.0, 1e-37, 1e-5, 1e14]).repeat_interleave(6).view(1, 24, 1)
    tensors = ((gradient * scale).to(dtype), (momentum * scale).to(dtype), (weight * scale).to(dtype))
    sources = [[shard(*tensors, slice(start, start + 6))] for start in range(0, 24, 6)]
    sources[2].append(owner(tensors[1]))
    assert_same(frame(merged(sources)), frame([whole(*tensors)]))


def test_what_the_owner_sees_goes_with_it() -> None:
    """Spectrum, mask and the momentum's quantiles are the whole matrix'; the gradient's quantiles do not add up."""
    tensors = drawn(2, (12, 20), 1.0, torch.float32, 0)
    ours = frame(merged([[shard(*tensors, slice(0, 5))], [owner(tensors[1]), shard(*tensors, slice(5, 12))]]))
    theirs = frame([whole(*tensors)])
    np.testing.assert_array_equal(ours.spectra[3][0].momentum, theirs.spectra[3][0].momentum)
    assert ours.masks[3][0].packed == theirs.masks[3][0].packed
    assert set(ours.quantiles[3]) == {"momentum"}
    np.testing.assert_array_equal(ours.quantiles[3]["momentum"].values, theirs.quantiles[3]["momentum"].values)


def test_a_sum_of_some_parts_is_not_recorded() -> None:
    """If a part is missing, or there twice, the layer is left out; other layers are not."""
    tensors = drawn(3, (12, 20), 1.0, torch.float32, 0)
    first, second = shard(*tensors, slice(0, 5)), shard(*tensors, slice(5, 12))
    other = replace(whole(*tensors), positions=(9,))
    for sources in ([[first, other]], [[first, other], [second], [second]]):
        left = frame(merged(sources))
        assert left.layers.tolist() == [9]
        assert set(left.histograms) == {9}


def test_the_last_of_two_measurements_counts() -> None:
    """A layer that two optimizers step in turn: of every process it is the last part."""
    tensors, before = drawn(4, (12, 20), 1.0, torch.float32, 0), drawn(5, (12, 20), 1.0, torch.float32, 0)
    sources = [[shard(*each, rows) for each in (before, tensors)] for rows in (slice(0, 5), slice(5, 12))]
    ours, theirs = frame(merged(sources)), frame([whole(*tensors)])
    names = list(statistic_names("statistics"))
    index = names.index("grad_norm")
    np.testing.assert_allclose(ours.statistics[0, index], theirs.statistics[0, index], rtol=1e-6)

    def counts(of: Histogram) -> NDArray[np.uint32]:
        return of.counts

    np.testing.assert_array_equal(counts(ours.histograms[3]["gradient"]), counts(theirs.histograms[3]["gradient"]))


def test_layers_of_one_shape_are_put_together_each_from_its_own() -> None:
    """Three layers in a batch, cut at the same row: as each alone."""
    generator = torch.Generator().manual_seed(6)
    gradient, weight = torch.randn(2, 3, 8, 10, generator=generator).unbind()

    def part(rows: slice) -> LayerGroup:
        norm = norms(weight[:, rows].flatten(1))
        return arrived(measure(LayerBatch((4, 0, 7), gradient[:, rows], norm, shard_of=(8, 10)), KINDS))

    ours = frame(merged([[part(slice(0, 3))], [part(slice(3, 8))]]))
    single = arrived(measure(LayerBatch((4, 0, 7), gradient, norms(weight.flatten(1))), KINDS))
    theirs = frame([single])
    assert ours.layers.tolist() == [0, 4, 7]
    np.testing.assert_allclose(ours.statistics, theirs.statistics, rtol=1e-5, atol=1e-6)
