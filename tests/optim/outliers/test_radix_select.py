"""Tests of the selections against a sort, for every bit pattern of every dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from root_dash.optim.outliers.radix_select import bucket_center, partition_neighbours, radix_neighbours

BITS = {
    torch.float64: (np.int64, torch.int64),
    torch.float32: (np.int32, torch.int32),
    torch.float16: (np.int16, torch.int16),
    torch.bfloat16: (np.int16, torch.int16),
}
Select = Callable[[Tensor, int], Tensor]


def radix(entries: Tensor, rank: int) -> Tensor:
    """Select by counts of bits."""
    return radix_neighbours(entries, rank)


def by_sorting(entries: Tensor, rank: int) -> Tensor:
    """Return the entries at a rank and at the next rank among the sorted magnitudes of each row."""
    ordered = entries.abs().sort(1).values
    pair = torch.stack([ordered[:, rank], ordered[:, min(rank + 1, entries.shape[1] - 1)]], 1)
    filled: Tensor = pair.masked_fill(ordered[:, -1:].isnan(), torch.nan)
    return filled


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Check that tensors are equal to the bit; NaN equals NaN."""
    assert actual.dtype == expected.dtype
    integer = BITS[actual.dtype][1]
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(0).view(integer), expected.nan_to_num(0).view(integer))


SELECTIONS = pytest.mark.parametrize("select", [radix, partition_neighbours])
DTYPES = pytest.mark.parametrize("dtype", list(BITS))


@SELECTIONS
@DTYPES
@given(st.data())
@settings(max_examples=15)
def test_any_bits(select: Select, dtype: torch.dtype, data: st.DataObject) -> None:
    """Each selection finds the same entries as a sort among all floats: infinite, denormal and NaN too."""
    numpy_integer = BITS[dtype][0]
    shape = st.tuples(st.integers(1, 4), st.integers(1, 30))
    some = st.sampled_from([0.0, 1.0, -1.0, float("inf"), 2.0**-20])
    if data.draw(st.booleans()):
        entries = torch.from_numpy(data.draw(npst.arrays(numpy_integer, shape))).view(dtype)
    else:
        entries = torch.from_numpy(data.draw(npst.arrays(np.float64, shape, elements=some))).to(dtype)
    rank = data.draw(st.integers(0, entries.shape[1] - 1))
    assert_same(select(entries, rank), by_sorting(entries, rank))


def student(n: int, dtype: torch.dtype) -> Tensor:
    """Return two rows of heavy-tailed entries."""
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(4, 2, n, generator=generator)
    entries: Tensor = normal[0] / torch.linalg.vector_norm(normal[1:], dim=0)
    return entries.to(dtype)


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "heavy tails": lambda x: x,
    "few values": lambda x: (x * 4).round(),
    "all equal": lambda x: torch.full_like(x, -2.5),
    "mostly zero": lambda x: torch.where(x.abs() > 3, x, 0),
    "ascending": lambda x: x.abs().sort(1).values,
    "denormal": lambda x: x.sign() * x.abs().clamp(1e-3, 10) * torch.finfo(x.dtype).tiny / 16,
    "large where sampled": lambda x: torch.where(torch.arange(x.shape[1]) % 9 == 0, 100 + x, x),
    "small where sampled": lambda x: torch.where(torch.arange(x.shape[1]) % 9 == 0, x / 100, x),
    "a tenth infinite": lambda x: torch.where(torch.arange(x.shape[1]) % 10 == 3, torch.inf, x),
}


@SELECTIONS
@pytest.mark.parametrize("kind", list(ROWS))
@DTYPES
def test_long_rows(select: Select, kind: str, dtype: torch.dtype) -> None:
    """Rows that are longer than a sample, and misleading samples, are selected from rightly at every rank."""
    n = 2**16 + 3 if select is partition_neighbours else 2**12 + 3
    entries = ROWS[kind](student(n, dtype))
    expected = {rank: by_sorting(entries, rank) for rank in (0, n // 1000, n // 2, n * 9 // 10, n - 1)}
    for rank, pair in expected.items():
        assert_same(select(entries, rank), pair)


@pytest.mark.parametrize("n", [2**12 - 1, 2**12, 2**12 + 1, 2**15, 2**18 - 1, 2**18, 2**18 + 1])
def test_lengths_around_the_switches(n: int) -> None:
    """The partition is right for few entries, for many entries, and for several blocks."""
    entries = student(n, torch.float32)
    for rank in (0, int(0.9 * (n - 1)), n - 2, n - 1):
        assert_same(partition_neighbours(entries, rank), by_sorting(entries, rank))


def test_bounds_from_a_misleading_sample_at_every_rank() -> None:
    """Both entries are found wherever the upper bound lies, also if it equals one of the two."""
    n = 2**12 + 1
    entries = ROWS["small where sampled"](student(n, torch.float32))
    ordered = entries.abs().sort(1).values
    for rank in range(400):
        assert torch.equal(partition_neighbours(entries, rank), ordered[:, rank : rank + 2])


@SELECTIONS
@pytest.mark.parametrize("n", [100, 10_000])
def test_nan_stays_in_its_row(select: Select, n: int) -> None:
    """One NaN, of whatever bits, makes its row's pair NaN and no other."""
    entries = student(n, torch.float32)
    entries.view(torch.int32)[0, n // 2] = 0x7F800001
    found = select(entries, n // 10)
    assert found.isnan().tolist() == [[True, True], [False, False]]


@SELECTIONS
@pytest.mark.parametrize("n", [100, 10_000])
def test_the_entries_are_left_alone(select: Select, n: int) -> None:
    """Selection neither reorders its input nor takes part in gradients, and takes strided rows."""
    entries = student(2 * n, torch.float32).requires_grad_()
    before = entries.detach().clone()
    found = select(entries[:, ::2], n // 2)
    assert not found.requires_grad
    assert torch.equal(entries, before)
    assert_same(found, by_sorting(before[:, ::2], n // 2))


def test_nothing_depends_on_the_data() -> None:
    """The selection by counts runs on the meta device, on which a shape or branch that needs data is an error."""
    assert radix(torch.empty(3, 1000, device="meta"), 899).shape == (3, 2)


@DTYPES
def test_a_bucket_holds_its_center(dtype: torch.dtype) -> None:
    """The center is within 2^-8 (float32) or 2^-21 (float64) of a normal value, or equal to it (16 bits)."""
    entries = student(10_000, dtype).abs()
    bound = {torch.float64: 2.0**-21, torch.float32: 2.0**-8}.get(dtype, 0.0)
    off = (bucket_center(entries) - entries).abs() / entries
    assert off.max() <= bound
    assert off.max() >= bound / 2
    kept = torch.tensor([0.0, torch.inf, torch.nan], dtype=dtype)
    assert_same(bucket_center(kept), kept)


@DTYPES
def test_coarse_ones_share_the_bucket(dtype: torch.dtype) -> None:
    """A coarse selection, which takes fewer passes, finds the bucket of the exact neighbours."""
    entries = student(5000, dtype)
    coarse = radix_neighbours(entries, 4500, coarse=True)
    assert_same(bucket_center(coarse), bucket_center(radix(entries, 4500)))
