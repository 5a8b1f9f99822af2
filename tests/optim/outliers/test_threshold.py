"""Tests of the threshold against NumPy's quantile and the authors' two selections, and of the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from root_dash.optim.outliers.radix_select import radix_neighbours
from root_dash.optim.outliers.threshold import QuantileMethod, _between, _position, split, threshold
from tests.optim.reference import Array

QUANTILES = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
METHODS: tuple[QuantileMethod, ...] = ("exact", "histogram", "sampled")


def authors(batch: Tensor, quantile: float) -> Tensor:
    """Return the thresholds by two selections and an interpolation per matrix, as in the authors' script."""
    thresholds = []
    for matrix in batch:
        flat = matrix.abs().flatten()
        position = quantile * (len(flat) - 1)
        below = int(position)
        lower = flat.kthvalue(below + 1).values
        upper = flat.kthvalue(min(below + 2, len(flat))).values
        thresholds.append(lower.lerp(upper, position - below))
    return torch.stack(thresholds)


def heavy_tailed(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return Student-t entries with three degrees of freedom."""
    normal = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    entries: Tensor = normal[0] / torch.linalg.vector_norm(normal[1:], dim=0)
    return entries.to(dtype)


def by_counts(batch: Tensor, quantile: float, method: QuantileMethod = "exact") -> Tensor:
    """The threshold by counts of bits, which large matrices on a GPU take; `threshold` takes another way on a CPU."""
    flat = batch.flatten(1)
    rank, weight = _position(quantile, flat.shape[1])
    return _between(radix_neighbours(flat, rank, coarse=method == "histogram"), weight, method)


@given(
    npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
        elements=st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e30)),
    ),
    QUANTILES,
)
@settings(max_examples=150)
def test_it_is_numpys_quantile(batch: Array, quantile: float) -> None:
    """The threshold of each matrix of a batch is `numpy.quantile` of its magnitudes, also with ties."""
    expected = [np.quantile(matrix, quantile) for matrix in batch]
    np.testing.assert_allclose(threshold(torch.from_numpy(batch), quantile).numpy(), expected, rtol=1e-12)


@DTYPES
@given(
    npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(1, 12)),
        elements=st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-40, -1e-7]), st.floats(-60_000, 60_000)),
    ),
    QUANTILES,
)
@settings(max_examples=40)
def test_it_is_the_authors_to_the_bit(dtype: torch.dtype, batch: Array, quantile: float) -> None:
    """The threshold has the bits of the authors' for every dtype, in a batch or alone, by partition or by counts."""
    matrices = torch.from_numpy(batch).to(dtype)
    expected = authors(matrices, quantile)
    assert torch.equal(threshold(matrices, quantile), expected)
    assert torch.equal(torch.cat([threshold(matrix[None], quantile) for matrix in matrices]), expected)
    assert torch.equal(by_counts(matrices[:3], quantile), expected[:3])


@DTYPES
def test_long_ones_are_the_authors_to_the_bit(dtype: torch.dtype) -> None:
    """Long matrices, for which a sample bounds the selection, have the authors' bits too, with any strides."""
    whole = heavy_tailed(3, 150, 400, dtype=dtype)
    for matrices in (whole, whole.mT, whole[:, ::2, 1::3]):
        for quantile in (0.01, 0.8512, 0.9, 0.999, 1.0):
            assert torch.equal(threshold(matrices, quantile), authors(matrices, quantile))


@DTYPES
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
    """A matrix of over 2^24 entries, which `torch.quantile` refuses, has a threshold."""
    batch = (torch.arange(2**24 + 9) % 1000).float().view(1, 1, -1)
    # 16778 entries of each value below 225, 16777 of the others: position 0.9 * (n - 1) is among the 899s.
    assert threshold(batch, 0.9) == 899.0
    assert abs(threshold(batch, 0.9, "histogram") / 899.0 - 1) <= 2**-8
    assert abs(threshold(batch, 0.9, "sampled") / 899.0 - 1) <= 0.01


def test_nan_makes_the_threshold_nan() -> None:
    """NaN is not hidden among the outliers, and stays with its own matrix."""
    batch = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0))
    batch[0, 3, 3] = torch.nan
    for method in METHODS:
        assert threshold(batch, 0.5, method).isnan().tolist() == [True, False]
        assert by_counts(batch, 0.5, method).isnan().tolist() == [True, False]


