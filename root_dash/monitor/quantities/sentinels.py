"""Sentinels: norm and largest entry of every layer's gradient at every step, whatever is thinned.

They are taken of the gradients themselves, not of a batch of layers (`root_dash.monitor.sentinels.gradients`), and
wait on the host for the next row of statistics. That row has their extremes and the steps of these. Between the
processes that hold shards the norms of each step are merged, and then the extremes are taken, so that they are those
of the whole layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from root_dash.monitor.quantities.quantity import (
    Arrays,
    HostBatch,
    HostResult,
    LayerBatch,
    Quantity,
    ShardPart,
    Tensors,
)
from root_dash.records import Float64Array, IntArray

NONE = -1.0
"""The norm, and the largest entry, of a layer that had no gradient at a step."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return nothing: a batch has the gradient of one step only."""
    return {}


def merge(parts: Sequence[ShardPart]) -> Arrays:
    """Return `"steps"`, `"norm"` and `"entry"`, each (L, K), of the whole layers over the K steps of all parts.

    A layer has no gradient at a step if one of its parts has none.
    """
    steps = np.unique(np.concatenate([part.arrays["steps"].ravel() for part in parts]))
    rows = len(parts[0].arrays["steps"])
    norms, entries = np.full((2, len(parts), rows, len(steps)), NONE)
    for index, part in enumerate(parts):
        for row in range(rows):
            places = np.searchsorted(steps, part.arrays["steps"][row])
            norms[index, row, places] = part.arrays["norm"][row]
            entries[index, row, places] = part.arrays["entry"][row]
    missing = (entries == NONE).any(0)
    return {
        "steps": np.tile(steps, (rows, 1)),
        "norm": np.where(missing, NONE, np.linalg.norm(norms, axis=0)),
        "entry": np.where(missing, NONE, entries.max(0)),  # NaN if a part has one
    }


def on_host(layers: HostBatch) -> HostResult:
    """Return the extremes over the K steps of `"steps"`, `"norm"` and `"entry"`, each (L, K), with their steps."""
    steps, norm, entry = (layers.arrays[name] for name in ("steps", "norm", "entry"))
    seen = entry != NONE
    broken = seen & ~finite(norm, entry)
    count = broken.sum(1).astype(np.float64)
    ever = seen.any(1)
    statistics = {
        "nonfinite_steps": np.where(ever, count, np.nan),
        "nonfinite_step": np.where(count > 0, steps[np.arange(len(steps)), broken.argmax(1)], np.nan),
    }
    for name, values, worst in (
        ("norm_peak", norm, -np.inf),
        ("norm_trough", norm, np.inf),
        ("entry_peak", entry, -np.inf),
    ):
        value, step = _extreme(values, steps, seen & ~broken, worst)
        statistics |= {name: value, f"{name}_step": step}
    return HostResult(statistics)


def finite(norm: Float64Array, entry: Float64Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return whether gradients of these norms and largest entries were finite. A norm may overflow by itself."""
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = np.isfinite(entry) & ~np.isnan(norm)
    return found


def _extreme(
    values: Float64Array, steps: IntArray, counted: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], worst: float
) -> tuple[Float64Array, Float64Array]:
    """Return the extreme of the values (L, K) that count, and its first step: NaN if none counts."""
    rows = np.arange(len(values))
    candidates = np.where(counted, values, worst)
    place = candidates.argmax(1) if worst < 0 else candidates.argmin(1)
    any_counts = counted.any(1)
    return np.where(any_counts, candidates[rows, place], np.nan), np.where(any_counts, steps[rows, place], np.nan)


SENTINELS = Quantity(
    "sentinels",
    "statistics",
    on_device,
    on_host,
    merge,
    (
        *("nonfinite_steps", "nonfinite_step", "norm_peak", "norm_peak_step", "norm_trough", "norm_trough_step"),
        *("entry_peak", "entry_peak_step"),
    ),
)
