from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from root_dash.optim.outliers import split, threshold
from tests.optim.reference import Array

QUANTILES = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1))


@given(
    npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
        elements=st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e30)),
    ),
    QUANTILES,
)
@settings(deadline=None, max_examples=150)
def test_it_is_numpys_quantile(batch: Array, quantile: float) -> None:
    """Per matrix of a batch, ties included, the threshold is `numpy.quantile` of its entries."""
    expected = [np.quantile(matrix, quantile) for matrix in batch]
    np.testing.assert_allclose(threshold(torch.from_numpy(batch), quantile).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_it_lies_between_two_order_statistics(quantile: float, dtype: torch.dtype) -> None:
    """In every dtype the threshold keeps the dtype, lies between two neighbours, and at most that share exceeds it."""
    batch = torch.randn(3, 50, 41, generator=torch.Generator().manual_seed(0)).abs().to(dtype)
    eps = threshold(batch, quantile)
    assert eps.dtype == dtype
    ordered = batch.flatten(1).double().sort(1).values
    below = int(quantile * (50 * 41 - 1))
    above = min(below + 1, 50 * 41 - 1)
    assert (ordered[:, below] <= eps).all()
    assert (eps <= ordered[:, above]).all()


def test_more_entries_than_torch_quantile_takes() -> None:
    """A matrix of over 2^24 entries has a threshold, where `torch.quantile` refuses."""
    batch = (torch.arange(2**24 + 9) % 1000).float().view(1, 1, -1)
    # 16778 entries of each value below 225, 16777 of the others: position 0.9 * (n - 1) is among the 899s.
    assert threshold(batch, 0.9) == 899.0


def test_nan_makes_the_threshold_nan() -> None:
    """NaN is not hidden among the outliers, and stays with its own matrix."""
    batch = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0))
    batch[0, 3, 3] = torch.nan
    assert threshold(batch, 0.5).isnan().tolist() == [True, False]


def test_a_few_infinite_entries_are_outliers() -> None:
    """Fewer infinite entries than the quantile cuts off leave a finite threshold; more make it infinite."""
    batch = torch.ones(2, 10, 10)
    batch[0, 0, :5] = torch.inf
    batch[1, 0:2] = torch.inf
    assert threshold(batch, 0.9).tolist() == [1.0, torch.inf]


def test_an_empty_matrix_has_no_threshold() -> None:
    """NaN stands for it."""
    assert threshold(torch.zeros(2, 0, 5), 0.9).isnan().all()


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_what_is_no_quantile_is_refused(quantile: float) -> None:
    """The error names the argument and the value."""
    with pytest.raises(ValueError, match=f"outlier_quantile must be in \\[0, 1\\], got {quantile}"):
        threshold(torch.ones(1, 2, 2), quantile)


@given(npst.arrays(np.float64, (2, 5, 7), elements=st.floats(-1e6, 1e6)), st.floats(0, 1e6))
@settings(deadline=None, max_examples=100)
def test_the_split_is_the_soft_threshold(batch: Array, eps: float) -> None:
    """B = clamp(M, -ε, ε), and M - B is the soft-thresholded M of the paper."""
    matrix = torch.from_numpy(batch)
    base = split(matrix, torch.full((2,), eps, dtype=torch.float64))
    soft = np.sign(batch) * np.maximum(np.abs(batch) - eps, 0)
    np.testing.assert_allclose((matrix - base).numpy(), soft, atol=1e-9)
    assert torch.equal(base, matrix.clamp(-eps, eps))
