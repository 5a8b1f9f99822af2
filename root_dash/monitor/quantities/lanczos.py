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

_EXHAUSTED = 1e-4
"""The share of the largest number so far below which the next is rounding, and a start has found all that it can.

So it is of a matrix of low rank, as a gradient of few tokens is, and of one whose singular values are alike: what
followed would be values that the matrix does not have, 257 where all were 3.
"""

_SEVERAL = 5.0
"""From so many expected singular values on, one that exhausted starts found is taken for several that are alike."""

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
    largest = A.new_zeros(len(A), STARTS)
    # The squares of 1e30, and of 1e-30, are out of float32's range.
    size: Tensor = torch.linalg.vector_norm(A, torch.inf, dim=(1, 2)).clamp(min=torch.finfo(A.dtype).tiny)
    size = size.view(-1, 1, 1)
    for step in range(steps):
        U[:, :, step] = u
        norm, v = _unit(_without(u @ A / size, V[:, :, :step]), largest)
        numbers[:, :, 0, step], largest = norm, torch.maximum(largest, norm)
        V[:, :, step] = v
        if step + 1 < steps:
            norm, u = _unit(_without(v @ A.mT / size, U[:, :, : step + 1]), largest)
            numbers[:, :, 1, step], largest = norm, torch.maximum(largest, norm)
    return numbers * size.unsqueeze(-1)


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
        exhausted = (taken[..., :-1] == 0).any((-2, -1)).all(-1)
        each = zip(nodes.numpy(), shares.numpy(), exhausted.tolist(), strict=True)
        values[finite] = [_merged(*one, m) for one in each]
    return values


def _merged(nodes: Float64Array, shares: Float64Array, exhausted: bool, m: int) -> Float64Array:
    """One matrix' m singular values, descending, of the nodes and shares (starts, k) of each start's quadrature."""
    usual, expected = nodes.mean(0), m * shares.mean(0)
    apart = (nodes.max(0) - nodes.min(0) > _AGREEMENT * usual) | (usual <= _EXHAUSTED * usual[0])
    if not exhausted:
        # Where all lie close together nodes agree that stand for several. Of n that stand for one each, more than
        # n + 3 √n are expected in one of 300 cases at most.
        apart |= (expected - 1).cumsum() > 3 * np.sqrt(np.arange(len(expected)) + 1)
    known = int(apart.argmax()) if apart.any() else len(apart)
    counts = np.where(expected[:known] >= _SEVERAL, expected[:known].round(), 1.0).astype(int)
    largest = np.repeat(usual[:known], counts)[:m]
    values = np.zeros(m)
    values[: len(largest)] = largest
    rest, weights = nodes[:, known:].ravel(), shares[:, known:].ravel()
    left = m - len(largest)
    if left and weights.sum() > 0:
        order = rest.argsort()[::-1]
        rest, weights = rest[order], weights[order] * (left / weights.sum())
        values[len(largest) :] = np.interp(np.arange(left) + 0.5, weights.cumsum() - weights / 2, rest)
    return values


def _without(w: Tensor, basis: Tensor) -> Tensor:
    """Vectors w (L, starts, n) less their parts in bases (L, starts, k, n), which rounding would let grow.

    Twice, since where little is left the first time's rounding is a part of it.
    """
    for _ in range(2):
        parts = basis @ w.unsqueeze(-1)
        w = w - (parts.mT @ basis).squeeze(-2)
    return w


def _unit(w: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (L, starts) of vectors (L, starts, n), and these divided by them; zero beside `largest`."""
    norm = torch.linalg.vector_norm(w, dim=-1)
    gone = norm <= _EXHAUSTED * largest
    unit = w / norm.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(-1)
    return norm.masked_fill(gone, 0.0), unit.masked_fill(gone.unsqueeze(-1), 0.0)
