"""Every device statistic against NumPy in float64, over ordinary, extreme and broken tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from root_dash.monitor.quantities import distribution
from root_dash.monitor.quantities import statistics as columns
from root_dash.monitor.quantities import sums as statistics
from root_dash.records import Float64Array

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
TENSORS = st_numpy.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=FLOATS)


def heavy_tailed(rows: int = 3, entries: int = 5000) -> torch.Tensor:
    """Student-t entries with four degrees of freedom at gradient scale, seeded."""
    return torch.from_numpy(np.random.default_rng(0).standard_t(4, (rows, entries)).astype(np.float32) * 1e-4)


def gradient_statistics(gradient: torch.Tensor) -> columns.Columns:
    """Of the sums that the device takes, as the writer makes them."""
    return columns.gradient_columns(_numpy(statistics.gradient_sums(gradient)), gradient.shape[1])


def momentum_statistics(gradient: torch.Tensor, momentum: torch.Tensor) -> columns.Columns:
    """The same of gradient and momentum."""
    return columns.momentum_columns(_numpy(statistics.momentum_sums(gradient, momentum)))


def outlier_statistics(momentum: torch.Tensor, base: torch.Tensor, threshold: torch.Tensor) -> columns.Columns:
    """The same of momentum and base."""
    sums = statistics.outlier_sums(momentum, base) | {"threshold": threshold}
    return columns.outlier_columns(_numpy(sums), momentum.shape[1])


def _numpy(sums: statistics.Sums) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in sums.items()}


def moments(x: Float64Array) -> dict[str, float]:
    """The statistics of a gradient's finite entries, straight from their definitions."""
    centered = x - x.mean()
    std = math.sqrt((centered**2).mean())
    return {
        "grad_norm": math.sqrt((x**2).sum()),
        "grad_abs_max": np.abs(x).max(),
        "grad_mean": x.mean(),
        "grad_std": std,
        "grad_skewness": (centered**3).mean() / std**3,
        "grad_kurtosis": (centered**4).mean() / std**4 - 3,
    }


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1.0, 1e20, 1e34])
def test_gradient_moments_equal_their_definition_at_every_scale(scale: float) -> None:
    """Neither tiny nor huge gradients under- or overflow on the way to their fourth moment."""
    gradient = heavy_tailed() * 1e4 * scale
    columns = gradient_statistics(gradient)
    for row in range(len(gradient)):
        for name, expected in moments(gradient[row].double().numpy()).items():
            tolerance = 1e-6 * scale if name == "grad_mean" else 0.0
            assert columns[name][row].item() == pytest.approx(expected, rel=1e-4, abs=tolerance), name


