"""Quantiles against NumPy in float64, over ordinary, extreme and broken tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from root_dash.monitor.quantities.quantiles import quantiles
from root_dash.records import Float64Array, quantile_probabilities
from tests.monitor.quantities.measured import ENTRIES, heavy_tailed


def rounded(entries: np.ndarray) -> Float64Array:
    """Entries to the nearest bfloat16, by arithmetic: 8 significant bits, ties to even; the largest stay finite."""
    mantissa, exponent = np.frexp(entries.astype(np.float64))
    exponent = np.maximum(exponent, -125)  # below it are the subnormal numbers
    limit = float(torch.finfo(torch.bfloat16).max)
    nearest: Float64Array = np.ldexp(np.rint(np.ldexp(entries.astype(np.float64), 8 - exponent)), exponent - 8)
    return nearest.clip(-limit, limit)


@given(ENTRIES)
@settings(max_examples=200)
def test_quantiles_equal_those_of_the_finite_entries(entries: np.ndarray) -> None:
    """The quantiles are NumPy's quantiles of the finite entries, rounded to bfloat16; NaN if no entry is finite."""
    values, count = (t.numpy() for t in quantiles(torch.from_numpy(entries)))
    for row in range(len(entries)):
        finite = entries[row][np.isfinite(entries[row])]
        assert count[row] == len(finite)
        if len(finite):
            expected = np.quantile(rounded(finite), quantile_probabilities())
            np.testing.assert_allclose(values[row], expected.astype(np.float32), rtol=1e-5, atol=1e-30)
        else:
            assert np.isnan(values[row]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantiles_of_other_dtypes_leave_out_what_is_not_finite(dtype: torch.dtype) -> None:
    """The largest number of the dtype counts as finite, even if the largest bfloat16 is larger."""
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.bfloat16).max)
    entries = torch.tensor([[math.nan, -math.inf, -1.0, 0.5, largest, math.inf], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    values, count = quantiles(entries.to(dtype))
    assert count.tolist() == [3, 6]
    assert [values[0, 32].item(), values[1, 32].item()] == [0.5, 3.5]
    assert values[0, [0, -1]].tolist() == pytest.approx([-1.0, largest], rel=2**-8)


def test_quantiles_are_close_to_those_of_the_entries() -> None:
    """Rounding to eight bits moves a quantile, tails included, by less than 2^-8 of itself."""
    entries = heavy_tailed(2, 200_000)
    values, _ = quantiles(entries)
    exact = np.quantile(entries.double().numpy(), quantile_probabilities(), axis=-1).T
    np.testing.assert_allclose(values.numpy(), exact, rtol=2**-8, atol=1e-7 * 1e-4)
