"""The largest singular value and the stable rank of the weights, at a few matrix-vector products a recording.

A few Lanczos steps begin at the singular vector that the last recording found: weights move slowly. They are at least
as accurate as as many steps of the power iteration, and need no gap behind the largest value. (Golub and Van Loan,
Matrix Computations, 2013, section 10.4.) A collapse of the stable rank precedes an explosion of the gradient (MSign,
https://arxiv.org/abs/2602.01734).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.norms import norms
from root_dash.monitor.quantities.quantity import HostBatch, HostResult, LayerBatch, Quantity, Tensors, quiet
from root_dash.monitor.quantities.spectral.lanczos import bidiagonalized, random_starts, wide

STEPS = 12
"""Lanczos steps of a recording, each of two products with the weight."""

FIRST_STEPS = 32
"""Steps of a layer's first recording, which begins at a random vector."""

_RANDOM = 0.2
"""The length of the random vector that is added to the last singular vector, of length 1.

A direction that grew since the last recording may be orthogonal to the vector. The steps would never leave it.
"""

_SQUARINGS = 10
"""A matrix squared so often is its power 1024."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return `"bidiagonal"` (L, 2, 2, k), diagonals and subdiagonals, and the Frobenius norms `"norm"` (L,) of weights.

    The batch's memory holds each layer's singular vector on its short side. A second start is always random.
    """
    if batch.weight is None or min(batch.seen.shape[1:]) < 2:
        return {}
    A = wide(torch.stack(list(batch.weight)))
    starts = random_starts(A, 2).repeat(len(A), 1, 1)
    kept = [batch.memory.get(position) for position in batch.positions]
    warm = [vector for vector in kept if vector is not None and vector.shape == A.shape[1:2]]
    first = len(warm) < len(kept)  # all layers of a batch are first seen together
    if not first:
        starts[:, 0] = torch.nn.functional.normalize(torch.stack(warm).to(A) + _RANDOM * starts[:, 0], dim=-1)
    bidiagonal, vectors = bidiagonalized(A, starts, FIRST_STEPS if first else STEPS)
    leading = _leading_vectors(bidiagonal[:, 0], vectors[:, 0])
    batch.memory.update(zip(batch.positions, leading.unbind(), strict=True))
    return {"bidiagonal": bidiagonal, "norm": norms(A.flatten(1))}


@quiet
def on_host(layers: HostBatch) -> HostResult:
    """Return `weight_sigma_max` and `weight_stable_rank`, NaN of a weight that is not finite."""
    numbers = torch.from_numpy(layers.arrays["bidiagonal"].astype(np.float64))
    finite = torch.isfinite(numbers).flatten(1).all(-1)
    lower = torch.diag_embed(numbers[:, :, 0]) + torch.diag_embed(numbers[:, :, 1, :-1], -1)
    sigma = np.full(len(numbers), np.nan)
    sigma[finite.numpy()] = torch.linalg.svdvals(lower[finite])[..., 0].amax(-1).numpy()
    norm = layers.arrays["norm"].astype(np.float64)
    return HostResult({"weight_sigma_max": sigma, "weight_stable_rank": (norm / sigma) ** 2})


def _leading_vectors(bidiagonal: Tensor, vectors: Tensor) -> Tensor:
    """Return the left singular vectors (L, m) of the largest values, given bidiagonals (L, 2, k) and bases (L, k, m).

    The power of a small matrix takes the place of its eigenvectors, for which a device would stop.
    """
    lower = torch.diag_embed(bidiagonal[:, 0]) + torch.diag_embed(bidiagonal[:, 1, :-1], -1)
    power = _scaled(lower) @ _scaled(lower).mT
    for _ in range(_SQUARINGS):
        power = _scaled(power)
        power = power @ power
    mixed = (_scaled(power)[:, :1] @ vectors)[:, 0]  # a row of the power is a multiple of the eigenvector
    return torch.nn.functional.normalize(mixed.nan_to_num(0.0, 0.0, 0.0), dim=-1)


def _scaled(matrices: Tensor) -> Tensor:
    """Return matrices (L, k, k) whose largest entry is 1, and zeros as they are."""
    return matrices / matrices.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny)


WEIGHTS = Quantity("weights", "spectra", on_device, on_host, statistics=("weight_sigma_max", "weight_stable_rank"))
