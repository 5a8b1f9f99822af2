"""When a sentinel fires, and how often the flight recorder answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from root_dash.monitor.limits.flight import FACTOR, FLIGHT_STEPS, FREE_FIRINGS, LONGEST_HOLD, Alarm, Flight, hold
from root_dash.monitor.quantities.sentinels import NONE
from root_dash.monitor.sentinels.gradients import Reading
from root_dash.monitor.sentinels.rows import Held, SentinelRow

WATCHED = (Held(0), Held(3))


def row(step: int, norms: list[float], entries: list[float] | None = None) -> SentinelRow:
    """What was read of two layers."""
    values = np.array([norms, norms if entries is None else entries])
    return SentinelRow(step, WATCHED, ((slice(None), Reading(values)),))


def heard(alarm: Alarm, values: list[float], steps: int) -> list[tuple[int, str] | None]:
    """What the alarm says of the same values in several steps."""
    return [alarm.heard(row(step, values)) for step in range(steps)]


def test_a_steady_or_a_falling_gradient_never_fires() -> None:
    """Nor does a slow rise by orders of magnitude, nor the noise of training."""
    draw = np.random.default_rng(0)
    alarm = Alarm()
    for step in range(2000):
        size = math.exp(-step / 300) if step < 1000 else math.exp((step - 2000) / 300)
        noise = np.exp(draw.normal(size=2))
        assert alarm.heard(row(step, (size * noise).tolist())) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_fires_and_the_next_do_not(value: float) -> None:
    """Until the layer was finite again."""
    alarm = Alarm()
    assert alarm.heard(row(1, [1.0, value])) == (3, "has a gradient that is not finite")
    assert heard(alarm, [1.0, value], 5) == [None] * 5
    assert alarm.heard(row(7, [1.0, 1.0])) is None
    assert alarm.heard(row(8, [1.0, value])) is not None


def test_a_norm_or_an_entry_far_beyond_its_recent_range_fires_once() -> None:
    """Far is `FACTOR` times; the first steps of a layer are not judged, and a layer without a gradient is no change."""
    alarm = Alarm()
    assert alarm.heard(row(0, [1.0, 1.0])) is None
    assert alarm.heard(row(1, [1.0, 2 * FACTOR])) is None
    for values in ([1.0, 1.0], [1.0, NONE]):
        assert heard(alarm, values, 500) == [None] * 500
    assert heard(alarm, [1.0, 1.0], 100) == [None] * 100
    assert alarm.heard(row(600, [1.0, 1.0], [2.1 * FACTOR, 1.0])) == (
        0,
        "has a gradient beyond 100 times its recent range",
    )
    assert alarm.heard(row(601, [1.0, 1.0], [2.1 * FACTOR, 1.0])) is None


def test_a_flight_has_a_fixed_length_and_tells_its_steps() -> None:
    """A firing within it is part of it."""
    flight = Flight()
    assert flight.fire(10, "a layer fires")
    assert not flight.fire(12, "another layer fires")
    active = [step for step in range(1, 100) if flight.active(step)]
    assert active == [step for step in range(1, 10 + FLIGHT_STEPS)]
    assert flight.ended(10 + FLIGHT_STEPS - 2) is None
    text = flight.ended(10 + FLIGHT_STEPS - 1)
    assert text is not None
    assert text.startswith("a layer fires: steps 10 to 41 were all recorded")
    assert flight.ended(10 + FLIGHT_STEPS) is None


def test_what_fires_all_the_time_is_held_back_longer_and_longer() -> None:
    """In many steps a handful of flights: their share of the steps falls towards 1 / 4,096."""
    flight, flown = Flight(), 0
    for step in range(1, 200_000):
        flown += flight.fire(step, "")
        flight.ended(step)
    assert FREE_FIRINGS < flown < 20
    assert [hold(n) for n in (1, 2, 3, 4, 5, 100)] == [1, 1, 1, 2, 4, LONGEST_HOLD]


def test_a_flight_that_the_end_cuts_short_tells_its_last_step() -> None:
    """The loop raised, or the run was closed."""
    flight = Flight()
    assert flight.stop(5) is None
    flight.fire(10, "a layer fires")
    text = flight.stop(12)
    assert text is not None
    assert "steps 10 to 12 were" in text
