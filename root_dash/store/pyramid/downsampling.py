"""From rows to points of a figure: which row counts, and which points are kept. Pure functions."""

from __future__ import annotations

import numpy as np

from root_dash.records import Float64Array, IntArray


def newest(layers: IntArray, steps: IntArray, attempts: IntArray, frames: IntArray) -> IntArray:
    """Return the indices of the rows that count, by layer and ascending step.

    If a layer's step was recorded more than once, the last frame of the newest attempt counts.
    """
    order = np.lexsort((frames, attempts, steps, layers))
    same = (np.diff(layers[order]) == 0) & (np.diff(steps[order]) == 0)
    return order[np.append(~same, True)] if len(order) else order


def in_order(layers: IntArray, steps: IntArray) -> bool:
    """Return whether each layer's steps ascend without a repetition: nothing was recorded twice."""
    return bool(np.all((np.diff(steps) > 0) | (np.diff(layers) != 0)))


def decimate(values: Float64Array, max_points: int) -> IntArray:
    """Return the ascending indices of at most `max_points` points with the look of all points.

    The points are divided into equal buckets. The first, the last, the least and the largest point of each bucket stay,
    so that no spike is lost.

    Raises:
        ValueError: `max_points` is less than 4.
    """
    if max_points < 4:
        raise ValueError(f"max_points must be at least 4, got {max_points}")
    if len(values) <= max_points:
        return np.arange(len(values))
    starts = np.arange(max_points // 4) * len(values) // (max_points // 4)
    ends = np.append(starts[1:], len(values)) - 1
    kept = [starts, ends]
    missing = np.isnan(values)
    for extreme, filling in ((np.maximum, -np.inf), (np.minimum, np.inf)):
        filled = np.where(missing, filling, values)
        widths = ends - starts + 1
        reached = (filled == np.repeat(extreme.reduceat(filled, starts), widths)) & ~missing
        places = np.where(reached, np.arange(len(values)), len(values))
        first = np.minimum.reduceat(places, starts)
        kept.append(first[first < len(values)])
    return np.unique(np.concatenate(kept))


def spread(count: int, max_points: int) -> IntArray:
    """Return at most `max_points` of `count` indices, evenly apart, the first and the last among them.

    Raises:
        ValueError: `max_points` is less than 1.
    """
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    if count <= max_points:
        return np.arange(count)
    if max_points == 1:
        return np.array([count - 1])
    return np.arange(max_points) * (count - 1) // (max_points - 1)
