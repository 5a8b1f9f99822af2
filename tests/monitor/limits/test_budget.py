"""The budget, on costs that are made up: what is thinned, in which order, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

import pytest

from root_dash.monitor.limits.budget import LONGEST, PATIENCE, Budget, Charge, describe_cadence, next_cadence
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.cost_meter import WAITING_STEPS, CostMeter
from root_dash.records import Kind

ASKED = Cadence(statistics=1, histograms=10, quantiles=10, spectra=100, masks=100)
CHEAP: dict[Charge, float] = {"statistics": 1e-4, "histograms": 1e-4, "quantiles": 1e-4, "spectra": 1e-4, "masks": 1e-4}
STEP = 0.1
"""Seconds."""


def run(state: Budget, costs: Mapping[Charge, float], steps: int, step_time: float = STEP) -> list[Budget]:
    """The states after each step of a run in which each kind costs the same every time that it is due."""
    states = []
    for _ in range(steps):
        due = state.cadence.due(state.steps + 1)
        state = next_cadence(state, {kind: seconds for kind, seconds in costs.items() if kind in due}, step_time)
        states.append(state)
    return states


def start(limit: float = 0.03) -> Budget:
    """At the first step."""
    return Budget(limit, ASKED, ASKED)


def test_what_is_cheap_is_recorded_as_asked() -> None:
    """A recording that costs less than the budget is not thinned."""
    assert {state.cadence for state in run(start(), CHEAP, 1000)} == {ASKED}


def test_the_overhead_is_the_cost_by_interval_and_step_time() -> None:
    """The costs of all kinds are added up."""
    costs = CHEAP | {"histograms": 4e-3, "spectra": 0.02}
    expected = (1e-4 + (4e-3 + 1e-4) / 10 + (0.02 + 1e-4) / 100) / STEP
    assert run(start(), costs, 1000)[-1].overhead == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["histograms", "quantiles", "spectra", "masks"])
def test_the_kind_that_costs_most_is_thinned_first_and_alone(kind: Kind) -> None:
    """Statistics and the cheap kinds stay as they were asked for, and the budget is kept."""
    interval = getattr(ASKED, kind)
    last = run(start(), CHEAP | {kind: 0.019 * interval * STEP * 4}, 2000)[-1]
    thinned = {name for name, steps in asdict(last.cadence).items() if steps != getattr(ASKED, name)}
    assert thinned == {kind}
    assert last.overhead <= 0.03
    assert getattr(last.cadence, kind) == 4 * interval


def test_statistics_are_thinned_where_they_alone_are_too_much() -> None:
    """A step of 100 ms that takes statistics of 8 ms: every fourth, since a third of the steps is no doubling."""
    last = run(start(), CHEAP | {"statistics": 0.008}, 500)[-1]
    assert last.cadence == Cadence(statistics=4, histograms=20, quantiles=20, spectra=100, masks=100)


def test_steps_that_remain_are_steps_of_the_cadence_that_was_asked_for() -> None:
    """Intervals grow by powers of two, up to an end; what was never recorded is not recorded now."""
    never = Cadence(statistics=3, histograms=0, quantiles=7, spectra=100, masks=0)
    states = run(Budget(0.03, never, never), dict.fromkeys(CHEAP, 1e3), 2000)
    for kind, asked in asdict(never).items():
        factors = {getattr(state.cadence, kind) / asked for state in states if asked}
        assert all(factor <= LONGEST and math.log2(factor).is_integer() for factor in factors)
        if not asked:
            assert getattr(states[-1].cadence, kind) == 0
    assert states[-1].cadence.statistics > 3


def test_what_was_asked_for_together_stays_together() -> None:
    """Histograms in a step without statistics would have gradients and momenta gathered for them alone."""
    for cost in (0.004, 0.008, 0.016, 0.032, 0.064):
        costs = CHEAP | {"statistics": cost, "histograms": 0.01}
        for state in (*run(start(), costs, 500), *run(run(start(), costs, 500)[-1], CHEAP, 500)):
            kinds = {kind: interval for kind, interval in asdict(state.cadence).items() if kind != "scalars"}
            assert all(interval % state.cadence.statistics == 0 for interval in kinds.values())


def test_steps_that_take_longer_bring_the_cadence_back() -> None:
    """When the batch grows, thinned kinds return to the asked interval, one doubling at a time."""
    costly = CHEAP | {"histograms": 0.1, "statistics": 0.004}
    thinned = run(start(), costly, 1000)
    assert thinned[-1].cadence.histograms > ASKED.histograms
    back = run(thinned[-1], costly, 2000, step_time=100 * STEP)
    assert back[-1].cadence == ASKED
    intervals = [state.cadence.histograms for state in back]
    assert all(after in (before, before // 2) for before, after in zip(intervals, intervals[1:], strict=False))


def test_a_cost_at_the_edge_of_the_budget_does_not_swing() -> None:
    """Thinning is taken back only if there is room for it: in a steady state the cadence changes once."""
    for edge in (0.9, 1.01, 1.5, 1.99):
        states = run(start(), CHEAP | {"histograms": 0.03 * edge * 10 * STEP}, 3000)
        changes = sum(before.cadence != after.cadence for before, after in zip(states, states[1:], strict=False))
        assert changes <= 1


def test_a_cold_first_time_and_a_single_spike_are_no_reason_to_thin() -> None:
    """The first step loads libraries, and once a minute something else takes the machine for a second."""
    state = next_cadence(start(), dict.fromkeys(CHEAP, 5.0), 10.0)
    states = run(state, CHEAP, 300)
    spike = next_cadence(states[-1], {"statistics": 1.0}, STEP)
    assert {one.cadence for one in [*states, spike, *run(spike, CHEAP, 200)]} == {ASKED}


@pytest.mark.parametrize("first", [[10.0, 30.0], [0.2, 0.001], [STEP, 5.0, 5.0]])
def test_first_steps_of_another_length_do_not_mislead(first: list[float]) -> None:
    """They compile, or are skipped: by the first decision the time of a step is known well enough to thin."""
    state, costs = start(), CHEAP | {"statistics": 0.008}
    for step_time in first:
        state = next_cadence(state, costs, step_time)
    states = run(state, costs, 2 * PATIENCE)
    assert states[-1].step_time == pytest.approx(STEP, rel=0.2)
    assert states[-1].cadence.statistics == 4


def test_pauses_between_steps_are_not_taken_for_steps() -> None:
    """A validation of twenty steps' time, every tenth step, leaves the time of a step within a few percent."""
    state = start()
    for step in range(300):
        state = next_cadence(state, CHEAP, 20 * STEP if step % 10 == 9 else STEP)
    assert state.step_time == pytest.approx(STEP, rel=0.04)


