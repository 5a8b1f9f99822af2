"""Spectra of large matrices, estimated: stochastic Lanczos quadrature by Golub-Kahan bidiagonalization.

Started from a random sign vector, k steps on a matrix of m x n yield a k x k bidiagonal matrix. Its singular values,
and the first entries of its left singular vectors, are a Gauss quadrature of the spectrum (Golub and Meurant, Matrices,
Moments and Quadrature, 2010; Ubaru, Chen and Saad, 2017). Averaged over a few starts, the quadrature tells how many
singular values lie in each range. Unlike in a Gram matrix nothing is squared, and k numbers travel instead of m².
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.records import Float64Array

STEPS = 48
"""Steps of each start, after which the largest singular values have converged."""
STARTS = 4
"""Random vectors from which each matrix is estimated."""

_AGREEMENT = 1e-3
"""The largest relative difference between starts at which a singular value counts as a value of the matrix."""

_EXHAUSTED = 1e-4
"""The share of the largest number so far below which the next number is rounding, and a start ends.

A start has then found all that it can. This happens if the rank is low, as of a gradient of few tokens, and if all
singular values are alike: further steps would make values that the matrix does not have, 257 when all were 3.
"""

_SEVERAL = 5.0
"""If starts that ended early expect at least so many singular values at one node, the node stands for several."""

_SEED = 1


def bidiagonals(matrices: Tensor) -> Tensor:
    """Return diagonals and subdiagonals of L matrices (L, rows, cols): (L, starts, 2, k), in float32 or wider.

    Every call takes the same starts, so that only the spectrum changes from step to step.
    """
    A = wide(matrices)
    return bidiagonalized(A, random_starts(A, STARTS).expand(len(A), -1, -1), STEPS)[0]


def bidiagonalized(A: Tensor, starts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the bidiagonal matrices of L `wide` matrices (L, m, n), and the left vectors that make them so.

    From each of the unit vectors `starts`, (L, s, m), k = min(steps, m) steps are taken. The diagonals and subdiagonals
    are (L, s, 2, k), the vectors (L, s, k, m). Nothing is read back from the device.
    """
    steps, u = min(steps, A.shape[1]), starts
    U, V = (A.new_empty(*starts.shape[:2], steps, side) for side in A.shape[1:])
    numbers = A.new_zeros(*starts.shape[:2], 2, steps)
    largest = A.new_zeros(starts.shape[:2])
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
    return numbers * size.unsqueeze(-1), U


def wide(matrices: Tensor) -> Tensor:
    """Return L matrices (L, rows, cols) in float32 or wider, transposed if they are tall."""
    short = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    return short if short.dtype == torch.float64 else short.float()


def random_starts(A: Tensor, count: int) -> Tensor:
    """Return unit vectors of random signs (1, count, m) for matrices (L, m, n): the same in every call."""
    generator = torch.Generator(A.device).manual_seed(_SEED)
    signs = torch.randint(2, (1, count, A.shape[1]), generator=generator, device=A.device)
    starts: Tensor = (signs.to(A.dtype) * 2 - 1) / A.shape[1] ** 0.5
    return starts


def singular_values(bidiagonals: NDArray[np.floating], m: int) -> Float64Array:
    """Return estimates of the m singular values (L, m), descending, given `bidiagonals` (L, starts, 2, k).

    The largest values are those of the bidiagonal matrices, as far as the starts agree. The other values are read off
    the cumulated weights. The values of a matrix that is not finite are NaN.
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
    """Return the m singular values of one matrix, descending, given each start's nodes and shares (starts, k)."""
    usual, expected = nodes.mean(0), m * shares.mean(0)
    apart = (nodes.max(0) - nodes.min(0) > _AGREEMENT * usual) | (usual <= _EXHAUSTED * usual[0])
    if not exhausted:
        # If all values lie close together, nodes agree that stand for several values. If n nodes stand for one value
        # each, more than n + 3 √n values are expected in one of 300 cases at most.
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
    """Return vectors w (L, starts, n) without their parts in bases (L, starts, k, n), which rounding would let grow.

    The parts are subtracted twice: if little is left, the rounding of the first time is a part of the rest.
    """
    for _ in range(2):
        parts = basis @ w.unsqueeze(-1)
        w = w - (parts.mT @ basis).squeeze(-2)
    return w


def _unit(w: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (L, starts) of vectors (L, starts, n), and the unit vectors; 0 if tiny beside `largest`."""
    norm = torch.linalg.vector_norm(w, dim=-1)
    gone = norm <= _EXHAUSTED * largest
    unit = w / norm.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(-1)
    return norm.masked_fill(gone, 0.0), unit.masked_fill(gone.unsqueeze(-1), 0.0)