def test_a_few_infinite_entries_are_outliers() -> None:
    """Fewer infinite entries than the quantile cuts off leave a finite threshold; more make it infinite."""
    batch = torch.ones(2, 10, 10)
    batch[0, 0, :5] = torch.inf
    batch[1, 0:2] = torch.inf
    assert threshold(batch, 0.9).tolist() == [1.0, torch.inf]
    assert by_counts(batch, 0.9).tolist() == [1.0, torch.inf]
    assert threshold(batch, 0.9, "histogram")[1] == torch.inf


def test_an_empty_matrix_has_no_threshold() -> None:
    """The threshold of an empty matrix is NaN."""
    for method in METHODS:
        assert threshold(torch.zeros(2, 0, 5), 0.9, method).isnan().all()


@DTYPES
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.999])
def test_the_histogram_is_near(quantile: float, dtype: torch.dtype) -> None:
    """The histogram's threshold is within 2^-8 of the lower order statistic, by either way; zero stays zero."""
    batch = heavy_tailed(2, 60, 100, dtype=dtype)
    batch[1, :31] = 0
    lower = batch.abs().flatten(1).sort(1).values[:, int(quantile * 5999)]
    eps = threshold(batch, quantile, "histogram")
    assert ((eps - lower).abs() <= lower * 2**-8).all()
    assert torch.equal(eps, by_counts(batch, quantile, "histogram"))
    assert dtype.itemsize != 2 or torch.equal(eps, lower)


def test_a_sample_covers_all_columns() -> None:
    """All columns are in the sample, also if their scales differ; a stride of a power of two would skip some."""
    batch = heavy_tailed(1, 2048, 256)
    batch[..., ::8] *= 1000
    eps = threshold(batch, 0.9, "sampled")
    assert eps == threshold(batch, 0.9, "sampled")
    assert (batch.abs() > eps).double().mean() == pytest.approx(0.1, abs=0.005)


def test_a_small_matrix_is_its_own_sample() -> None:
    """With fewer entries than two samples, the sampled quantile is the exact quantile."""
    batch = heavy_tailed(2, 300, 400)
    assert torch.equal(threshold(batch, 0.9, "sampled"), threshold(batch, 0.9))


@pytest.mark.parametrize(("columns", "method"), [(40, "exact"), (1000, "exact"), (1000, "sampled")])
def test_it_compiles_whole(columns: int, method: QuantileMethod) -> None:
    """Compiled into one graph without breaks, the threshold has the same bits, by top-k or by counts."""
    batch = heavy_tailed(2, 150, columns)
    torch._dynamo.reset()
    compiled = torch.compile(threshold, backend="eager", fullgraph=True)
    with torch.autocast("cpu"):
        assert torch.equal(compiled(batch, 0.9, method), threshold(batch, 0.9, method))


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_what_is_no_quantile_is_refused(quantile: float) -> None:
    """The error names the argument and the value."""
    with pytest.raises(ValueError, match=f"outlier_quantile must be in \\[0, 1\\], got {quantile}"):
        threshold(torch.ones(1, 2, 2), quantile)


def test_an_unknown_method_is_refused() -> None:
    """The error names the argument, the choices and the value."""
    message = "quantile_method must be one of 'exact', 'histogram', 'sampled', got 'fast'"
    with pytest.raises(ValueError, match=message):
        threshold(torch.ones(1, 2, 2), 0.9, "fast")  # type: ignore[arg-type]


@given(npst.arrays(np.float64, (2, 5, 7), elements=st.floats(-1e6, 1e6)), st.floats(0, 1e6))
@settings(max_examples=100)
def test_the_split_is_the_soft_threshold(batch: Array, eps: float) -> None:
    """B = clamp(M, -ε, ε), and M - B is the soft-thresholded M of the paper."""
    matrix = torch.from_numpy(batch)
    base = split(matrix, torch.full((2,), eps, dtype=torch.float64))
    soft = np.sign(batch) * np.maximum(np.abs(batch) - eps, 0)
    np.testing.assert_allclose((matrix - base).numpy(), soft, atol=1e-9)
    assert torch.equal(base, matrix.clamp(-eps, eps))
