from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from root_dash.coefficients.fit import (
    Fit,
    fit,
    infimum,
    polar_error,
    random_spectra,
    supremum,
)
from root_dash.coefficients.tables import MUON, Coefficients, Normalization, evaluate, normalize_spectrum, resolve
from tests.optim import reference
from tests.optim.reference import Array

GRID = np.concatenate([np.geomspace(1e-7, 1e-3, 2_001), np.linspace(1e-3, 1.01, 60_001)])


def gaussian(rows: int, cols: int, seed: int) -> Array:
    """Return the singular values of a Gaussian matrix."""
    matrix = np.random.default_rng(seed).standard_normal((rows, cols))
    return np.asarray(np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T))[::-1])


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(random_spectra((64, 96), 3, np.random.default_rng(0)))


@pytest.mark.parametrize("cols", [768, 2048, 4096])
def test_a_set_fitted_to_a_shape_is_ten_times_as_accurate(cols: int) -> None:
    """A set that is fitted to random spectra of a rectangular shape leaves an error of at most 0.01 on a new matrix."""
    found = fit(random_spectra((512, cols), 2, np.random.default_rng(cols)))
    fresh = gaussian(512, cols, seed=1)
    assert polar_error(found.coefficients, fresh) <= 0.01
    assert polar_error(resolve("robust", 5), fresh) > 0.02


