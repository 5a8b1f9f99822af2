"""Baselines: median and MAD of a row's own healthy past, bounds that hold, and nothing learned from a fault."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from root_dash.health import baseline
from root_dash.health.baseline import Baselines


def feed(baselines: Baselines, values: np.ndarray) -> list[baseline.Judgement]:
    """Judge samples (steps, rows, columns), the first at step 1."""
    return [baselines.judge(step, sample) for step, sample in enumerate(values, 1)]


def one(floor: float = 0.5, direction: int = 0, tracking: float = baseline.TRACKING) -> Baselines:
    """Return baselines of one row and one column."""
    return Baselines(1, np.array([floor]), np.array([direction]), tracking=tracking)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=baseline.OPENING + baseline.SMOOTHING, max_size=200))
def test_median_and_deviation_are_those_of_the_last_window(samples: list[float]) -> None:
    """An independent computation in plain Python, of everything that was learned, gives the same numbers."""
    baselines = one(floor=1e6, tracking=0.0)  # nothing is beyond: all is learned
    feed(baselines, np.array(samples)[:, None, None])
    smoothed = [
        statistics.median(samples[end - baseline.SMOOTHING : end])
        for end in range(baseline.SMOOTHING, len(samples) + 1)
    ]
    # The row's turn comes with every `STAGGER`-th sample; the last one counts.
    candidates = []
    for end in range(max(baseline.OPENING, len(smoothed) - baseline.STAGGER), len(smoothed) + 1):
        latest = smoothed[max(0, end - baseline.WINDOW) : end]
        window = [float(np.float32(value - smoothed[0])) + smoothed[0] for value in latest]
        median = statistics.median(window)
        mad = statistics.median(abs(value - median) for value in window)
        candidates.append((median, baseline.MAD_TO_SIGMA * mad))
    found = float(baselines.usual[0, 0]), float(baselines.sigma[0, 0])
    assert any(found == pytest.approx(candidate, abs=1e-12) for candidate in candidates)


def test_a_shift_begins_once_and_is_dated_back_to_its_first_sample() -> None:
    """Two smoothed samples beyond the bound begin a fault, whose `since` is the first sample that was shifted."""
    rng = np.random.default_rng(0)
    values = 0.1 * rng.normal(size=(200, 1, 1))
    values[120:] += 3.0
    baselines = one()
    judged = feed(baselines, values)
    begun = [step for step, one in enumerate(judged, 1) if one.begun.any()]
    assert begun == [124]
    assert baselines.since[0, 0] == 121


def test_a_trend_neither_is_a_fault_nor_hides_one() -> None:
    """Along a line the deviation stays that of the noise, so that a shift of ten deviations is found."""
    rng = np.random.default_rng(0)
    values = 0.1 * rng.normal(size=(260, 1, 1)) + 0.05 * np.arange(260)[:, None, None]
    values[200:] += 1.5
    baselines = one()
    judged = feed(baselines, values)
    assert [step for step, one in enumerate(judged, 1) if one.begun.any()] == [204]
    assert baselines.since[0, 0] == 201


def test_a_single_sample_is_no_fault() -> None:
    """However large one sample is, the median of five does not move."""
    values = 0.1 * np.random.default_rng(0).normal(size=(300, 1, 1))
    values[100::20] = 1e6
    assert not any(one.begun.any() for one in feed(one(), values))


def test_a_fault_is_not_learned() -> None:
    """While a shift lasts, the median stays what it was; after the shift has ended, the fault ends."""
    values = 0.1 * np.random.default_rng(0).normal(size=(300, 1, 1))
    values[120:200] += 3.0
    baselines = one()
    judged = feed(baselines, values[:200])
    assert abs(baselines.median[0, 0]) < 0.1
    assert baselines.open[0, 0]
    ended = [step for step, one in enumerate(feed_on(baselines, values[200:], 201), 201) if one.ended.any()]
    assert len(ended) == 1
    assert ended[0] <= 200 + baseline.CALM + baseline.SMOOTHING
    assert sum(one.begun.any() for one in judged) == 1


def feed_on(baselines: Baselines, values: np.ndarray, first: int) -> list[baseline.Judgement]:
    """Judge further samples from a step on."""
    return [baselines.judge(step, sample) for step, sample in enumerate(values, first)]


def test_a_level_that_stays_becomes_the_usual_one() -> None:
    """After `RELEARN` samples beyond the bound the fault ends and the new level is learned."""
    values = 0.1 * np.random.default_rng(0).normal(size=(120 + baseline.RELEARN + 100, 1, 1))
    values[120:] += 3.0
    baselines = one()
    judged = feed(baselines, values)
    assert sum(one.ended.any() for one in judged) == 1
    assert baselines.usual[0, 0] == pytest.approx(3.0, abs=0.1)
    assert sum(one.begun.any() for one in judged) == 1


def test_what_all_rows_do_is_no_rows_fault() -> None:
    """A shift of all rows is taken out; a shift of one row is not."""
    rng = np.random.default_rng(0)
    values = 0.1 * rng.normal(size=(200, 6, 1))
    values[120:] += 3.0
    baselines = Baselines(6, np.array([0.5]), np.array([0]))
    assert not any(one.begun.any() for one in feed(baselines, values))
    values[120:] -= 3.0
    values[120:, 2] += 3.0
    judged = feed(Baselines(6, np.array([0.5]), np.array([0])), values)
    assert {int(i) for one in judged for i in np.flatnonzero(one.begun[:, 0])} == {2}


@pytest.mark.parametrize(
    ("direction", "shift", "fault"), [(1, 3.0, True), (1, -3.0, False), (-1, -3.0, True), (0, -3.0, True)]
)
def test_only_the_asked_for_direction_counts(direction: int, shift: float, fault: bool) -> None:
    """A rise is no fault of a column that looks for falls."""
    values = 0.1 * np.random.default_rng(0).normal(size=(200, 1, 1))
    values[120:] += shift
    assert any(one.begun.any() for one in feed(one(direction=direction), values)) == fault


def test_what_is_missing_is_neither_judged_nor_learned() -> None:
    """NaN samples leave the baseline as it is, and the samples around them are consecutive."""
    values = 0.1 * np.random.default_rng(0).normal(size=(200, 1, 1))
    values[120:] += 3.0
    gaps = np.insert(values, np.arange(0, 200, 2), math.nan, axis=0)
    plain, gapped = one(), one()
    begun = [int(j.begun.sum()) for j in feed(plain, values)]
    assert sum(int(j.begun.sum()) for j in feed(gapped, gaps)) == sum(begun) == 1


def test_memory_does_not_grow() -> None:
    """The arrays have the same size after a thousand samples as before the first one."""
    baselines = one()
    before = sum(array.nbytes for array in baselines.state().values())
    feed(baselines, np.random.default_rng(0).normal(size=(1000, 1, 1)))
    assert sum(array.nbytes for array in baselines.state().values()) == before


def test_a_state_of_other_rows_is_refused() -> None:
    """The shape tells."""
    with pytest.raises(ValueError, match="must have the shape"):
        Baselines(2, np.array([0.5]), np.array([0])).restore(one().state())