def test_nothing_changes_before_enough_was_seen() -> None:
    """The cadence does not change in the first steps, nor shortly after the last change."""
    states = [start(), *run(start(), dict.fromkeys(CHEAP, 0.05), 1000)]
    changes = [
        after.steps for before, after in zip(states, states[1:], strict=False) if before.cadence != after.cadence
    ]
    assert changes
    assert changes[0] >= PATIENCE
    assert all(later - earlier >= PATIENCE for earlier, later in zip(changes, changes[1:], strict=False))


def test_thinning_leaves_room_for_what_is_not_measured() -> None:
    """It comes down to seven tenths of the budget, and is not taken back from there to the whole of it."""
    for cost in (0.0061, 0.0063, 0.0095):
        last = run(start(), CHEAP | {"statistics": cost}, 2000)[-1]
        assert 0.01 < last.overhead <= 0.7 * 0.03


def test_an_infinite_budget_keeps_to_the_cadence() -> None:
    """At any cost."""
    assert run(start(math.inf), dict.fromkeys(CHEAP, 10.0), 300)[-1].cadence == ASKED


def test_a_change_is_told_with_its_reason() -> None:
    """What changed, from what to what, the cost and the budget."""
    before, after = start(), run(start(), CHEAP | {"statistics": 0.008}, PATIENCE)[-1]
    assert describe_cadence(before, after) == (
        "statistics every 4 steps (before: 1), histograms every 20 steps (before: 10), "
        "quantiles every 20 steps (before: 10): recording added 8.0% to a step, the budget is 3.0%"
    )


def test_costs_are_settled_in_order_once_the_writer_has_stored_their_frames() -> None:
    """A frame that is still on its way holds up those behind it, and is charged to its heaviest kind when it comes."""
    meter = CostMeter()
    costs = [meter.current]
    meter.charge("statistics", 0.25)
    meter.charge("statistics", 0.5)
    costs[0].awaits_writer = True
    assert list(meter.settle(1.0)) == []
    costs.append(meter.current)
    meter.charge("spectra", 2.0)
    assert list(meter.settle(3.0)) == []
    costs[0].writer = ("statistics", 0.125)
    costs[1].writer = ("spectra", 1.0)
    settled = list(meter.settle(5.0))
    assert settled[:2] == costs
    assert [cost.by_kind() for cost in settled] == [{"statistics": 0.875}, {"spectra": 3.0}, {}]
    assert [cost.step_time for cost in settled] == [1.0, 3.0, 5.0]


def test_a_frame_that_never_comes_does_not_hold_up_the_others_for_ever() -> None:
    """One that was lost, or that waits for a disk: after so many steps the oldest are settled without it."""
    meter = CostMeter()
    for step in range(WAITING_STEPS + 5):
        meter.charge("statistics", float(step))
        meter.current.awaits_writer = True
        settled = [cost.by_kind() for cost in meter.settle(1.0)]
        assert settled == ([] if step < WAITING_STEPS else [{"statistics": float(step - WAITING_STEPS)}])
