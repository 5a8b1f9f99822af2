"""Singular values as the fits take them: cleaned, reduced, measured, and made up.

A spectrum is a 1-D array of singular values of any scale and order. NumPy in float64 only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from root_dash.coefficients.tables import Coefficients, Normalization, evaluate, normalize_spectrum

Array = NDArray[np.float64]

REPRESENTATIVES = 256
"""Values that a spectrum is reduced to before a fit: its ends, and the means of equal shares between them."""
POOL = 512
"""Points that all spectra together are reduced to."""

_SAMPLED = 128  # rows up to which random spectra are sampled: 2 ms each, 512 rows take 70


def polar_error(
    coefficients: Sequence[Coefficients], sigma: ArrayLike, normalization: Normalization = "schatten8"
) -> float:
    """‖X - UVᵀ‖ / ‖UVᵀ‖ of the update of a matrix with singular values `sigma`, on its range; NaN for a zero matrix."""
    values = alive(sigma)
    if not len(values):
        return math.nan
    return root_mean_square(evaluate(coefficients, np.asarray(normalize_spectrum(values, normalization))) - 1)


def orthogonality_error(
    coefficients: Sequence[Coefficients], sigma: ArrayLike, normalization: Normalization = "schatten8"
) -> float:
    """‖X Xᵀ - I‖ / √m of that update, I and m those of its range; NaN for a zero matrix."""
    values = alive(sigma)
    if not len(values):
        return math.nan
    return root_mean_square(evaluate(coefficients, np.asarray(normalize_spectrum(values, normalization))) ** 2 - 1)


def random_spectra(shape: tuple[int, int], count: int, rng: np.random.Generator) -> list[Array]:
    """Singular values, descending, of `count` matrices of that shape with independent standard normal entries.

    None is ever formed. Up to 128 rows they are sampled exactly: the bidiagonal matrix of independent chi variables
    that Householder reflections would leave has the same singular values in distribution (Dumitriu and Edelman, 2002).
    Beyond, they are jittered quantiles of the law of Marchenko and Pastur; near zero, where the values of a square
    matrix repel each other and the law says little, the 16 smallest are those of a sampled matrix, rescaled.

    Raises:
        ValueError: a side or a count below 1.
    """
    m, n = sorted(shape)
    if m < 1 or count < 1:
        raise ValueError(f"shape and count must be at least 1, got {shape!r} and {count!r}")
    return [_sampled(m, n, rng) if m <= _SAMPLED else _of_the_law(m, n, rng) for _ in range(count)]


def _sampled(m: int, n: int, rng: np.random.Generator) -> Array:
    diagonal = np.sqrt(rng.chisquare(np.arange(n, n - m, -1)))
    below = np.sqrt(rng.chisquare(np.arange(m - 1, 0, -1))) if m > 1 else np.empty(0)
    bidiagonal = np.diag(diagonal) + np.diag(below, -1)
    squares = np.linalg.eigvalsh(bidiagonal @ bidiagonal.T)
    return np.sqrt(np.maximum(squares, 0.0))[::-1]


def _of_the_law(m: int, n: int, rng: np.random.Generator) -> Array:
    # With λ = centre - radius cos φ, the density sqrt((high - λ)(λ - low)) / λ is smooth in φ from 0 to π.
    centre, radius = m + n, 2 * math.sqrt(m * n)
    angle = (np.arange(4096) + 0.5) * (np.pi / 4096)
    square = centre - radius * np.cos(angle)
    distribution = np.cumsum(np.sin(angle) ** 2 / square)
    probability = (np.arange(m) + rng.random(m)) / m
    values = np.sqrt(np.interp(probability, distribution / distribution[-1], square))
    if n - m <= 16:
        values[:16] = _sampled(_SAMPLED, _SAMPLED + n - m, rng)[:-17:-1] * math.sqrt(_SAMPLED / m)
    return np.sort(values)[::-1]


def alive(spectrum: ArrayLike) -> Array:
    """The values that are not null, ascending.

    Raises:
        ValueError: not one-dimensional, or a value that is negative or not finite.
    """
    values = np.asarray(spectrum, np.float64)
    if values.ndim != 1:
        raise ValueError(f"a spectrum must be one-dimensional, got shape {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("a spectrum must be finite and not negative")
    if not len(values) or values.max() == 0:
        return np.empty(0)
    values = np.sort(values / values.max())
    return values[values > len(values) * float(np.finfo(np.float32).eps)]


def representatives(values: Array) -> tuple[Array, Array]:
    """At most 256 values that stand for ascending ones, and how many each stands for; the ends for themselves alone."""
    if len(values) <= REPRESENTATIVES:
        return values, np.ones(len(values))
    inner = values[1:-1]
    starts = np.arange(REPRESENTATIVES - 2) * len(inner) // (REPRESENTATIVES - 2)
    counts = np.diff(np.append(starts, len(inner))).astype(np.float64)
    means = np.add.reduceat(inner, starts) / counts
    return np.concatenate([values[:1], means, values[-1:]]), np.concatenate([[1.0], counts, [1.0]])


def pool(points: Array, masses: Array) -> tuple[Array, Array]:
    """At most 512 points, each the mean of neighbours of about the same total mass, and their masses."""
    order = np.argsort(points, kind="stable")
    points, masses = points[order], masses[order]
    if len(points) <= POOL:
        return points, masses
    share = np.cumsum(masses) - masses / 2
    starts = np.flatnonzero(np.diff(np.floor(share * (POOL / masses.sum())), prepend=-1.0))
    pooled = np.add.reduceat(masses, starts)
    return np.add.reduceat(points * masses, starts) / pooled, pooled


def root_mean_square(values: Array) -> float:
    """sqrt(mean x²)."""
    return float(np.sqrt(np.mean(values**2)))
