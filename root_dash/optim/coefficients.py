"""The coefficient sets of the Newton-Schulz iteration, and what a set makes of a spectrum.

A step replaces X by a X + b (X Xᵀ) X + c (X Xᵀ)² X. It leaves the singular vectors alone and maps every singular value
σ to a σ + b σ³ + c σ⁵; a set is one such triple per step, composed to send (0, 1] close to 1. Standard library only:
the dashboard evaluates sets on recorded spectra, on a host without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

Coefficients: TypeAlias = tuple[float, float, float]
Name: TypeAlias = Literal["robust", "muon", "paper"]
Normalization: TypeAlias = Literal["schatten8", "frobenius"]

NAMES: tuple[Name, ...] = get_args(Name)
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

# The Schatten-8 norm bounds σ₁ from above, but rounding in low precision does not respect bounds, and `ROBUST` diverges
# from σ = 1.0146 on, `ROBUST_4` from 1.009: this factor keeps every σ below 1/1.01.
SCHATTEN8_MARGIN = 1.01

# Fitted by us to one mixture of spectra for all shapes, with ±1.2 % noise between the steps: sup over (0, 1] is 1.049.
ROBUST: tuple[Coefficients, ...] = (
    (4.95567, -14.30235, 10.33015),
    (4.55075, -9.25030, 4.77158),
    (4.22057, -6.95027, 2.96759),
    (2.99472, -3.95105, 1.50554),
    (2.73254, -3.30487, 1.54538),
)

# Fitted alike for four steps, with overshoot held below 1.05: sup over (0, 1] is 1.037. `ROBUST` cut to four reaches
# 1.066 and leaves a Gaussian at 0.33; this set leaves it at 0.02 to 0.07, and spectra over 1..1e-3 at 0.33.
ROBUST_4: tuple[Coefficients, ...] = (
    (4.78901, -13.98269, 10.21310),
    (4.04473, -8.61458, 4.77383),
    (3.49638, -6.36153, 3.38802),
    (2.65177, -3.10088, 1.42259),
)

# The quintic Newton-Schulz step, from the Taylor expansion of x (x²)^(-1/2) about 1: maps [0, 1] onto itself.
CONTRACTING: Coefficients = (15 / 8, -10 / 8, 3 / 8)

# Keller Jordan, kellerjordan.github.io/posts/muon: steep at zero, never settles at 1. The default of torch's Muon.
MUON: Coefficients = (3.4445, -4.7750, 2.0315)

# He et al., arXiv 2511.20626, from the authors' example: fitted per shape, one triple for all five steps.
PAPER: dict[tuple[int, int], Coefficients] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),  # sup 3.3 after five steps, 679 after six
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
PAPER_STEPS = 5


def resolve(
    ns_coefficients: str | Sequence[float] | Sequence[Sequence[float]],
    ns_steps: int = 5,
    shape: tuple[int, int] | None = None,
) -> tuple[Coefficients, ...]:
    """The `ns_steps` triples that a choice stands for.

    A name is looked up, one (a, b, c) is repeated, a list of them is taken as it is. `"paper"` depends on the matrix'
    `shape` and takes the published set of the nearest aspect ratio, longer side to shorter, on a logarithmic scale.

    Raises:
        ValueError: an unknown name, a malformed triple, or a number of steps that the set is not meant for.
    """
    if isinstance(ns_steps, bool) or not isinstance(ns_steps, int) or ns_steps < 1:
        raise ValueError(f"ns_steps must be a whole number of at least 1, got {ns_steps!r}")
    if isinstance(ns_coefficients, str):
        return _resolve_name(ns_coefficients, ns_steps, shape)
    if not isinstance(ns_coefficients, Sequence) or not ns_coefficients:
        raise ValueError(f"ns_coefficients must be a name, (a, b, c), or a list of them, got {ns_coefficients!r}")
    if not any(isinstance(item, Sequence) for item in ns_coefficients):
        return (_triple(ns_coefficients),) * ns_steps
    if len(ns_coefficients) != ns_steps:
        raise ValueError(
            f"ns_coefficients must hold one (a, b, c) per step, got {len(ns_coefficients)} for ns_steps={ns_steps}"
        )
    return tuple(_triple(item) for item in ns_coefficients)


def _resolve_name(name: str, ns_steps: int, shape: tuple[int, int] | None) -> tuple[Coefficients, ...]:
    if name == "robust":
        if ns_steps < 4:
            raise ValueError(
                f"ns_steps must be at least 4 with ns_coefficients='robust', got {ns_steps}: a set cut short overshoots"
            )
        return ROBUST_4 if ns_steps == 4 else ROBUST + (CONTRACTING,) * (ns_steps - len(ROBUST))
    if name == "muon":
        return (MUON,) * ns_steps
    if name == "paper":
        if ns_steps != PAPER_STEPS:
            raise ValueError(
                f"ns_steps must be {PAPER_STEPS} with ns_coefficients='paper', got {ns_steps}: "
                "the published square set diverges beyond five steps"
            )
        if shape is None:
            raise ValueError("shape must be given with ns_coefficients='paper', got None: its sets depend on the shape")
        return (_nearest_paper_set(shape),) * PAPER_STEPS
    raise ValueError(f"ns_coefficients must be one of {', '.join(map(repr, NAMES))} or numbers, got {name!r}")


def _nearest_paper_set(shape: tuple[int, int]) -> Coefficients:
    aspect = _log_aspect(shape)
    return PAPER[min(PAPER, key=lambda published: abs(_log_aspect(published) - aspect))]


def _log_aspect(shape: tuple[int, int]) -> float:
    return math.log(max(shape) / min(shape)) if min(shape) > 0 else 0.0


def _triple(values: Any) -> Coefficients:
    try:
        a, b, c = (float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"ns_coefficients must be made of triples of numbers (a, b, c), got {values!r}") from None
    if not all(map(math.isfinite, (a, b, c))):
        raise ValueError(f"ns_coefficients must be finite, got {values!r}")
    return a, b, c


def evaluate(coefficients: Sequence[Coefficients], sigma: Any) -> Any:
    """The singular values after all steps: the composed odd polynomial at `sigma`, a number or an array of any kind."""
    for a, b, c in coefficients:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma


def normalize_spectrum(sigma: Any, normalization: str = "schatten8") -> Any:
    """The singular values that the iteration starts from, given a matrix' own: a list for a list, else an array.

    `"schatten8"` divides by 1.01 (Σσ⁸)^(1/8), as ROOT does; `"frobenius"` by (Σσ²)^(1/2), as Muon does. Divides by the
    largest first, so that no power over- or underflows. A spectrum of zeros stays one.

    Raises:
        ValueError: an unknown normalization.
    """
    check_normalization(normalization)
    power, margin = (8, SCHATTEN8_MARGIN) if normalization == "schatten8" else (2, 1.0)
    top = max(sigma, default=0.0)
    if not top > 0:
        return sigma
    if isinstance(sigma, Sequence):
        scaled = [value / top for value in sigma]
        norm = margin * math.fsum(value**power for value in scaled) ** (1 / power)
        return [value / norm for value in scaled]
    relative = sigma / top
    return relative / (margin * (relative**power).sum() ** (1 / power))


def check_normalization(normalization: str) -> None:
    """Refuse an unknown normalization with a `ValueError`."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(map(repr, NORMALIZATIONS))}, got {normalization!r}")
