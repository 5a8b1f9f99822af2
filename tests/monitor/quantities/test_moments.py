"""Moments of the gradient against NumPy in float64, over ordinary, extreme and broken tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from root_dash.monitor.quantities.histogram import histogram_counts
from root_dash.monitor.quantities.moments import MOMENTS
from root_dash.records import Float64Array
from tests.monitor.quantities.measured import heavy_tailed, statistics_of, vectors


def expected_moments(x: Float64Array) -> dict[str, float]:
    """Return the statistics of a gradient's finite entries by their definitions."""
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
    columns = statistics_of(MOMENTS, vectors(gradient))
    for row in range(len(gradient)):
        for name, expected in expected_moments(gradient[row].double().numpy()).items():
            tolerance = 1e-6 * scale if name == "grad_mean" else 0.0
            assert columns[name][row].item() == pytest.approx(expected, rel=1e-4, abs=tolerance), name


def test_non_finite_entries_are_counted_and_left_out() -> None:
    """A gradient with NaN and Inf has the moments of its finite entries, and says how many were not."""
    gradient = heavy_tailed(1)
    gradient[0, :7] = torch.nan
    gradient[0, 7:10] = torch.tensor([torch.inf, -torch.inf, torch.inf])
    gradient[0, 10:15] = 0.0
    columns = {name: value.item() for name, value in statistics_of(MOMENTS, vectors(gradient)).items()}
    assert (columns["grad_nan"], columns["grad_inf"], columns["grad_zero"]) == (7, 3, 5)
    for name, expected in expected_moments(gradient[0, 10:].double().numpy()).items():
        assert columns[name] == pytest.approx(expected, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("finite", [3, 1000])
def test_few_finite_entries_among_many_have_their_own_moments(finite: int) -> None:
    """A gradient that is all but gone is described by what is left of it, not by what is missing."""
    gradient = torch.full((1, 1_000_000), torch.nan)
    gradient[0, :finite] = torch.tensor([1.0, 2.5, 3.75] * 400)[:finite]
    columns = statistics_of(MOMENTS, vectors(gradient))
    for name, expected in expected_moments(gradient[0, :finite].double().numpy()).items():
        assert columns[name].item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_double_precision_keeps_its_shape_beyond_the_range_of_single(scale: float) -> None:
    """Kurtosis has no scale, whatever the gradient's."""
    gradient = heavy_tailed(1).double()
    plain, scaled = (statistics_of(MOMENTS, vectors(g))["grad_kurtosis"] for g in (gradient, gradient * scale))
    np.testing.assert_allclose(plain, scaled, rtol=1e-4)


def test_a_zero_gradient_has_no_skew_and_no_kurtosis() -> None:
    """What is constant has no third or fourth moment to speak of: 0, not NaN."""
    columns = statistics_of(MOMENTS, vectors(torch.zeros(2, 9)))
    assert all(bool((value == (9 if name == "grad_zero" else 0)).all()) for name, value in columns.items())


def test_a_constant_gradient_has_no_deviation() -> None:
    """This holds for a constant that float32 cannot add up exactly: the error of the mean is no deviation."""
    columns = statistics_of(MOMENTS, vectors(torch.full((1, 420_001), 0.1)))
    assert [columns[f"grad_{name}"].item() for name in ("std", "skewness", "kurtosis")] == [0, 0, 0]
    assert columns["grad_norm"].item() == pytest.approx(0.1 * math.sqrt(420_001))


def test_bfloat16_is_measured_as_its_values() -> None:
    """Half-precision gradients are widened, never rounded again."""
    gradient = heavy_tailed(1).bfloat16()
    for name, value in statistics_of(MOMENTS, vectors(gradient.float())).items():
        np.testing.assert_allclose(statistics_of(MOMENTS, vectors(gradient))[name], value, rtol=1e-6)
    for half, full in zip(histogram_counts(gradient), histogram_counts(gradient.float()), strict=True):
        torch.testing.assert_close(half, full)
