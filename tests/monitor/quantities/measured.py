"""What the tests of the quantities share: tensors with heavy tails, and the way from a tensor to its statistics."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor

from root_dash.monitor.quantities.quantity import Columns, HostBatch, LayerBatch, Quantity

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
ENTRIES = st_numpy.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=FLOATS)


def heavy_tailed(rows: int = 3, entries: int = 5000) -> Tensor:
    """Return Student-t entries with four degrees of freedom at gradient scale, seeded."""
    return torch.from_numpy(np.random.default_rng(0).standard_t(4, (rows, entries)).astype(np.float32) * 1e-4)


def vectors(
    gradient: Tensor | None, momentum: Tensor | None = None, base: Tensor | None = None, threshold: Tensor | None = None
) -> LayerBatch:
    """Return vectors (L, n) as a batch of layers of one row."""
    given = (None if one is None else one.unsqueeze(1) for one in (gradient, momentum, base))
    seen, moved, clipped = given
    rows = len(next(one for one in (gradient, momentum) if one is not None))
    return LayerBatch(tuple(range(rows)), seen, None, moved, threshold, clipped)


def statistics_of(quantity: Quantity, batch: LayerBatch) -> Columns:
    """Return the statistics that the host makes of what the device measures."""
    arrays = {name: tensor.numpy() for name, tensor in quantity.on_device(batch).items()}
    rows, cols = batch.seen.shape[1:]
    return quantity.on_host(HostBatch(arrays, batch.positions, (rows, cols), 1)).statistics
