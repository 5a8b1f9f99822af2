from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from root_dash.coefficients.tables import MUON, PAPER, evaluate, normalize_spectrum, resolve

SIGMA = np.concatenate([np.geomspace(1e-9, 1e-3, 2_001), np.linspace(1e-3, 1, 40_001)])


@pytest.mark.parametrize("steps", range(1, 21))
def test_robust_never_overshoots(steps: int) -> None:
    """No singular value up to 1 ends above 1.05 or at zero, whatever the number of steps."""
    ends = evaluate(resolve("robust", steps), SIGMA)
    assert np.max(ends) <= 1.05
    assert np.min(ends) > 0


@pytest.mark.parametrize("steps", range(1, 21))
def test_robust_tolerates_rounding(steps: int) -> None:
    """No singular value up to 1.01 overshoots with errors of 1.2 % after each step, random or always upward."""
    rng = np.random.default_rng(steps)
    pushes = [rng.uniform(-0.012, 0.012, (steps, len(SIGMA))) for _ in range(8)] + [np.full((steps, 1), 0.012)]
    for push in pushes:
        sigma = SIGMA * 1.01
        for step, triple in enumerate(resolve("robust", steps)):
            sigma = evaluate([triple], sigma * (1 + push[step] if step else 1))
        assert np.max(np.abs(sigma)) <= 1.05


@pytest.mark.parametrize("steps", range(1, 21))
def test_fine_arithmetic_needs_less_tolerance(steps: int) -> None:
    """The set for fine arithmetic stays below 1.055 with errors of 0.4 %, and ends closer to 1 than the other set."""
    rng = np.random.default_rng(steps)
    triples = resolve("robust", steps, fine=True)
    for push in [rng.uniform(-0.004, 0.004, (steps, len(SIGMA))) for _ in range(8)] + [np.full((steps, 1), 0.004)]:
        sigma = SIGMA * 1.01
        for step, triple in enumerate(triples):
            sigma = evaluate([triple], sigma * (1 + push[step] if step else 1))
        assert np.max(np.abs(sigma)) <= 1.055
    assert np.min(evaluate(triples, SIGMA)) > 0
    spread = np.geomspace(1e-3, 1, 512) / 1.003
    fine, coarse = (np.mean((evaluate(resolve("robust", steps, fine=f), spread) - 1) ** 2) for f in (True, False))
    assert fine < coarse if 5 <= steps < 8 else fine == pytest.approx(coarse, abs=1e-6)


@pytest.mark.parametrize("steps", range(1, 5))
def test_robust_has_a_set_for_few_steps(steps: int) -> None:
    """Fewer than five steps have a set of their own: a longer set, cut short, leaves a larger error or overshoots."""
    sigma = SIGMA[SIGMA > 0.05]
    errors = [
        np.sqrt(np.mean((evaluate(triples, sigma) - 1) ** 2))
        for triples in (resolve("robust", steps), resolve("robust", steps + 1)[:steps])
    ]
    assert errors[0] < errors[1]


def test_more_steps_are_more_accurate() -> None:
    """Every further step brings singular values over three orders of magnitude closer to 1, until all are there."""
    sigma = np.geomspace(1e-3, 1, 512) / 1.003
    errors = [np.sqrt(np.mean((evaluate(resolve("robust", steps), sigma) - 1) ** 2)) for steps in range(1, 9)]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-3


def test_the_fitted_sets_start_from_safe_ones() -> None:
    """`"adaptive"` starts as the universal set and `"adanewton"` as Muon's triple."""
    for steps in (1, 4, 5, 7):
        for fine in (False, True):
            assert resolve("adaptive", steps, fine=fine) == resolve("robust", steps, fine=fine)
        assert resolve("adanewton", steps) == resolve("muon", steps)


@pytest.mark.parametrize("steps", [5, 8, 12])
def test_polar_express_has_its_safety_in_it(steps: int) -> None:
    """A step maps σ as the published step maps σ / 1.02, and the last step is repeated unchanged."""
    published = (8.28721201814563, -23.595886519098837, 17.300387312530933)
    triples = resolve("polar_express", steps)
    assert len(triples) == steps
    np.testing.assert_allclose(evaluate(triples[:1], SIGMA), evaluate([published], SIGMA / 1.02), rtol=1e-12)
    assert set(triples[7:]) <= {(1.875, -1.25, 0.375)}
    assert np.max(np.abs(evaluate(triples, SIGMA * 1.01))) <= 1.13


@pytest.mark.parametrize("steps", range(1, 21))
def test_muon_is_bounded(steps: int) -> None:
    """Muon's set keeps (0, 1] below 1.21 for any number of steps."""
    assert np.max(np.abs(evaluate(resolve("muon", steps), SIGMA))) <= 1.21


