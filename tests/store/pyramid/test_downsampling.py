"""Which rows count, and which points are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.store.pyramid.downsampling import decimate, in_order, newest, spread

numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(numbers, max_size=300), st.integers(4, 60))
def test_decimation_keeps_the_ends_and_all_extremes(values: list[float], max_points: int) -> None:
    """At most `max_points` points stay, with the first, the last, the least and the largest among them."""
    array = np.array(values, np.float64)
    kept = decimate(array, max_points)
    assert len(kept) <= max_points
    assert np.all(np.diff(kept) > 0)
    if len(values):
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
        if not np.isnan(array).all():
            assert np.nanmax(array[kept]) == np.nanmax(array)
            assert np.nanmin(array[kept]) == np.nanmin(array)


def test_decimation_keeps_a_single_spike() -> None:
    """One outlier among ten thousand points survives."""
    values = np.zeros(10_000)
    values[7_777] = 9
    assert 7_777 in decimate(values, 40)


def test_decimation_refuses_too_few_points() -> None:
    """Fewer than four points cannot hold the ends and the extremes."""
    with pytest.raises(ValueError, match="max_points must be at least 4, got 3"):
        decimate(np.zeros(9), 3)


@given(st.integers(0, 500), st.integers(1, 60))
def test_spread_keeps_the_last(count: int, max_points: int) -> None:
    """Evenly spread indices ascend, are at most `max_points`, and end with the last index."""
    kept = spread(count, max_points)
    assert len(kept) == min(count, max_points)
    assert np.all(np.diff(kept) > 0)
    if count:
        assert kept[-1] == count - 1
    if count and max_points > 1:
        assert kept[0] == 0


def test_the_newest_attempt_counts() -> None:
    """If a step was recorded twice, the newer attempt counts, even if its frame was stored earlier."""
    layers, steps = np.zeros(4, np.int64), np.array([1, 2, 2, 3])
    attempts, frames = np.array([1, 1, 2, 2]), np.array([1, 9, 5, 6])
    assert newest(layers, steps, attempts, frames).tolist() == [0, 2, 3]
    assert not in_order(layers, steps)
    assert in_order(np.array([1, 1, 2]), np.array([1, 2, 1]))
    assert newest(*(np.empty(0, np.int64),) * 4).tolist() == []
