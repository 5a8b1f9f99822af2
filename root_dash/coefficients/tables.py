"""The coefficient sets of the Newton-Schulz iteration, and the singular values after the steps of a set.

A step replaces X by a X + b (X Xᵀ) X + c (X Xᵀ)² X. The step keeps the singular vectors and maps every singular value σ
to a σ + b σ³ + c σ⁵. A set has one triple (a, b, c) per step, and the composed map sends (0, 1] close to 1. This module
needs the standard library alone: the dashboard evaluates sets on recorded spectra, on a host without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from root_dash.checks import one_of, whole_number

Coefficients: TypeAlias = tuple[float, float, float]
Name: TypeAlias = Literal["adaptive", "robust", "adanewton", "paper", "muon", "polar_express"]
Normalization: TypeAlias = Literal["schatten8", "frobenius"]

NAMES: tuple[Name, ...] = get_args(Name)
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

# The Schatten-8 norm bounds σ₁ from above, but rounding in low precision does not respect bounds, and a set diverges
# not far above 1: this factor keeps every σ below 1/1.003. In bfloat16 A² is off by at most 0.6 %, its fourth root by
# 0.15 %.
SCHATTEN8_MARGIN = 1.003

# Fitted by `fit.fit` to one mixture of spectra for all shapes (Gaussian, log-uniform, powers, Student-t) with a bound:
# with any relative errors of up to 1.2 % between the steps, no σ from (0, 1.01] ends above 1.05, which leaves 1 % for
# the rounding of the update. The comment of each set gives the largest end of σ from (0, 1] in exact arithmetic, and
# the polar error on a Gaussian 512 x 512, on a 512 x 2048, and on σ log-uniform over 1..1e-3. Fewer than five steps
# need other sets: the first steps of `ROBUST` alone reach 1.33.
ROBUST: tuple[Coefficients, ...] = (  # 1.046; 0.046, 0.030, 0.098; diverges from σ = 1.014 on
    (4.96028, -14.31837, 10.34505),
    (4.55210, -9.25023, 4.77072),
    (4.22072, -6.95087, 2.96505),
    (2.99288, -3.95316, 1.50343),
    (2.72726, -3.30070, 1.54256),
)
ROBUST_4: tuple[Coefficients, ...] = (  # 1.047; 0.075, 0.044, 0.33
    (5.12444, -14.78884, 10.73555),
    (4.62665, -8.57984, 4.10894),
    (3.03224, -3.82634, 1.37509),
    (2.74321, -3.31901, 1.49938),
)
ROBUST_3: tuple[Coefficients, ...] = (  # 1.049; 0.14, 0.050, 0.53
    (4.62509, -13.17684, 9.55534),
    (3.36973, -6.41125, 3.41022),
    (3.30192, -5.66424, 3.38368),
)
ROBUST_2: tuple[Coefficients, ...] = (  # 1.048; 0.25, 0.110, 0.68
    (4.79508, -13.01185, 9.27213),
    (2.77229, -3.36218, 1.42367),
)
ROBUST_1: tuple[Coefficients, ...] = ((3.86546, -8.81137, 5.92073),)  # 1.049; 0.42, 0.089, 0.80
_SHORT = (ROBUST_1, ROBUST_2, ROBUST_3, ROBUST_4)

# For arithmetic in which X keeps its bits until the first step (`plan.is_fine`): with errors of up to 0.4 % between the
# steps no σ ends above 1.054. Of 22 kinds of spectra, six of them recorded, 21 end 1 to 8 % nearer to 1 than with
# `ROBUST`, and σᵢ = 1/i ends 1.4 % farther. With all steps in bfloat16, a set that bears less noise diverges.
ROBUST_FINE: tuple[Coefficients, ...] = (  # 1.048; 0.047, 0.030, 0.093; diverges from σ = 1.010 on
    (5.00958, -14.54507, 10.57794),
    (4.59401, -9.41639, 4.86652),
    (4.22334, -6.93890, 2.95401),
    (3.02622, -4.02396, 1.54716),
    (2.72731, -3.29354, 1.53867),
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

# Amsel et al., "The Polar Express", arXiv 2505.16932: each step minimises the worst error over the interval that the
# earlier steps leave, from [1e-3, 1] on. The last triple is the limit, for all further steps.
_POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Each triple is fitted up to the largest σ and diverges beyond. Against rounding the authors divide the input of every
# step but the limit by 1.01, p(σ / 1.01); microsoft/dion divides by 1.02, as here. In the first step the division has
# the effect of a Frobenius norm 1.02 times as long, so the set needs no norm beside `normalization="frobenius"`.
_SAFETY = 1.02
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    *((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS[:-1]),
    _POLAR_EXPRESS[-1],
)


def resolve(
    ns_coefficients: str | Sequence[float] | Sequence[Sequence[float]],
    ns_steps: int = 5,
    shape: tuple[int, int] | None = None,
    *,
    fine: bool = False,
) -> tuple[Coefficients, ...]:
    """Return the `ns_steps` triples of a choice.

    A name is looked up, a single (a, b, c) is repeated, and a list of triples is taken unchanged. `"adaptive"` and
    `"adanewton"`, which are fitted to the run, give their starting sets: the universal set, and Muon's triple.
    `"paper"` needs the `shape` of the matrix, and gives the published set of the nearest aspect ratio, longer side to
    shorter, on a logarithmic scale. `fine` allows sets that are safe in fine arithmetic alone (`plan.is_fine`).

    Raises:
        TypeError: a choice, a triple or a number of steps of a wrong type.
        ValueError: an unknown name, a malformed triple, or a number of steps for which there is no set.
    """
    whole_number("ns_steps", ns_steps, 1)
    if isinstance(ns_coefficients, str):
        return _resolve_name(ns_coefficients, ns_steps, shape, fine)
    if not isinstance(ns_coefficients, Sequence) or not ns_coefficients:
        error = ValueError if isinstance(ns_coefficients, Sequence) else TypeError
        raise error(f"ns_coefficients must be a name, (a, b, c), or a list of them, got {ns_coefficients!r}")
    if not any(isinstance(item, Sequence) for item in ns_coefficients):
        return (_triple(ns_coefficients),) * ns_steps
    if len(ns_coefficients) != ns_steps:
        raise ValueError(
            f"ns_coefficients must hold one (a, b, c) per step, got {len(ns_coefficients)} for ns_steps={ns_steps}"
        )
    return tuple(_triple(item) for item in ns_coefficients)


def _resolve_name(name: str, ns_steps: int, shape: tuple[int, int] | None, fine: bool) -> tuple[Coefficients, ...]:
    one_of("ns_coefficients", name, NAMES, " or numbers")
    if name in ("adaptive", "robust"):
        if ns_steps <= len(_SHORT):
            return _SHORT[ns_steps - 1]
        return (ROBUST_FINE if fine else ROBUST) + (CONTRACTING,) * (ns_steps - len(ROBUST))
    if name in ("adanewton", "muon"):
        return (MUON,) * ns_steps
    if name == "polar_express":
        return POLAR_EXPRESS[:ns_steps] + POLAR_EXPRESS[-1:] * (ns_steps - len(POLAR_EXPRESS))
    if ns_steps != PAPER_STEPS:
        raise ValueError(
            f"ns_steps must be {PAPER_STEPS} with ns_coefficients='paper', got {ns_steps}: "
            "the published square set diverges beyond five steps"
        )
    if shape is None:
        raise ValueError("shape must be given with ns_coefficients='paper', got None: its sets depend on the shape")
    aspect = _log_aspect(shape)
    nearest = min(PAPER, key=lambda published: abs(_log_aspect(published) - aspect))
    return (PAPER[nearest],) * PAPER_STEPS


def _log_aspect(shape: tuple[int, int]) -> float:
    return math.log(max(shape) / min(shape)) if min(shape) > 0 else 0.0


def _triple(values: Any) -> Coefficients:
    try:
        a, b, c = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        # A triple of the wrong length is a wrong value; anything but numbers has a wrong type.
        numbers = isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)
        kind = ValueError if numbers else TypeError
        raise kind(f"ns_coefficients must be made of triples of numbers (a, b, c), got {values!r}") from error
    if not all(map(math.isfinite, (a, b, c))):
        raise ValueError(f"ns_coefficients must be finite, got {values!r}")
    return a, b, c


def evaluate(coefficients: Sequence[Coefficients], sigma: Any) -> Any:
    """Return the singular values after all steps: the composed odd polynomial at `sigma`, a number or any array."""
    for a, b, c in coefficients:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma


def normalize_spectrum(sigma: Any, normalization: str = "schatten8") -> Any:
    """Return the singular values at the start of the iteration from those of a matrix, as a list or an array.

    `"schatten8"` divides by 1.003 (Σσ⁸)^(1/8), as ROOT does, and `"frobenius"` by (Σσ²)^(1/2), as Muon does. The values
    are divided by the largest first, so that no power over- or underflows. A spectrum of zeros stays as it is.

    Raises:
        ValueError: an unknown normalization.
    """
    one_of("normalization", normalization, NORMALIZATIONS)
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
