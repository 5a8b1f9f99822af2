"""From rows to what a figure can hold: which row counts, which points are kept, which bucket they fall in. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Float64Array, IntArray


def newest(layers: IntArray, steps: IntArray, attempts: IntArray, frames: IntArray) -> IntArray:
    """Indices of the rows that count, by layer and ascending step.

    Where a layer's step was recorded more than once the newest attempt's last frame counts.
    """
    order = np.lexsort((frames, attempts, steps, layers))
    same = (np.diff(layers[order]) == 0) & (np.diff(steps[order]) == 0)
    return order[np.append(~same, True)] if len(order) else order


def in_order(layers: IntArray, steps: IntArray) -> bool:
    """Whether each layer's steps already ascend without a repetition: nothing was recorded twice."""
    return bool(np.all((np.diff(steps) > 0) | (np.diff(layers) != 0)))


def decimate(values: Float64Array, max_points: int) -> IntArray:
    """Indices, ascending, of at most `max_points` points that look as all of them do.

    Of each of equal buckets the first, the last, the least and the largest point stay, so that no spike is lost.

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
    """At most `max_points` of `count` indices, evenly apart, the first and the last among them.

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


def bucket(
    rows: NDArray[np.intp], steps: IntArray, values: Float64Array, height: int, buckets: int
) -> tuple[IntArray, IntArray, Float64Array, int]:
    """A grid of `height` rows: its columns' first steps, last steps, the values, and how many steps were recorded.

    A column holds the same whole number of recorded steps (the last may hold fewer), and of each row's values in it
    the one of largest magnitude, the earliest of equals. `rows` and `steps` say where `values` belong.

    Raises:
        ValueError: `buckets` is less than 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    recorded, place = np.unique(steps, return_inverse=True)
    total = len(recorded)
    width = max(1, -(-total // buckets))
    starts = recorded[::width]
    ends = np.append(recorded[width - 1 :: width], recorded[-1:])[: len(starts)]
    grid = np.full((height, len(starts)), np.nan)
    held = np.flatnonzero(~np.isnan(values))
    # Ascending in magnitude, of equals the earliest last: the last assignment to a cell is the one that stays.
    held = held[np.lexsort((-steps[held], np.abs(values[held])))] if width > 1 else held
    grid[rows[held], place[held] // width] = values[held]
    return starts, ends, grid, total
