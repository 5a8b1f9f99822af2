"""Histograms of the entries of gradient and momentum, in the fixed bins of `records.histogram_edges`.

The bin of an entry follows from the bits of a float32. Nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from root_dash.kernels import key_counts as keys
from root_dash.monitor.quantities.quantity import (
    Arrays,
    HostBatch,
    HostResult,
    LayerBatch,
    Quantity,
    ShardPart,
    Tensors,
    every_part_has,
)
from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, TENSORS, Histogram

# Dropping all bits but the sign, the exponent and the two leading bits of the mantissa numbers the bins, four an
# octave, from zero outwards on either side.
_KEY_SHIFT = 23 - (HISTOGRAM_BINS_PER_OCTAVE.bit_length() - 1)
_KEYS = 2 ** (32 - _KEY_SHIFT)
_FIRST_KEY = (127 + HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE  # keys below it are in the middle bin
_OPEN_KEY = (127 + HISTOGRAM_OCTAVES[1]) * HISTOGRAM_BINS_PER_OCTAVE  # from it on, keys are in the outermost bin
_NONFINITE_KEY = 255 * HISTOGRAM_BINS_PER_OCTAVE

_CACHED_ENTRIES = 2**17
"""Entries counted at a time on a CPU: they stay in the second-level cache of a core."""

_DEVICE_ENTRIES = 2**24
"""Entries counted at a time on a device: an index takes eight bytes of each."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return the counts of each tensor (L, 515) and, as `"*.nonfinite"` (L, 2), its NaNs and infinities."""
    found: Tensors = {}
    if batch.gradient is None:
        return found  # the matrix is sharded, and each process counts its shard
    for name, entries in batch.tensors():
        counts, nan, inf = histogram_counts(entries)
        found |= {name: counts.int(), f"{name}.nonfinite": torch.stack([nan, inf], -1)}
    return found


def merge(parts: Sequence[ShardPart]) -> Arrays:
    """Return the sum of the parts' counts."""
    names = [f"{tensor}{suffix}" for tensor in TENSORS for suffix in ("", ".nonfinite")]
    return {
        name: np.stack([part.arrays[name] for part in parts]).sum(0, dtype=np.int64)
        for name in names
        if every_part_has(parts, name)
    }


def on_host(layers: HostBatch) -> HostResult:
    """Return the histograms of each layer by tensor."""
    tensors = [tensor for tensor in TENSORS if tensor in layers.arrays]
    records = []
    for row in range(len(layers.positions)):
        histograms = {}
        for tensor in tensors:
            nan, inf = map(int, layers.arrays[f"{tensor}.nonfinite"][row])
            histograms[tensor] = Histogram(layers.arrays[tensor][row].astype(np.uint32), nan, inf, layers.step)
        records.append(histograms)
    return HostResult(records=records)


def histogram_counts(entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the counts of tensors (L, n) in the run's fixed bins (L, 515), their NaNs (L,) and infinities (L,).

    The bin follows from a float32's bits by a shift, so an entry on an edge is never misplaced by rounding. Wider
    types are rounded to float32 first.
    """
    if keys.takes(entries):
        counts = keys.leading_counts(entries).long()
        sides = counts.view(-1, 2, _KEYS // 2)  # zero and positive, then negative
        nonfinite = sides[..., _NONFINITE_KEY:].sum((1, 2))
        nan = sides[..., _NONFINITE_KEY + 1 :].sum((1, 2))
    else:
        bits = entries.float().contiguous().view(torch.int32)
        counts = _host_key_counts(bits) if bits.is_cpu else count_indices((bits >> _KEY_SHIFT) & (_KEYS - 1), _KEYS)
        sides = counts.view(-1, 2, _KEYS // 2)
        nonfinite = sides[..., _NONFINITE_KEY:].sum((1, 2))
        clean = bits.is_cpu and not bool(nonfinite.any())
        nan = nonfinite if clean else torch.isnan(entries).sum(-1)
    middle = sides[..., :_FIRST_KEY].sum((1, 2)).unsqueeze(-1)
    positive, negative = sides[..., _FIRST_KEY:_OPEN_KEY].unbind(1)
    above, below = sides[..., _OPEN_KEY:_NONFINITE_KEY].sum(-1, keepdim=True).unbind(1)
    return torch.cat([below, negative.flip(-1), middle, positive, above], -1), nan, nonfinite - nan


def count_indices(index: Tensor, size: int) -> Tensor:
    """Return how many entries of each row (L, n) have each index below `size`: (L, size)."""
    counts = torch.zeros(len(index), size, dtype=torch.int64, device=index.device)
    one = torch.ones((), dtype=torch.int64, device=index.device)
    width = max(1, _DEVICE_ENTRIES // max(1, len(index)))
    for part in index.split(width, 1):
        counts.scatter_add_(1, part.long(), one.expand_as(part))
    return counts


def _host_key_counts(bits: Tensor) -> Tensor:
    rows = bits.numpy().view(np.uint32)
    counts = np.zeros((len(rows), _KEYS), np.int64)
    for row, count in zip(rows, counts, strict=True):
        for start in range(0, len(row), _CACHED_ENTRIES):
            count += np.bincount(row[start : start + _CACHED_ENTRIES] >> _KEY_SHIFT, minlength=_KEYS)
    return torch.from_numpy(counts)


HISTOGRAM = Quantity("histogram", "histograms", on_device, on_host, merge)
