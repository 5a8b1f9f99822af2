"""Spectra of large matrices, estimated: stochastic Lanczos quadrature by Golub-Kahan bidiagonalization.

Of a matrix of m x n, started from a random sign vector, k steps yield a k x k bidiagonal matrix whose singular values
and the first entries of whose left singular vectors are a Gauss quadrature of the spectrum (Golub and Meurant,
Matrices, Moments and Quadrature, 2010; Ubaru, Chen and Saad, 2017). Averaged over a few starts, it says how many
singular values lie where. Unlike with a Gram matrix nothing is squared, and what travels is k numbers instead of m².
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.records import Float64Array

STEPS = 48
"""Of each start: where the largest singular values have converged."""
STARTS = 4

_AGREEMENT = 1e-3
"""How far, relatively, a singular value may differ between starts to be taken for one of the matrix."""

_SEED = 1


def bidiagonals(matrices: Tensor) -> Tensor:
    """Diagonals and subdiagonals of L matrices (L, rows, cols): (L, starts, 2, k), in float32 or wider.

    The same starts for every call, so that what changes from step to step is the spectrum; no read of the device.
    """
    short = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    A = short if short.dtype == torch.float64 else short.float()
    steps = min(STEPS, A.shape[1])
    generator = torch.Generator(A.device).manual_seed(_SEED)
    signs = torch.randint(2, (1, STARTS, A.shape[1]), generator=generator, device=A.device)
    u = (signs.to(A.dtype) * 2 - 1).expand(len(A), -1, -1) / A.shape[1] ** 0.5
    U, V = (A.new_empty(len(A), STARTS, steps, side) for side in A.shape[1:])
    numbers = A.new_zeros(len(A), STARTS, 2, steps)
    for step in range(steps):
        U[:, :, step] = u
        numbers[:, :, 0, step], v = _unit(_without(u @ A, V[:, :, :step]))
        V[:, :, step] = v
        if step + 1 < steps:
            numbers[:, :, 1, step], u = _unit(_without(v @ A.mT, U[:, :, : step + 1]))
    return numbers


def singular_values(bidiagonals: NDArray[np.floating], m: int) -> Float64Array:
    """Estimates of the m singular values, descending, (L, m), of what `bidiagonals` (L, starts, 2, k) were taken from.

    The largest are those of the bidiagonal matrices, as far as these agree; the others are read off the cumulated
    weights. NaN for a matrix that is not finite.
    """
    values = np.full((len(bidiagonals), m), np.nan)
    finite = np.isfinite(bidiagonals).all((-3, -2, -1))
    if finite.any():
        taken = torch.from_numpy(bidiagonals[finite]).double()
        lower = torch.diag_embed(taken[:, :, 0]) + torch.diag_embed(taken[:, :, 1, :-1], -1)
        left, nodes, _ = torch.linalg.svd(lower)
        shares = left[..., 0, :] ** 2
        values[finite] = [_merged(*both, m) for both in zip(nodes.numpy(), shares.numpy(), strict=True)]
    return values


def _merged(nodes: Float64Array, shares: Float64Array, m: int) -> Float64Array:
    """One matrix' m singular values, descending, of the nodes and shares (starts, k) of each start's quadrature."""
    spread = nodes.max(0) - nodes.min(0) > _AGREEMENT * nodes.mean(0)
    known = int(spread.argmax()) if spread.any() else len(spread)
    values = np.zeros(m)
    values[:known] = nodes[:, :known].mean(0)
    rest, weights = nodes[:, known:].ravel(), shares[:, known:].ravel()
    if known < m and weights.sum() > 0:
        order = rest.argsort()[::-1]
        rest, weights = rest[order], weights[order] * ((m - known) / weights.sum())
        values[known:] = np.interp(np.arange(m - known) + 0.5, weights.cumsum() - weights / 2, rest)
    return values


def _without(w: Tensor, basis: Tensor) -> Tensor:
    """Vectors w (L, starts, n) less their parts in bases (L, starts, k, n), which rounding would let grow."""
    parts = basis @ w.unsqueeze(-1)
    return w - (parts.mT @ basis).squeeze(-2)


def _unit(w: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (L, starts) of vectors (L, starts, n), and these divided by them; zero stays zero."""
    norm = torch.linalg.vector_norm(w, dim=-1)
    return norm, w / norm.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(-1)
