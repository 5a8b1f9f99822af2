"""Row and column norms of the update against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import LayerBatch
from root_dash.monitor.quantities.spectral.rows import ROWS
from tests.monitor.quantities.measured import statistics_of


def batch(update: Tensor) -> LayerBatch:
    return LayerBatch(tuple(range(len(update))), torch.zeros_like(update), None, update=update)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_quantiles_of_the_norms_are_those_of_float64(shape: tuple[int, int], scale: float, dtype: torch.dtype) -> None:
    """At any scale and in any type, of rows and of columns, transposed in memory or not."""
    generator = torch.Generator().manual_seed(1)
    update = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    for stored in (update, update.mT.contiguous().mT):
        found = statistics_of(ROWS, batch(stored))
        for side, axis in (("row", 2), ("col", 1)):
            norms = np.linalg.norm(update.double().numpy(), axis=axis)
            for end, share in {"min": 0, "low": 0.05, "median": 0.5, "high": 0.95, "max": 1}.items():
                expected = np.quantile(norms, share, axis=1)
                np.testing.assert_allclose(found[f"update_{side}_{end}"], expected, rtol=1e-6)
            np.testing.assert_array_equal(found[f"update_{side}_weakest"], norms.argmin(1))
            np.testing.assert_array_equal(found[f"update_{side}_strongest"], norms.argmax(1))


def test_a_starved_row_has_a_number() -> None:
    """A row that is not moved, among rows that are: it is the weakest, and the least norm is 0."""
    update = torch.ones(2, 6, 4)
    update[0, 4] = 0.0
    found = statistics_of(ROWS, batch(update))
    assert found["update_row_weakest"].tolist() == [4, 0]
    assert found["update_row_min"].tolist() == [0, 2]
    assert found["update_row_median"].tolist() == [2, 2]


def test_what_is_not_finite_has_no_norms() -> None:
    """NaN, and no number of a row: the other layers have theirs."""
    update = torch.ones(3, 4, 4)
    update[0, 1, 1], update[1, 2, 2] = torch.nan, torch.inf
    for name, values in statistics_of(ROWS, batch(update)).items():
        assert np.isnan(values).tolist() == [True, True, False], name


def test_a_vector_has_no_rows() -> None:
    """A bias is one row: its norm is the update's."""
    assert ROWS.on_device(batch(torch.ones(2, 1, 9))) == {}
