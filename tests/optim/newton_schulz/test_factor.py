"""Wide matrices by way of their Cholesky factor: what a CPU with bfloat16 units does by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.coefficients.tables import ROBUST, resolve
from root_dash.optim.newton_schulz.orthogonalize import newton_schulz
from root_dash.optim.newton_schulz.plan import plan
from tests.optim.reference import Array, with_singular_values
from tests.optim.reference import newton_schulz as reference
from tests.optim.training import orthogonalize

takes_it = plan(128, 512, 5, None, "auto", torch.float32, "cpu")[0].form == "factor"
pytestmark = pytest.mark.skipif(not takes_it, reason="this CPU has no bfloat16 units: it takes Gram space instead")


def spectrum(kind: str, rng: np.random.Generator) -> Array:
    return {
        "even": 10 ** -rng.uniform(0, 3, 128),
        "steep": 10 ** -rng.uniform(0, 6, 128),
        "one large": np.concatenate([[1.0], np.full(127, 1e-2)]),
        "rank 8": np.concatenate([np.ones(8), np.zeros(120)]),
        "twins": np.repeat(10 ** -rng.uniform(0, 3, 64), 2),
    }[kind]


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", ["even", "steep", "one large", "rank 8", "twins"])
def test_it_is_the_polynomial_of_the_singular_values(kind: str, steps: int) -> None:
    """The update is that of the float64 reference within bfloat16, of tall matrices and all spectra alike."""
    rng = np.random.default_rng(steps)
    matrix = with_singular_values(rng, 128, 512, spectrum(kind, rng))
    triples = resolve("robust", steps)
    expected = reference(matrix, triples, "schatten8")
    for given, wanted in ((matrix, expected), (matrix.T, expected.T)):
        update = orthogonalize(torch.from_numpy(given).float(), triples).double().numpy()
        # Per direction: what bfloat16 rounds, 2^-9, times the slopes of the steps after it, and the ridge near 1e-3.
        assert np.linalg.norm(update - wanted) / np.sqrt(128) <= 0.05
        assert np.linalg.norm(update, 2) <= 1.06


def test_null_directions_stay_null() -> None:
    """Of a matrix of rank 8 no more than the rounding of bfloat16 ends outside the range that it has."""
    rng = np.random.default_rng(0)
    matrix = with_singular_values(rng, 128, 512, spectrum("rank 8", rng))
    update = orthogonalize(torch.from_numpy(matrix).float(), ROBUST).double().numpy()
    left = np.linalg.svd(matrix)[0][:, :8]
    assert np.linalg.norm(update - left @ (left.T @ update), 2) <= 0.05


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_matrix_without_a_factor_goes_another_way(poison: float) -> None:
    """What is not finite has none: its own update is NaN, and no bit of its neighbours' changes."""
    batch = torch.randn(3, 128, 512, generator=torch.Generator().manual_seed(0))
    expected = newton_schulz(batch, ROBUST).update
    batch[1, 5, 7] = poison
    update = newton_schulz(batch, ROBUST).update
    assert update[1].isnan().all()
    assert torch.equal(update[0], expected[0])
    assert torch.equal(update[2], expected[2])


def test_zero_gives_zero() -> None:
    """Also beside a matrix that is not."""
    batch = torch.zeros(2, 128, 512)
    batch[1] = torch.randn(128, 512, generator=torch.Generator().manual_seed(0))
    update = newton_schulz(batch, ROBUST).update
    assert not update[0].any()
    assert update[1].any()