def test_a_set_fitted_to_square_matrices_beats_the_universal_one() -> None:
    """The fitted set is better on new square matrices too, although their smallest singular values are out of reach."""
    found = fit(random_spectra((256, 256), 4, np.random.default_rng(0)))
    errors = [
        np.mean([polar_error(triples, gaussian(256, 256, seed)) for seed in range(1, 6)])
        for triples in (found.coefficients, resolve("robust", 5))
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(("cols", "bound"), [(2048, 0.19), (3072, 0.05), (8192, 0.015), (16384, 0.015)])
def test_the_papers_form_refitted(cols: int, bound: float) -> None:
    """One triple for five steps has a smaller error than the authors' triple for each shape that they published."""
    found = fit(
        random_spectra((2048, cols), 2, np.random.default_rng(0)),
        shared=True,
        normalization="frobenius",
        limit=1.3,
        noise=0.004,
        horizon=5,
    )
    fresh = random_spectra((2048, cols), 1, np.random.default_rng(1))[0]
    assert len(set(found.coefficients)) == 1
    assert found.noisy_supremum <= 1.3
    assert polar_error(found.coefficients, fresh, "frobenius") <= bound
    assert polar_error(resolve("paper", 5, (2048, cols)), fresh, "frobenius") > bound


@pytest.mark.parametrize("cols", [64, 96, 512])
def test_the_papers_form_is_kept_from_diverging(cols: int) -> None:
    """A triple that is fitted for five steps stays within the limit for ten, with rounding between the steps."""
    found = fit(
        random_spectra((64, cols), 3, np.random.default_rng(0)), shared=True, normalization="frobenius", limit=1.3
    )
    for steps in range(5, 11):
        assert supremum(found.coefficients[:1] * steps, noise=0.012) <= 1.3
    assert found.error < polar_error(resolve("muon", 5), gaussian(64, cols, seed=1), "frobenius")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
def test_any_number_of_steps_keeps_the_limit(steps: int) -> None:
    """No value ends above the limit if the errors between the steps are at most `noise`, random or always upward."""
    found = fit(random_spectra((48, 80), 2, np.random.default_rng(0)), steps=steps)
    assert len(found.coefficients) == steps
    rng = np.random.default_rng(1)
    for push in [*rng.uniform(-0.012, 0.012, (4, steps, len(GRID))), np.full((steps, 1), 0.012)]:
        sigma = GRID
        for step, triple in enumerate(found.coefficients):
            sigma = evaluate([triple], sigma * (1 + push[step] if step else 1))
        assert np.max(np.abs(sigma)) <= 1.05 * (1 + 1e-9)
    assert found.noisy_supremum <= 1.05 * (1 + 1e-9)


def test_a_tighter_limit_is_kept_too(fitted: Fit) -> None:
    """A fit keeps the limit of the caller, and a tight limit costs accuracy."""
    tight = fit(random_spectra((64, 96), 3, np.random.default_rng(0)), limit=1.0)
    assert tight.noisy_supremum <= 1 + 1e-9
    assert fitted.noisy_supremum <= 1.05 * (1 + 1e-9)


def test_what_was_not_fitted_to_is_not_turned_round(fitted: Fit) -> None:
    """Large singular values that no fitted spectrum has end positive and far from zero."""
    values = evaluate(fitted.coefficients, GRID[GRID > 0.05])
    assert values.min() > 0.3


def test_a_fit_is_reproducible_bit_for_bit() -> None:
    """The same spectra give the same coefficients, exactly."""
    spectra = random_spectra((40, 64), 3, np.random.default_rng(0))
    assert fit(spectra) == fit([spectrum.copy() for spectrum in spectra])


def test_a_fit_ignores_scale_and_order() -> None:
    """A spectrum may be of any scale and in any order."""
    spectra = random_spectra((32, 48), 2, np.random.default_rng(0))
    plain = fit(spectra)
    other = fit([spectra[0] * 1e-30, spectra[1][::-1] * 1e30])
    np.testing.assert_allclose(other.coefficients, plain.coefficients, rtol=1e-3)


def test_null_directions_count_for_nothing() -> None:
    """Zeros, and values that float32 rounds to zero, change neither the fit nor the errors."""
    spectrum = random_spectra((32, 48), 1, np.random.default_rng(0))[0]
    padded = np.concatenate([spectrum, np.zeros(8), np.full(4, 1e-9)])
    assert fit([padded]) == fit([spectrum])
    assert polar_error(resolve("robust", 5), padded) == polar_error(resolve("robust", 5), spectrum)


def test_weights_decide_between_spectra() -> None:
    """The heavier of two unlike spectra is fitted better."""
    narrow, wide = np.geomspace(1, 0.3, 40), np.geomspace(1, 1e-4, 40)
    errors = {
        weights: [polar_error(fit([narrow, wide], weights=weights).coefficients, s) for s in (narrow, wide)]
        for weights in ((1.0, 1e-3), (1e-3, 1.0))
    }
    assert errors[1.0, 1e-3][0] < errors[1e-3, 1.0][0]
    assert errors[1.0, 1e-3][1] > errors[1e-3, 1.0][1]
    assert fit([narrow, wide], weights=(1.0, 0.0)) == fit([narrow])


def test_a_fit_can_go_on_from_a_set(fitted: Fit) -> None:
    """A fit that starts from a set ends no worse than this set."""
    spectra = random_spectra((64, 96), 3, np.random.default_rng(0))
    again = fit(spectra, start=fitted.coefficients)
    assert again.error <= fitted.error * 1.01 + 1e-6


@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
def test_the_error_is_that_of_the_matrix(normalization: Normalization) -> None:
    """The polar error equals the norm that is computed from the matrix itself."""
    matrix = np.random.default_rng(0).standard_normal((12, 20))
    triples = resolve("muon", 5)
    update = reference.newton_schulz(matrix, triples, normalization)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert polar_error(triples, sigma, normalization) == pytest.approx(reference.polar_error(matrix, update))


def test_the_error_of_nothing_is_unknown() -> None:
    """The error of a zero matrix, which has no polar factor, is NaN."""
    assert np.isnan(polar_error(resolve("robust", 5), np.zeros(4)))


@pytest.mark.parametrize("seed", range(12))
def test_the_supremum_and_the_infimum_are_exact(seed: int) -> None:
    """Supremum and infimum agree with a fine grid, for sets of any sign and degree."""
    rng = np.random.default_rng(seed)
    triples: list[Coefficients] = [
        (float(a), float(b), float(c) * (seed % 3 > 0))
        for a, b, c in rng.normal((2.5, -3, 1.2), 0.8, (seed % 4 + 1, 3))
    ]
    top = float(rng.uniform(0.5, 1.2))
    values = evaluate(triples, np.linspace(0.05, top, 400_001))
    whole = evaluate(triples, np.linspace(0, top, 400_001))
    assert supremum(triples, top) == pytest.approx(np.abs(whole).max(), rel=1e-4)
    assert infimum(triples, 0.05, top) == pytest.approx(values.min(), rel=1e-4, abs=1e-4)


def test_noise_is_what_drives_the_published_square_set_apart() -> None:
    """The paper's square set reaches 3.3 in five exact steps, 679 in six, and 2,800 in five with rounding of 0.4 %."""
    square = resolve("paper", 5, (2048, 2048))
    assert supremum(square) == pytest.approx(3.31, abs=0.01)
    assert supremum(square + square[:1]) == pytest.approx(679, rel=0.01)
    assert supremum(square, noise=0.004) > 2_000
    assert supremum(square * 4) == np.inf
    assert supremum((MUON,) * 20, noise=0.012) < 1.21


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (24, 24), (24, 40), (40, 24)])
def test_random_spectra_are_those_of_gaussian_matrices(shape: tuple[int, int]) -> None:
    """Mean and spread of each singular value agree with those of real matrices; order and count are right."""
    drawn = np.array(random_spectra(shape, 400, np.random.default_rng(0)))
    formed = np.array(
        [np.linalg.svd(np.random.default_rng(seed).standard_normal(shape), compute_uv=False) for seed in range(400)]
    )
    assert drawn.shape == (400, min(shape))
    assert (np.diff(drawn, axis=1) <= 0).all()
    spread = formed.std(0)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - formed.mean(0)), 5 * spread / np.sqrt(200))
    np.testing.assert_array_less(np.abs(np.log(drawn.std(0) / spread)), 0.3)


