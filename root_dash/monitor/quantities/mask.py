"""Outlier masks on the host: from packed bits to totals, a map and the overlap with the mask before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.records import CountArray, Mask

MAP_SIZE = 64
"""The pooled map has at most so many blocks a side."""

Packed = NDArray[np.uint8]


def mask_of(
    packed: Packed, largest: NDArray[np.int64], largest_values: NDArray[np.float32], rows: int, cols: int, step: int
) -> Mask:
    """The mask record of packed bits (⌈rows·cols / 8⌉,) and the flat indices of the largest entries."""
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
    """The statistics of kind `"masks"`; `before` is the layer's packed mask recorded last, if any."""
    return {
        "outlier_row_share": worst_share(mask.row_totals),
        "outlier_col_share": worst_share(mask.col_totals),
        "mask_overlap": math.nan if before is None else jaccard(packed, before),
    }


def worst_share(totals: CountArray) -> float:
    """Share of all outliers that the worst 1 % of rows (at least one) hold; 0 where there are none."""
    total = int(totals.sum(dtype=np.int64))
    worst = math.ceil(0.01 * totals.size)
    return float(np.partition(totals, -worst)[-worst:].sum(dtype=np.int64)) / total if total else 0.0


def jaccard(first: Packed, second: Packed) -> float:
    """|first ∩ second| / |first ∪ second| of two packed masks; 1 where both are empty."""
    union = _population(first | second)
    return _population(first & second) / union if union else 1.0


def _population(packed: NDArray[Any]) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _starts(length: int) -> NDArray[np.int64]:
    blocks = min(length, MAP_SIZE)
    return np.arange(blocks) * length // blocks
