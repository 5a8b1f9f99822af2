"""The sample of a weight's entries: exact for small tensors, spread over rows and columns for large ones."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from root_dash.monitor.quantities.changes import CHANGES, SAMPLED_ENTRIES, changed_shares, samples
from root_dash.monitor.quantities.quantity import HostBatch, ShardPart


@pytest.mark.parametrize("shape", [(3,), (), (64, 64), (4, 3, 5, 5)])
def test_the_share_of_a_small_tensor_is_exact(shape: tuple[int, ...]) -> None:
    """Whatever the shape: each entry is compared."""
    before = torch.zeros(shape)
    after = before.clone()
    after.view(-1)[: max(1, prod(shape) // 3)] = 1.0
    (share,) = changed_shares(samples([before]), samples([after])).tolist()
    assert share == pytest.approx(max(1, prod(shape) // 3) / prod(shape), rel=1e-15)


@pytest.mark.parametrize("shape", [(1024, 1024), (4096, 8192), (1000, 3000), (50258, 24), (8, 6, 64, 998), (1, 4098)])
def test_the_sample_of_a_large_tensor_comes_from_all_rows_and_columns_alike(shape: tuple[int, ...]) -> None:
    """A change of half of the rows, or of every second column, is seen as half, however long the rows are."""
    entries = prod(shape)
    tensor = torch.arange(entries, dtype=torch.int32).view(torch.float32).view(shape)
    place = samples([tensor])[0].long()
    assert len(place.unique()) == len(place) == SAMPLED_ENTRIES
    for size in reversed(shape):
        index = place % size
        for half in (index < size // 2, index % 2 == 0) if size > 1 else ():
            assert half.double().mean() == pytest.approx(0.5, abs=0.0313)  # four standard errors
        place = place // size


def test_the_error_of_a_share_is_that_of_the_sample() -> None:
    """The standard error is at most 0.8 %: over many random changes the root mean square error is not above it."""
    generator = torch.Generator().manual_seed(1)
    before = torch.zeros(40, 300, 400)
    after = (torch.rand(before.shape, generator=generator) < 0.3).float()
    errors = changed_shares(samples(list(before)), samples(list(after))) - after.double().mean((1, 2))
    assert 0.002 < errors.square().mean().sqrt() < 0.008


@pytest.mark.parametrize("strides", ["transposed", "channels last", "gaps", "a part"])
def test_the_strides_do_not_matter(strides: str) -> None:
    """A tensor that lies otherwise in memory is sampled all the same, and nothing beside it."""
    storage = torch.zeros(40, 30, 8, 4)
    tensor = {
        "transposed": storage.view(1200, 32).mT,
        "channels last": storage.contiguous(memory_format=torch.channels_last),
        "gaps": storage[:, ::3],
        "a part": storage[10:30],
    }[strides]
    before = samples([tensor])
    tensor.fill_(1.0)
    assert changed_shares(before, samples([tensor])).tolist() == [1.0]
    tensor.zero_()
    storage[:10, 1::3] = 1.0  # no entry of the last two
    if strides in ("gaps", "a part"):
        assert changed_shares(before, samples([tensor])).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_entries_are_compared_by_their_bits(dtype: torch.dtype) -> None:
    """A NaN that stays is no change, and the smallest change of a number is one."""
    before = torch.tensor([torch.nan, 1.0, 2.0, -3.0]).to(dtype)
    after = before.clone()
    after[3] = (before[3].float() * (1 + torch.finfo(dtype).eps)).to(dtype) if dtype != torch.float64 else -3.0000001
    assert changed_shares(samples([before]), samples([after])).tolist() == [0.25]


def test_parts_count_with_the_number_of_their_entries() -> None:
    """The share of a whole is the mean of its parts', by their sizes."""
    parts = [ShardPart({"share": np.array([0.5, 1.0])}, 300), ShardPart({"share": np.array([0.1, 1.0])}, 100)]
    assert CHANGES.merge is not None
    merged = CHANGES.merge(parts)
    found = CHANGES.on_host(HostBatch(merged, (0, 1), (20, 20), 1)).statistics["changed_share"]
    np.testing.assert_allclose(found, [0.4, 1.0], rtol=1e-15)
