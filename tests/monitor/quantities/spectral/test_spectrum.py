"""Spectra and polar error from Gram matrices and by estimates, against an SVD of the matrices themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.measure import measure
from root_dash.monitor.quantities.quantity import LayerBatch, MeasureLimits
from root_dash.monitor.quantities.spectral import lanczos
from root_dash.monitor.quantities.spectral.spectrum import (
    Grams,
    base_and_polar_error,
    estimated_statistics,
    gram,
    singular_values,
    spectral_statistics,
)
from root_dash.records import Float64Array


def matrices(shape: tuple[int, int], spread: float = 1e-3) -> Float64Array:
    """Two matrices of singular values log-uniform from 1 down to `spread`."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(2):
        u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        made.append((u * np.geomspace(1, spread, min(shape))) @ v)
    return np.stack(made).astype(np.float32).astype(np.float64)


def grams(base: Float64Array, update: Float64Array) -> Grams:
    """Return the Gram matrices as the device sends them."""
    b, x = torch.from_numpy(base).float(), torch.from_numpy(update).float()
    pairs = [(b, b), (b, b), (x, x), (b, x)]
    return Grams(*(gram(left, right).numpy() for left, right in pairs))


@pytest.mark.parametrize("shape", [(30, 30), (20, 50), (50, 20)])
def test_singular_values_equal_the_svd(shape: tuple[int, int]) -> None:
    """Descending, for square, wide and tall matrices."""
    base = matrices(shape)
    np.testing.assert_allclose(
        singular_values(grams(base, base).momentum), np.linalg.svd(base, compute_uv=False), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(30, 30), (20, 50), (50, 20)])
def test_polar_error_is_the_distance_to_the_polar_factor(shape: tuple[int, int]) -> None:
    """This holds even if the update is no function of the base's spectrum, because of rounding."""
    base = matrices(shape)
    u, _, v = np.linalg.svd(base, full_matrices=False)
    polar = u @ v
    update = (1.04 * polar + np.random.default_rng(2).standard_normal(base.shape) * 0.01).astype(np.float32)
    expected = np.linalg.norm(update - polar, axis=(1, 2)) / np.linalg.norm(polar, axis=(1, 2))
    values, errors = base_and_polar_error(grams(base, update), *shape)
    np.testing.assert_allclose(errors, expected, rtol=1e-4)
    np.testing.assert_allclose(values, np.linalg.svd(base, compute_uv=False), rtol=1e-5)


def test_null_directions_do_not_count() -> None:
    """A matrix of rank 5 has a polar factor of rank 5, and the condition number of its five singular values."""
    base = matrices((30, 40))
    u, s, v = np.linalg.svd(base, full_matrices=False)
    s[:, 5:] = 0
    low = ((u * s[:, None]) @ v).astype(np.float32)
    low[:, 20:] = 0  # and dead rows
    u, s, v = np.linalg.svd(low.astype(np.float64), full_matrices=False)
    polar = u[..., :5] @ v[:, :5]
    np.testing.assert_allclose(base_and_polar_error(grams(low.astype(np.float64), polar), 30, 40)[1], 0, atol=1e-5)
    values = spectral_statistics(singular_values(grams(low.astype(np.float64), polar).momentum), 30, 40)
    np.testing.assert_allclose(values["condition"], s[:, 0] / s[:, 4], rtol=1e-4)


def test_spectral_statistics_equal_their_definition() -> None:
    """Stable and effective rank of a known spectrum."""
    singular = np.geomspace(2.0, 0.02, 40)[None]
    values = spectral_statistics(singular, 40, 60)
    share = singular**2 / (singular**2).sum()
    assert values["stable_rank"][0] == pytest.approx((singular**2).sum() / 4)
    assert values["effective_rank"][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert values["condition"][0] == pytest.approx(100)
    assert (values["sigma_max"][0], values["sigma_min"][0]) == (pytest.approx(2), pytest.approx(0.02))


def test_zero_and_non_finite_matrices_yield_nan_and_spare_the_others() -> None:
    """A layer that is broken must not take its neighbours of the same shape with it."""
    base = np.concatenate([matrices((8, 12)), np.zeros((1, 8, 12)), np.full((1, 8, 12), np.nan)])
    _, errors = base_and_polar_error(grams(base, base), 8, 12)
    assert np.isfinite(errors[:2]).all()
    assert np.isnan(errors[2:]).all()
    values = spectral_statistics(singular_values(grams(base, base).momentum), 8, 12)
    assert all(np.isfinite(v[:2]).all() and np.isnan(v[2:]).all() for v in values.values())


def layer(sides: tuple[int, int], smallest: float = 0.01, seed: int = 0) -> tuple[torch.Tensor, Float64Array]:
    """A matrix (1, rows, cols) in float32 with singular values from 3 down, evenly in the logarithm; and these."""
    short, long = sorted(sides)
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, short, generator=generator)).Q for n in (short, long))
    singular = torch.logspace(np.log10(3), np.log10(smallest), short)
    wide = (left * singular) @ right.mT
    return (wide if sides[0] <= sides[1] else wide.mT)[None], singular.double().numpy()


