"""The formulas of ROOT in NumPy and float64, written from the paper by way of the SVD: no code in common with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Triples = Sequence[tuple[float, float, float]]


def polar_factor(matrix: Array) -> Array:
    """U Vᵀ, as (M Mᵀ)^(-1/2) M for a wide M of full rank: a tenth of the time of its singular value decomposition."""
    squares, u = np.linalg.eigh(matrix @ matrix.T)
    return np.asarray((u / np.sqrt(squares)) @ (u.T @ matrix))


def polar_error(matrix: Array, update: Array) -> float:
    """‖X - UVᵀ‖ / ‖UVᵀ‖."""
    factor = polar_factor(matrix)
    return float(np.linalg.norm(update - factor) / np.linalg.norm(factor))


def newton_schulz(matrix: Array, triples: Triples, normalization: str) -> Array:
    """U p(S / norm) Vᵀ, p the composed polynomial."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (1.003 * np.sum(s**8) ** 0.125 if normalization == "schatten8" else np.sqrt(np.sum(s**2)))
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s) @ vt)


def root_steps(
    weight: Array,
    gradients: Sequence[Array],
    triples: Triples,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    quantile: float,
    normalization: str,
    scale: float,
) -> Array:
    """The weight after one step per gradient."""
    buffer = np.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        m = momentum * buffer + (1 - momentum) * gradient if nesterov else buffer
        outliers = np.sign(m) * np.maximum(np.abs(m) - np.quantile(np.abs(m), quantile), 0)
        x = newton_schulz(m - outliers, triples, normalization)
        weight = weight - lr * weight_decay * weight - lr * scale * x
    return weight


def with_singular_values(rng: np.random.Generator, rows: int, cols: int, sigma: Array) -> Array:
    """A matrix with random singular vectors and the given singular values."""
    left = np.linalg.qr(rng.standard_normal((rows, len(sigma))))[0]
    right = np.linalg.qr(rng.standard_normal((cols, len(sigma))))[0]
    return np.asarray((left * sigma) @ right.T)