@pytest.mark.parametrize(("shape", "bound"), list(zip(PAPER, [3.4, 1.25, 1.13, 1.22], strict=True)))
def test_paper_sets_are_bounded_at_five_steps(shape: tuple[int, int], bound: float) -> None:
    """The published sets reach the values that were measured: 3.3 for the square set."""
    assert bound / 1.1 <= np.max(np.abs(evaluate(resolve("paper", 5, shape), SIGMA))) <= bound


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        ((64, 64), (2048, 2048)),
        ((64, 80), (2048, 3072)),
        ((512, 256), (2048, 3072)),
        ((128, 512), (2048, 8192)),
        ((4096, 128), (2048, 16384)),
        ((0, 4), (2048, 2048)),
    ],
)
def test_paper_takes_the_nearest_aspect_ratio(shape: tuple[int, int], nearest: tuple[int, int]) -> None:
    """A shape the authors did not publish borrows the set of the nearest aspect ratio, either way round."""
    assert resolve("paper", 5, shape) == (PAPER[nearest],) * 5


def test_one_triple_is_repeated() -> None:
    """A single (a, b, c), as tuple or list, serves every step."""
    assert resolve(MUON, 3) == resolve(list(MUON), 3) == (MUON,) * 3


def test_a_list_is_taken_per_step() -> None:
    """A list of triples is used as it is, lists from JSON included."""
    assert resolve([[1, 2, 3], [4, 5, 6]], 2) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("fast", 5),
            "ns_coefficients must be one of 'adaptive', 'robust', 'adanewton', 'paper', 'muon', 'polar_express' or "
            "numbers, got 'fast'",
        ),
        (("paper", 6, (4, 4)), "ns_steps must be 5 with ns_coefficients='paper', got 6"),
        (("paper", 5), "shape must be given"),
        (("muon", 0), "ns_steps must be a whole number of at least 1, got 0"),
        (([MUON] * 4, 5), "one (a, b, c) per step, got 4 for ns_steps=5"),
        (((1.0, 2.0), 5), "triples of numbers (a, b, c), got (1.0, 2.0)"),
        (((1.0, 2.0, float("nan")), 5), "ns_coefficients must be finite"),
        (([], 5), "ns_coefficients must be a name"),
    ],
)
def test_bad_choices_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """The error names the argument, the rule and the value."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        resolve(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("muon", 2.5), "ns_steps must be a whole number of at least 1, got 2.5"),
        (("muon", True), "ns_steps must be a whole number of at least 1, got True"),
        ((("a", "b", "c"), 3), "triples of numbers"),
        (([MUON, 1.0], 2), "triples of numbers (a, b, c), got 1.0"),
        ((None, 5), "ns_coefficients must be a name"),
    ],
)
def test_choices_of_a_wrong_type_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """A wrong type is a TypeError that names the argument, the rule and the value."""
    with pytest.raises(TypeError) as error:
        resolve(*arguments)
    assert message in str(error.value)


def test_evaluate_takes_numbers_and_arrays() -> None:
    """A float gives a float, an array an array of the same values."""
    triples = resolve("robust")
    values = [evaluate(triples, float(s)) for s in (0.0, 0.3, 1.0)]
    assert all(isinstance(value, float) for value in values)
    np.testing.assert_allclose(evaluate(triples, np.array([0.0, 0.3, 1.0])), values)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
def test_normalized_spectrum(normalization: str, scale: float) -> None:
    """Lists and arrays of any scale are divided by their norm, which never falls short of the largest."""
    sigma = np.array([4.0, 2.0, 1.0, 0.0])
    norm = 1.003 * np.sum(sigma**8) ** 0.125 if normalization == "schatten8" else np.sqrt(21)
    result = normalize_spectrum(sigma * scale, normalization)
    np.testing.assert_allclose(result, sigma / norm, rtol=1e-12)
    as_list = normalize_spectrum(list(sigma * scale), normalization)
    assert isinstance(as_list, list)
    np.testing.assert_allclose(as_list, result, rtol=1e-12)


@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
def test_a_spectrum_of_zeros_stays(normalization: str) -> None:
    """A spectrum of zeros stays as it is, and so does an empty spectrum."""
    assert normalize_spectrum([0.0, 0.0], normalization) == [0.0, 0.0]
    np.testing.assert_array_equal(normalize_spectrum(np.zeros(3, np.float32), normalization), np.zeros(3))
    assert normalize_spectrum([], normalization) == []
    assert len(normalize_spectrum(np.empty(0), normalization)) == 0


def test_an_unknown_normalization_is_refused() -> None:
    """The error lists the normalizations that exist."""
    with pytest.raises(ValueError, match="normalization must be one of 'schatten8', 'frobenius', got 'spectral'"):
        normalize_spectrum([1.0], "spectral")


def test_importing_it_imports_no_torch() -> None:
    """The dashboard's host, which has no torch, can evaluate coefficient sets."""
    code = "import sys, root_dash.coefficients.tables; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
