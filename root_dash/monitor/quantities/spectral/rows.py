"""The norms of the rows and the columns of the update: whether all neurons learn, or some starve.

An orthogonal update of a wide matrix has rows of norm 1. The rows of a tall one are free to vanish, and the neurons
behind them stop to learn (Aurora, https://arxiv.org/abs/2606.27715). Times the scaled learning rate the norms are what
the step moved the weights by, beside the weight decay.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import Columns, HostBatch, HostResult, LayerBatch, Quantity, Tensors
from root_dash.records import Float64Array

_QUANTILES = {"min": 0.0, "low": 0.05, "median": 0.5, "high": 0.95, "max": 1.0}
"""The quantiles of the norms that are recorded, by the last part of their names."""

_NAMES = tuple(f"update_{side}_{end}" for side in ("row", "col") for end in (*_QUANTILES, "weakest", "strongest"))


def on_device(batch: LayerBatch) -> Tensors:
    """Return the Euclidean norms of the rows `"row"` (L, rows) and the columns `"col"` (L, cols) of updates."""
    if batch.update is None or min(batch.update.shape[1:]) < 2:
        return {}
    X = batch.update if batch.update.dtype == torch.float64 else batch.update.float()
    # The squares of 1e30, and of 1e-30, are out of float32's range.
    size: Tensor = torch.linalg.vector_norm(X, torch.inf, dim=(1, 2)).clamp(min=torch.finfo(X.dtype).tiny)
    X, size = X / size[:, None, None], size[:, None].double()
    return {
        "row": torch.linalg.vector_norm(X, dim=2).double() * size,
        "col": torch.linalg.vector_norm(X, dim=1).double() * size,
    }


def on_host(layers: HostBatch) -> HostResult:
    """Return the quantiles of the norms, and the numbers of the rows and columns with the least and the largest.

    All are NaN if the update is not finite. Of equal norms the first counts.
    """
    found: Columns = {}
    for side in ("row", "col"):
        norms: Float64Array = layers.arrays[side].astype(np.float64)
        missing = ~np.isfinite(norms).all(-1)
        values = {end: np.quantile(norms, share, axis=-1) for end, share in _QUANTILES.items()}
        values |= {"weakest": norms.argmin(-1), "strongest": norms.argmax(-1)}
        found |= {f"update_{side}_{end}": np.where(missing, np.nan, value) for end, value in values.items()}
    return HostResult(found)


ROWS = Quantity("rows", "spectra", on_device, on_host, statistics=_NAMES)
