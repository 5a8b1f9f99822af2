"""How far the update of an optimizer that orthogonalizes is from orthogonal: ‖X Xᵀ − I‖_F / √m."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import HostBatch, HostResult, LayerBatch, Quantity, Tensors
from root_dash.optim.newton_schulz.plan import CPU_MULTIPLIES_BFLOAT16


def on_device(batch: LayerBatch) -> Tensors:
    """Return `"error"` (L,) of updates that were orthogonalized."""
    return {} if batch.update is None or not batch.orthogonalized else {"error": orthogonality_error(batch.update)}


def on_host(layers: HostBatch) -> HostResult:
    """Return `orthogonality_error`."""
    return HostResult({"orthogonality_error": layers.arrays["error"].astype(np.float64)})


def orthogonality_error(update: Tensor) -> Tensor:
    """Return ‖X Xᵀ − I‖_F / √m of updates (L, rows, cols) on their short side m: (L,).

    Rows of the short side that are exactly zero (a dead unit, a byte that never occurred) have no direction to be
    orthogonal: they are left out of both the norm and m. The error is NaN if all rows are zero.
    """
    short = short_side(update)
    if short.dtype == torch.bfloat16 and short.is_cpu and CPU_MULTIPLIES_BFLOAT16:
        return _half_orthogonality_error(short)
    if short.is_cuda and short.dtype in (torch.bfloat16, torch.float16):
        residual = torch.bmm(short, short.mT, out_dtype=torch.float32)  # exact products at the speed of half precision
    else:
        short = short.float()
        residual = short @ short.mT
    diagonal = residual.diagonal(dim1=-2, dim2=-1)
    null = (diagonal == 0).sum(-1)
    diagonal -= 1.0
    squared = residual.mul_(residual).sum((-2, -1)) - null
    return (squared.clamp(min=0) / (short.shape[-2] - null)).sqrt()


def short_side(matrix: Tensor) -> Tensor:
    """Return matrices (L, rows, cols) as wide matrices, transposed if they are tall."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def _half_orthogonality_error(short: Tensor) -> Tensor:
    """Return the error of wide bfloat16 updates (L, m, n), in half the time that float32 products take.

    I is subtracted before the one rounding of X Xᵀ - I, which is relative to the residual: the error is off by 2e-4 of
    itself at most. A rounded X Xᵀ would not show errors under 0.002.
    """
    ones = torch.eye(short.shape[1], dtype=short.dtype).expand(len(short), -1, -1)
    residual = torch.baddbmm(ones, short, short.mT, beta=-1)
    squared: Tensor = torch.linalg.vector_norm(residual, dim=(-2, -1), dtype=torch.float32).square()
    null = torch.zeros(len(short), dtype=torch.int64)
    if bool((residual.diagonal(dim1=-2, dim2=-1) == -1).any()):  # perhaps rounded
        null = (short == 0).all(-1).sum(-1)
    error: Tensor = ((squared - null).clamp(min=0) / (short.shape[1] - null)).sqrt()
    return error


ORTHOGONALITY = Quantity("orthogonality", "statistics", on_device, on_host, statistics=("orthogonality_error",))