def test_non_finite_entries_are_counted_and_left_out() -> None:
    """A gradient with NaN and Inf has the moments of its finite entries, and says how many were not."""
    gradient = heavy_tailed(1)
    gradient[0, :7] = torch.nan
    gradient[0, 7:10] = torch.tensor([torch.inf, -torch.inf, torch.inf])
    gradient[0, 10:15] = 0.0
    columns = {name: value.item() for name, value in gradient_statistics(gradient).items()}
    assert (columns["grad_nan"], columns["grad_inf"], columns["grad_zero"]) == (7, 3, 5)
    for name, expected in moments(gradient[0, 10:].double().numpy()).items():
        assert columns[name] == pytest.approx(expected, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("finite", [3, 1000])
def test_few_finite_entries_among_many_have_their_own_moments(finite: int) -> None:
    """A gradient that is all but gone is described by what is left of it, not by what is missing."""
    gradient = torch.full((1, 1_000_000), torch.nan)
    gradient[0, :finite] = torch.tensor([1.0, 2.5, 3.75] * 400)[:finite]
    columns = gradient_statistics(gradient)
    for name, expected in moments(gradient[0, :finite].double().numpy()).items():
        assert columns[name].item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_double_precision_keeps_its_shape_beyond_the_range_of_single(scale: float) -> None:
    """Kurtosis has no scale, whatever the gradient's."""
    gradient = heavy_tailed(1).double()
    plain, scaled = (gradient_statistics(g)["grad_kurtosis"] for g in (gradient, gradient * scale))
    np.testing.assert_allclose(plain, scaled, rtol=1e-4)


def test_a_zero_gradient_has_no_skew_and_no_kurtosis() -> None:
    """What is constant has no third or fourth moment to speak of: 0, not NaN."""
    columns = gradient_statistics(torch.zeros(2, 9))
    assert all(bool((value == (9 if name == "grad_zero" else 0)).all()) for name, value in columns.items())


def test_a_constant_gradient_has_no_deviation() -> None:
    """Also one that float32 cannot add up exactly: what its mean is off by is no distribution."""
    columns = gradient_statistics(torch.full((1, 420_001), 0.1))
    assert [columns[f"grad_{name}"].item() for name in ("std", "skewness", "kurtosis")] == [0, 0, 0]
    assert columns["grad_norm"].item() == pytest.approx(0.1 * math.sqrt(420_001))


def test_every_way_through_a_device_makes_the_same_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other devices do with masks and scales, and in one piece, yields what a CPU does without and in pieces."""
    gradient = heavy_tailed(3, 150_000) * torch.tensor([[1.0], [1e3], [1e-3]]) + 1e-4
    momentum = heavy_tailed(3, 150_001)[:, 1:]
    epsilon = momentum.abs().quantile(0.9, dim=-1)
    base = momentum.clamp(-epsilon[:, None], epsilon[:, None])

    def everything() -> dict[str, Any]:
        return (
            gradient_statistics(gradient)
            | momentum_statistics(gradient, momentum)
            | outlier_statistics(momentum, base, epsilon)
            | {"norms": statistics.norms(gradient)}
            | dict(zip(("counts", "nan", "inf"), distribution.histogram_counts(gradient), strict=True))
            | dict(zip(("quantiles", "count"), distribution.quantiles(gradient), strict=True))
        )

    here = everything()
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for name, value in everything().items():
        np.testing.assert_allclose(value, here[name], rtol=5e-5, atol=1e-9, err_msg=name)


def test_outlier_statistics_equal_their_definition() -> None:
    """Fraction, energy and angle follow from M, ε and B."""
    momentum = heavy_tailed(2)
    epsilon = torch.tensor([1e-4, 3e-4])
    base = momentum.clamp(-epsilon[:, None], epsilon[:, None])
    columns = outlier_statistics(momentum, base, epsilon)
    for row in range(2):
        m, b = momentum[row].double().numpy(), base[row].double().numpy()
        assert columns["outlier_fraction"][row].item() == pytest.approx((np.abs(m) > epsilon[row].item()).mean())
        assert columns["outlier_energy"][row].item() == pytest.approx(((m - b) ** 2).sum() / (m**2).sum(), rel=1e-4)
        cosine = m @ b / np.linalg.norm(m) / np.linalg.norm(b)
        assert columns["base_alignment"][row].item() == pytest.approx(cosine, rel=1e-5)


def test_alignment_is_the_cosine_at_every_scale() -> None:
    """Gradients of 1e30 against momenta of 1e-30 have the angle of their directions."""
    gradient, momentum = heavy_tailed(2, 300).unbind()
    columns = momentum_statistics(gradient[None] * 1e33, momentum[None] * 1e-27)
    g, m = gradient.double().numpy(), momentum.double().numpy()
    assert columns["alignment"].item() == pytest.approx(g @ m / np.linalg.norm(g) / np.linalg.norm(m), rel=1e-4)


@pytest.mark.parametrize("shape", [(7, 9), (300, 500), (1, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_of_tensors_apart_are_those_of_the_stack(
    shape: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    """Of any size, type and strides, against float64."""
    generator = torch.Generator().manual_seed(1)
    tensors = [(torch.randn(shape, generator=generator) * scale).to(dtype) for _ in range(3)]
    tensors[1] = tensors[1].mT.contiguous().mT
    expected = [tensor.double().norm().item() for tensor in tensors]
    assert statistics.norms_of(tensors).tolist() == pytest.approx(
        expected, rel=1e-5 if dtype == torch.bfloat16 else 1e-6
    )


@pytest.mark.parametrize(("value", "dtype"), [(0.0, torch.float32), (-3.0, torch.bfloat16), (3.0, torch.float64)])
def test_the_norm_of_a_single_number_is_its_magnitude(value: float, dtype: torch.dtype) -> None:
    """A temperature has no dimension: neither its type nor a zero is a reason to fail."""
    assert statistics.norms_of([torch.tensor(value, dtype=dtype)] * 2).tolist() == [abs(value)] * 2


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
def test_orthogonality_error_equals_its_definition(shape: tuple[int, int]) -> None:
    """On the short side, against float64."""
    update = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)) / max(shape) ** 0.5
    for row, error in enumerate(statistics.orthogonality_error(update)):
        x = update[row].double().numpy()
        x = x if x.shape[0] <= x.shape[1] else x.T
        expected = np.linalg.norm(x @ x.T - np.eye(len(x))) / math.sqrt(len(x))
        assert error.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24), (128, 512)])
@pytest.mark.parametrize("size", [0.3, 1e-3])
def test_orthogonality_error_of_bfloat16_is_that_of_its_entries(shape: tuple[int, int], size: float) -> None:
    """As far as rounding the residual, not X Xᵀ, goes; dead rows are left out, and rows of 0.02 are not dead."""
    generator = torch.Generator().manual_seed(4)
    m, n = sorted(shape)
    orthonormal = torch.linalg.qr(torch.randn(2, n, m, generator=generator)).Q.mT
    update = (orthonormal * (1 + size * torch.randn(2, m, 1, generator=generator))).bfloat16()
    update[1, 3] *= 0.02
    update[1, 5] = 0
    for row, error in enumerate(statistics.orthogonality_error(update if shape == (m, n) else update.mT)):
        x = update[row].double().numpy()
        x = x[np.abs(x).sum(1) > 0]
        expected = np.linalg.norm(x @ x.T - np.eye(len(x))) / math.sqrt(len(x))
        assert error.item() == pytest.approx(expected, rel=1e-3)


def test_orthogonality_error_leaves_out_dead_rows() -> None:
    """Rows that are exactly zero have no direction: an orthogonal matrix with dead rows has no error."""
    update = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q[:8].clone()
    padded = torch.zeros(1, 12, 20)
    padded[0, ::2] = update[:6]
    assert statistics.orthogonality_error(padded).item() < 1e-5


@given(st.integers(1, 70))
def test_packed_bits_are_those_of_numpy(entries: int) -> None:
    """Any number of entries, the first in the highest bit."""
    mask = np.random.default_rng(entries).random((2, entries)) < 0.4
    np.testing.assert_array_equal(statistics.packed_bits(torch.from_numpy(mask)).numpy(), np.packbits(mask, axis=-1))


def test_largest_entries_are_the_largest() -> None:
    """Indices and signed values of the entries of greatest magnitude."""
    momentum = heavy_tailed(2, 400)
    indices, values = statistics.largest_entries(momentum)
    for row in range(2):
        expected = np.argsort(-np.abs(momentum[row].numpy()))[: statistics.LARGEST_COUNT]
        np.testing.assert_array_equal(indices[row].numpy(), expected)
        np.testing.assert_array_equal(values[row].numpy(), momentum[row].numpy()[expected])


def test_bfloat16_is_measured_as_its_values() -> None:
    """Half-precision gradients are widened, never rounded again."""
    gradient = heavy_tailed(1).bfloat16()
    for name, value in gradient_statistics(gradient.float()).items():
        np.testing.assert_allclose(gradient_statistics(gradient)[name], value, rtol=1e-6)
    for half, full in zip(
        distribution.histogram_counts(gradient), distribution.histogram_counts(gradient.float()), strict=True
    ):
        torch.testing.assert_close(half, full)
