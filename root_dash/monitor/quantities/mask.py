"""Outlier masks: packed bits and the largest entries from the device; totals, a map and the overlap on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.monitor.quantities.quantity import HostBatch, HostResult, LayerBatch, Quantity, Tensors
from root_dash.records import CountArray, Mask

LARGEST_COUNT = 32
"""How many of the entries of greatest magnitude a mask names by coordinate."""

MAP_SIZE = 64
"""The largest number of blocks on a side of the pooled map."""

Packed = NDArray[np.uint8]
"""The bits of a mask, row-major, eight entries a byte as `np.packbits` packs them: (⌈rows·cols / 8⌉,)."""

_STATISTICS = ("outlier_row_share", "outlier_col_share", "mask_overlap")


def on_device(batch: LayerBatch) -> Tensors:
    """Return thresholds (L,), packed masks (L, bytes), and the `"largest"` entries with their `"values"` (L, ≤ 32)."""
    if batch.momentum is None or batch.threshold is None or min(batch.momentum.shape[1:]) < 2:
        return {}
    momentum = batch.momentum.flatten(1)
    largest, values = largest_entries(momentum)
    return {
        "threshold": batch.threshold.float(),
        "packed": packed_bits(outlier_mask(momentum, batch.threshold)),
        "largest": largest,
        "values": values.float(),
    }


def on_host(layers: HostBatch) -> HostResult:
    """Return the masks and their statistics; the quantity's memory holds each layer's packed mask recorded last.

    A layer whose threshold is NaN is not finite and has no outliers: its record is None.
    """
    columns = {name: np.full(len(layers.positions), np.nan) for name in _STATISTICS}
    records: list[Mask | None] = []
    rows = zip(*(layers.arrays[name] for name in ("threshold", "packed", "largest", "values")), strict=True)
    for row, (position, (threshold, packed, largest, values)) in enumerate(zip(layers.positions, rows, strict=True)):
        if np.isnan(threshold):
            records.append(None)
            continue
        mask = mask_of(packed, largest, values, *layers.shape, layers.step)
        records.append(mask)
        for name, value in mask_statistics(mask, packed, layers.memory.get(position)).items():
            columns[name][row] = value
        layers.memory[position] = packed.copy()  # a view would keep the buffer of the whole frame alive
    return HostResult(columns, records)


def outlier_mask(momentum: Tensor, threshold: Tensor) -> Tensor:
    """Return |M| > ε for momenta (L, n) and thresholds (L,): booleans (L, n)."""
    return momentum.abs() > threshold.unsqueeze(-1)


def packed_bits(mask: Tensor) -> Tensor:
    """Return masks (L, n) as bytes (L, ⌈n / 8⌉), the first entry in the highest bit, as `np.packbits` does."""
    if mask.is_cpu:
        return torch.from_numpy(np.packbits(mask.numpy(), axis=-1))
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    weights = torch.ones(8, dtype=torch.uint8, device=mask.device) << torch.arange(7, -1, -1, device=mask.device).byte()
    return (padded.view(padded.shape[0], -1, 8) * weights).sum(-1, dtype=torch.uint8)


def largest_entries(momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat indices and signed values of the largest magnitudes of momenta (L, n), both (L, ≤ 32)."""
    indices = momentum.abs().topk(min(LARGEST_COUNT, momentum.shape[-1]), dim=-1).indices
    return indices, momentum.gather(-1, indices)


def mask_of(
    packed: Packed, largest: NDArray[np.int64], largest_values: NDArray[np.float32], rows: int, cols: int, step: int
) -> Mask:
    """Return the mask record of packed bits and of the flat indices of the largest entries."""
    dense = np.unpackbits(packed, count=rows * cols).reshape(rows, cols)
    row_totals, col_totals = dense.sum(1, dtype=np.uint32), dense.sum(0, dtype=np.uint32)
    by_rows = np.add.reduceat(dense, _starts(rows), axis=0, dtype=np.uint32)
    pooled = np.add.reduceat(by_rows, _starts(cols), axis=1, dtype=np.uint32)
    return Mask(
        rows=rows,
        cols=cols,
        pooled=pooled,
        row_totals=row_totals,
        col_totals=col_totals,
        largest=np.stack(np.divmod(largest, cols), -1),
        largest_values=largest_values,
        packed=packed.tobytes(),
        step=step,
    )


def mask_statistics(mask: Mask, packed: Packed, before: Packed | None) -> dict[str, float]:
    """Return the statistics of a mask; `before` is the layer's packed mask recorded last, if any."""
    return {
        "outlier_row_share": worst_share(mask.row_totals),
        "outlier_col_share": worst_share(mask.col_totals),
        "mask_overlap": math.nan if before is None else jaccard(packed, before),
    }


def worst_share(totals: CountArray) -> float:
    """Return the share of all outliers that the worst 1 % of rows (at least one) hold; 0 if there are no outliers."""
    total = int(totals.sum(dtype=np.int64))
    worst = math.ceil(0.01 * totals.size)
    return float(np.partition(totals, -worst)[-worst:].sum(dtype=np.int64)) / total if total else 0.0


def jaccard(first: Packed, second: Packed) -> float:
    """Return |first ∩ second| / |first ∪ second| of two packed masks; 1 if both are empty."""
    union = _population(first | second)
    return _population(first & second) / union if union else 1.0


def _population(packed: NDArray[Any]) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _starts(length: int) -> NDArray[np.int64]:
    blocks = min(length, MAP_SIZE)
    return np.arange(blocks) * length // blocks


MASK = Quantity("mask", "masks", on_device, on_host, statistics=_STATISTICS)