@pytest.mark.parametrize("sides", [(150, 220), (220, 150)])
def test_estimated_spectra_have_the_largest_value_and_the_distribution(sides: tuple[int, int]) -> None:
    """The largest to 1e-4; the others displaced by at most a twentieth of it; the ranks within a tenth."""
    matrix, singular = layer(sides)
    estimated = lanczos.singular_values(lanczos.bidiagonals(matrix).numpy(), 150)[0]
    assert estimated.shape == (150,)
    assert (np.diff(estimated) <= 0).all()
    assert estimated[0] == pytest.approx(singular[0], rel=1e-4)
    assert np.abs(estimated - singular).max() < 0.05 * singular[0]
    norm = np.array([np.sqrt((singular**2).sum())])
    values = estimated_statistics(estimated[None], estimated[None] / singular[0], norm, *sides)
    expected = spectral_statistics(singular[None], *sides)
    assert values["stable_rank"][0] == pytest.approx(expected["stable_rank"][0], rel=1e-3)
    assert values["effective_rank"][0] == pytest.approx(expected["effective_rank"][0], rel=0.1)
    assert values["polar_error"][0] == pytest.approx(np.sqrt(((singular / singular[0] - 1) ** 2).mean()), rel=0.05)
    assert np.isnan(values["sigma_min"][0])


def test_estimates_of_few_values_are_exact() -> None:
    """If the steps are as many as the rows, the nodes of the quadrature are the singular values."""
    matrix, singular = layer((20, 50), 0.5)
    numbers = lanczos.bidiagonals(matrix.double())
    for start in range(lanczos.STARTS):
        lower = torch.diag(numbers[0, start, 0]) + torch.diag(numbers[0, start, 1, :-1], -1)
        np.testing.assert_allclose(torch.linalg.svdvals(lower).numpy(), singular, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize(
    "singular",
    [[3.0], [3.0, 2.0, 0.5], [3.0] * 150, [3.0 - 2e-5 * i for i in range(150)]],
    ids=["rank 1", "rank 3", "alike", "close"],
)
def test_estimates_end_where_there_is_nothing_more_to_find(singular: list[float], scale: float) -> None:
    """A matrix of low rank, or almost orthogonal, gets its own values, and no others made of rounding."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, len(singular), generator=generator)).Q for n in (150, 220))
    matrix = (left * torch.tensor(singular)) @ right.mT * scale
    estimated = lanczos.singular_values(lanczos.bidiagonals(matrix[None]).numpy(), 150)[0] / scale
    np.testing.assert_allclose(estimated[: len(singular)], singular, rtol=2e-3)
    assert estimated[len(singular) :].sum() < 1e-2


def test_estimates_of_zero_and_non_finite_matrices_spare_the_others() -> None:
    """Zero has the spectrum zero, NaN none, and a sound layer of their batch its own."""
    sound, singular = layer((40, 60))
    batch = torch.cat([sound, torch.zeros_like(sound), torch.full_like(sound, torch.nan)])
    estimated = lanczos.singular_values(lanczos.bidiagonals(batch).numpy(), 40)
    assert estimated[0, 0] == pytest.approx(singular[0], rel=1e-4)
    assert (estimated[1] == 0).all()
    assert np.isnan(estimated[2]).all()


def test_layers_above_the_limit_are_recorded_as_estimated() -> None:
    """From the measurement to the frame: the record says so, and its values are near the exact ones."""
    momentum, singular = layer((60, 90))
    update = layer((60, 90), 0.9, seed=1)[0]
    one = torch.ones(1)
    batch = LayerBatch((7,), momentum, one, momentum, one, momentum.clamp(-1, 1), update, 0.1, orthogonalized=True)
    frames = []
    for limit in (59, 60):
        measured = measure(batch, {"spectra"}, limits=MeasureLimits(exact_side=limit)).tensors
        arrays = {
            quantity: {name: tensor.numpy() for name, tensor in tensors.items()}
            for quantity, tensors in measured.items()
        }
        assembler = Assembler()
        frames.append(
            assembler.frame([LayerGroup((7,), (60, 90), arrays)], seq=0, step=1, time=0.0, scalars={}, lost=0, cost=0.0)
        )
    (estimated, rough), (exact, fine) = (frame.spectra[7] for frame in frames)
    assert (estimated.estimated, exact.estimated) == (True, False)
    np.testing.assert_allclose(exact.momentum, singular, rtol=1e-4)
    for name in ("momentum", "base", "update"):
        near, at = getattr(estimated, name), getattr(exact, name)
        assert np.abs(near - at).max() < 0.1 * at[0], name
    assert rough["sigma_max"] == pytest.approx(fine["sigma_max"], rel=1e-4)
    assert rough["stable_rank"] == pytest.approx(fine["stable_rank"], rel=1e-4)
    assert 0 < rough["polar_error"] <= fine["polar_error"]
