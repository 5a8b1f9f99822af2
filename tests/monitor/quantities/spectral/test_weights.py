"""The largest singular value of the weights against a float64 decomposition, whatever was recorded before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import Columns, LayerBatch
from root_dash.monitor.quantities.spectral.weights import WEIGHTS
from tests.monitor.quantities.measured import statistics_of

SETTLED, CHANGED = 2e-3, 2e-2
"""The largest errors: while weights move slowly, and at the first recording after an abrupt change."""


def measured(weights: Sequence[Tensor], memory: dict[int, Tensor]) -> Columns:
    """The statistics of the weights, from what was remembered."""
    seen = torch.zeros(len(weights), *weights[0].shape)
    batch = LayerBatch(tuple(range(len(weights))), seen, None, weight=weights, memory=memory)
    return statistics_of(WEIGHTS, batch)


def largest(weights: Sequence[Tensor]) -> np.ndarray:
    return np.array([torch.linalg.svdvals(weight.double())[0].item() for weight in weights])


def check(weights: Sequence[Tensor], memory: dict[int, Tensor], error: float) -> None:
    """Compare with float64: the estimate is not above it, and below it by the error at most."""
    found, sigma = measured(weights, memory), largest(weights)
    share = found["weight_sigma_max"] / sigma
    assert (share < 1 + 1e-5).all()
    assert (share > 1 - error).all(), share
    norms = np.array([weight.double().norm().item() for weight in weights])
    np.testing.assert_allclose(found["weight_stable_rank"], (norms / sigma) ** 2, rtol=2.1 * error)


@pytest.mark.parametrize("shape", [(48, 48), (300, 200), (128, 512), (2, 9)])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_weights_that_move_are_followed(shape: tuple[int, int], scale: float) -> None:
    """From the first recording on, also of a random matrix, whose largest values lie close together."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, *shape, generator=generator) * scale
    memory: dict[int, Tensor] = {}
    for _ in range(6):
        check(list(weights), memory, SETTLED)
        weights = weights + 0.02 * scale * torch.randn(3, *shape, generator=generator)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_new_direction_is_found_whatever_was_recorded(orthogonal: bool) -> None:
    """Also if the direction is orthogonal to the vector that was kept, and after it is gone again."""
    generator = torch.Generator().manual_seed(2)
    before = torch.randn(160, 240, generator=generator)
    left, _, right = torch.linalg.svd(before, full_matrices=False)
    u, v = (left[:, -1], right[-1]) if orthogonal else (torch.randn(160, generator=generator), right[3])
    after = before + 40 * torch.outer(u / u.norm(), v)
    memory: dict[int, Tensor] = {}
    for weight in (before, after, before):
        check([weight], memory, CHANGED)
        check([weight], memory, SETTLED)


def test_weights_recover_from_nan() -> None:
    """A weight that is not finite has no value, and leaves nothing behind in what is kept."""
    weight = torch.randn(60, 90, generator=torch.Generator().manual_seed(3))
    memory: dict[int, Tensor] = {}
    check([weight, weight], memory, SETTLED)
    broken = weight.clone()
    broken[3, 3] = torch.nan
    found = measured([broken, weight], memory)
    assert np.isnan(found["weight_sigma_max"]).tolist() == [True, False]
    check([weight, weight], memory, CHANGED)


@pytest.mark.parametrize(("weight", "stable"), [(torch.eye(20), 20.0), (torch.ones(20, 30), 1.0)])
def test_values_that_are_all_alike_and_a_rank_of_one(weight: Tensor, stable: float) -> None:
    """Steps end early, and again in the next recording."""
    memory: dict[int, Tensor] = {}
    for _ in range(2):
        assert measured([weight], memory)["weight_stable_rank"] == pytest.approx(stable, rel=1e-5)


def test_zeros_have_no_rank() -> None:
    """Their largest value is 0."""
    found = measured([torch.zeros(4, 4)], {})
    assert found["weight_sigma_max"].tolist() == [0.0]
    assert np.isnan(found["weight_stable_rank"]).all()
