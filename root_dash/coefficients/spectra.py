"""Spectra for the fits: singular values are cleaned, reduced and measured, and random spectra are generated.

A spectrum is a 1-D array of singular values of any scale and order. All arithmetic is NumPy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from root_dash.coefficients.tables import Coefficients, Normalization, evaluate, normalize_spectrum

Array = NDArray[np.float64]

REPRESENTATIVES = 256
"""The most values of a spectrum in a fit: its two ends, and the means of equal shares between them."""
POOL = 512
"""The most points in a fit, for all spectra together."""

_SAMPLED = 128  # the most rows for which random spectra are sampled: 2 ms each; 512 rows would take 70 ms


def polar_error(
    coefficients: Sequence[Coefficients], sigma: ArrayLike, normalization: Normalization = "schatten8"
) -> float:
    """Return the polar error ‖X - UVᵀ‖ / ‖UVᵀ‖ of the update X of a matrix with singular values `sigma`.

    Null directions of the matrix are left out. The error of a zero matrix is NaN.
    """
    values = alive(sigma)
    if not len(values):
        return math.nan
    return root_mean_square(evaluate(coefficients, np.asarray(normalize_spectrum(values, normalization))) - 1)


def random_spectra(shape: tuple[int, int], count: int, rng: np.random.Generator) -> list[Array]:
    """Return singular values, descending, of `count` random matrices of a shape with standard normal entries.

    No such matrix is formed. Up to 128 rows the singular values are sampled exactly: Householder reflections would
    leave a bidiagonal matrix of independent chi variables with the same distribution of singular values (Dumitriu and
    Edelman, 2002). For more rows the singular values are jittered quantiles of the Marchenko-Pastur law. Near zero the
    values of a square matrix repel each other, which the law does not describe; there the 16 smallest values are taken
    from a sampled matrix and rescaled.

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
    # If λ = centre - radius cos φ, the density sqrt((high - λ)(λ - low)) / λ is smooth in φ from 0 to π.
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
    """Return the values of a spectrum that are not zero up to rounding, divided by the largest, ascending.

    Raises:
        ValueError: the spectrum is not one-dimensional, or a value is negative or not finite.
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
    """Return at most 256 values that represent ascending values, and how many values each represents.

    Each of the two ends represents itself alone.
    """
    if len(values) <= REPRESENTATIVES:
        return values, np.ones(len(values))
    inner = values[1:-1]
    starts = np.arange(REPRESENTATIVES - 2) * len(inner) // (REPRESENTATIVES - 2)
    counts = np.diff(np.append(starts, len(inner))).astype(np.float64)
    means = np.add.reduceat(inner, starts) / counts
    return np.concatenate([values[:1], means, values[-1:]]), np.concatenate([[1.0], counts, [1.0]])


def pool(points: Array, masses: Array) -> tuple[Array, Array]:
    """Return at most 512 points and their masses. Each point is the mean of neighbours with about equal total mass."""
    order = np.argsort(points, kind="stable")
    points, masses = points[order], masses[order]
    if len(points) <= POOL:
        return points, masses
    share = np.cumsum(masses) - masses / 2
    starts = np.flatnonzero(np.diff(np.floor(share * (POOL / masses.sum())), prepend=-1.0))
    pooled = np.add.reduceat(masses, starts)
    return np.add.reduceat(points * masses, starts) / pooled, pooled


def root_mean_square(values: Array) -> float:
    """Return sqrt(mean x²)."""
    return float(np.sqrt(np.mean(values**2)))