@pytest.mark.parametrize("cols", [768, 800, 1536])
def test_random_spectra_of_large_matrices_follow_the_law(cols: int) -> None:
    """The values of large matrices are within 1 % of σ₁ of those of a real matrix, also the smallest values."""
    drawn = random_spectra((768, cols), 1, np.random.default_rng(0))[0]
    formed = gaussian(768, cols, seed=0)
    np.testing.assert_allclose(drawn, formed, atol=0.01 * formed[0])
    if cols == 768:
        assert 0.2 < drawn[-8:].mean() / formed[-8:].mean() < 5


def test_random_spectra_are_seeded() -> None:
    """The same generator state gives the same spectra."""
    first, second = (random_spectra((20, 30), 2, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spectra": []}, "spectra must hold at least one that is not all zero, got 0"),
        ({"spectra": [np.zeros(3)]}, "spectra must hold at least one that is not all zero, got 1"),
        ({"spectra": [[1.0, -0.5]]}, "a spectrum must be finite and not negative"),
        ({"spectra": [[1.0, np.nan]]}, "a spectrum must be finite and not negative"),
        ({"spectra": [np.ones((2, 2))]}, "a spectrum must be one-dimensional, got shape (2, 2)"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"limit": 0.9}, "limit must be at least 1, got 0.9"),
        ({"noise": -0.1}, "noise must lie in [0, 1), got -0.1"),
        ({"anchor": -1.0}, "anchor must not be negative, got -1.0"),
        ({"horizon": 4, "shared": True}, "horizon must be 5 or more for steps=5, got 4"),
        ({"horizon": 6}, "horizon must be 5 for steps=5, got 6"),
        ({"weights": [1.0, 2.0]}, "weights must be 1 numbers, none negative, got [1.0, 2.0]"),
        ({"weights": [-1.0]}, "weights must be 1 numbers, none negative, got [-1.0]"),
        ({"start": [MUON] * 2}, "start must hold one finite (a, b, c) per step"),
        ({"normalization": "spectral"}, "normalization must be one of 'schatten8', 'frobenius', got 'spectral'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument, the rule and the value."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        fit(**({"spectra": [np.array([1.0, 0.5])]} | arguments))
    assert message in str(error.value)
    with pytest.raises(TypeError, match="steps must be a whole number of at least 1, got True"):
        fit([np.array([1.0, 0.5])], steps=True)
    with pytest.raises(ValueError, match="shape and count must be at least 1"):
        random_spectra((0, 3), 1, np.random.default_rng(0))


def test_normalized_values_stay_below_the_top() -> None:
    """The interval of the supremum includes the values at which ROOT starts, with room for rounding."""
    for name in ("schatten8", "frobenius"):
        assert np.max(normalize_spectrum(np.array([1.0, 0.0]), name)) < 1.01
