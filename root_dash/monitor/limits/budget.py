"""What recording may cost, and which kinds are recorded less often if it costs more.

The cost of a kind is the time that it takes of the training each time, divided by its interval. The sum of all costs is
compared with the time of a step without recording. While the sum is above the budget, the interval of the costliest
kind is doubled; while there is room, a doubling is taken back. So the steps that remain are some of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Literal

from root_dash.monitor.limits.cadence import Cadence
from root_dash.records import Kind

Charge = Kind | Literal["sentinels", "flushes"]
"""What a cost is charged to: a kind, the sentinels and the recorder's own steps, or the frames of sentinels alone."""

MAX_OVERHEAD = 0.01
"""The share of a step's time that recording may add if the model trains on a device of its own."""

MAX_OVERHEAD_CPU = 0.03
"""The share of a step's time that recording may add on a CPU, whose cores the writer shares with the training."""

PATIENCE = 12
"""Steps between two changes, and before the first: the measurements of these steps show what the last change did."""

THINNED: tuple[Kind, ...] = ("spectra", "masks", "quantiles", "histograms")
"""The kinds that are recorded less often before the statistics are."""

LONGEST = 2**10
"""The largest factor by which an interval grows."""

LONGEST_SCALARS = 2**6
"""The largest such factor for what is logged, which costs little: a loss with fewer points is no curve."""

FLUSHED_SECONDS = 10.0
"""Seconds after which the sentinels get a frame of their own if no other frame takes them along."""

STAGGER = 4
"""The factor by which the intervals of a large model are longer at first, until the costs are known."""

_TARGET = 0.7
"""The share of the budget that thinning aims at, and that a doubling which is taken back must stay below.

A training loses more than is measured here: a fifth more if the demo's tiny model is measured in every step.
"""
_NEGLIGIBLE = 0.1
"""The share of the budget below which a kind is not thinned: thinning it would gain nothing but gaps."""
_COST_CAP = 4.0
"""A measurement of a kind's cost counts for at most this many times the usual cost."""
_STEP_TIME_CAP = 1.25
"""A step's time counts for at most this many times the usual time: validation now and then is not part of a step."""
_COST_WEIGHT = 0.25
"""The weight of the newest measurement of a kind's cost."""
_STEP_TIME_WEIGHT = 1 / 16
"""The weight of the newest measurement of a step's time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each kind is recorded for the time being, and what is known of its cost.

    `limit` is the share of a step's time that recording may add. `asked` is the cadence that was asked for, and
    `cadence` is the cadence that is kept. `costs` are the seconds that each kind takes when it is recorded, and
    `step_time` is the seconds of a step without recording.
    """

    limit: float
    asked: Cadence
    cadence: Cadence
    costs: Mapping[Charge, float] = field(default_factory=dict)
    seen: Mapping[Charge, int] = field(default_factory=dict)
    """How often each kind was measured. Once is not enough: caches and libraries are cold the first time."""
    step_time: float = 0.0
    first: tuple[float, ...] = ()
    """The times of the first steps, whose median `step_time` is at first: some of these steps compile or load."""
    steps: int = 0
    since_change: int = 0
    exhausted: bool = False
    """Whether recording costs more than the limit, and nothing is left to thin."""

    @property
    def overhead(self) -> float:
        """The share of a step's time that recording adds at this cadence; 0 before the share is known."""
        return _overhead(self, self.cadence)


def begun(limit: float, asked: Cadence, *, staggered: bool = False) -> Budget:
    """Return the state before the first step. If the kinds begin `staggered`, each is rare until its cost is known."""
    if not staggered or limit == math.inf:
        return Budget(limit, asked, asked)
    return Budget(
        limit,
        asked,
        Cadence(**{kind: STAGGER * every for kind, every in asdict(asked).items()} | {"scalars": asked.scalars}),
    )


def next_cadence(state: Budget, cost: Mapping[Charge, float], step_time: float) -> Budget:
    """Return the state after one more step.

    Args:
        state: the state before the step.
        cost: seconds by what they are charged to.
        step_time: seconds of the step, `cost` not included.
    """
    costs, seen = dict(state.costs), dict(state.seen)
    first = state.first if len(state.first) == PATIENCE else (*state.first, step_time)
    if first is state.first:
        step_time = _updated(state.step_time, step_time, _STEP_TIME_CAP, _STEP_TIME_WEIGHT)
    else:
        step_time = median(first)
    for kind, seconds in cost.items():
        count = seen.get(kind, 0)
        costs[kind] = seconds if count < 2 else _updated(costs[kind], seconds, _COST_CAP, _COST_WEIGHT)
        seen[kind] = count + 1
    state = replace(
        state,
        costs=costs,
        seen=seen,
        first=first,
        step_time=step_time,
        steps=state.steps + 1,
        since_change=state.since_change + 1,
    )
    if not state.since_change or state.since_change % PATIENCE:
        return state
    cadence = _thinned(state)
    exhausted = _overhead(state, cadence) > state.limit
    if cadence == state.cadence:
        cadence = _relaxed(state)
    if cadence == state.cadence:
        return state if exhausted == state.exhausted else replace(state, exhausted=exhausted)
    return replace(state, cadence=cadence, since_change=0, exhausted=exhausted)


def describe_cadence(before: Budget, after: Budget) -> str:
    """Return a sentence for people on how the cadence changed between two states."""
    was, now = asdict(before.cadence), asdict(after.cadence)
    changes = ", ".join(
        f"{kind} every {now[kind]} steps (before: {was[kind]})" for kind in now if now[kind] != was[kind]
    )
    cost = _overhead(after, before.cadence)
    return f"{changes}: recording added {cost:.1%} to a step, the budget is {after.limit:.1%}"


def describe_exhaustion(state: Budget) -> str:
    """Return a sentence for people on a budget that cannot be kept."""
    fixed = _shares(state, state.cadence).get("sentinels", 0.0)
    return (
        f"recording adds {state.overhead:.1%} to a step, more than the budget of {state.limit:.1%}: the sentinels of "
        f"every step come before the budget and take {fixed:.1%}; all else is as rare as it gets"
    )


def _updated(old: float, new: float, cap: float, weight: float) -> float:
    return old + weight * (min(new, cap * old) - old)


def _overhead(state: Budget, cadence: Cadence) -> float:
    return sum(_shares(state, cadence).values())


def _shares(state: Budget, cadence: Cadence) -> dict[Charge, float]:
    """Return the share of a step's time by kind; kinds that were measured only once are left out."""
    if not state.step_time:
        return {}
    return {
        charge: seconds * rate / state.step_time
        for charge, seconds in state.costs.items()
        if state.seen[charge] > 1 and (rate := _rate(state, cadence, charge))
    }


def _rate(state: Budget, cadence: Cadence, charge: Charge) -> float:
    """Return how often a cost comes, in times a step."""
    if charge == "sentinels":
        return 1.0
    if charge == "flushes":
        return min(1.0, state.step_time / FLUSHED_SECONDS)
    asked = state.asked
    every = cadence.of(charge)
    rate = 1.0 / every if every else 0.0
    if charge == "statistics" and every > asked.statistics:
        # They come along with the kinds that are not thinned: see `jitter.recorded`.
        whole = [asked.of(kind) for kind in THINNED if asked.of(kind) and cadence.of(kind) == asked.of(kind)]
        rate += (1.0 - rate) * max((1.0 / one for one in whole if one % asked.statistics == 0), default=0.0)
    return rate


def _thinned(state: Budget) -> Cadence:
    cadence = state.cadence
    if _overhead(state, cadence) <= state.limit:
        return cadence
    while _overhead(state, cadence) > _TARGET * state.limit:
        shares = _shares(state, cadence)
        thinned: tuple[Kind, ...] = (*THINNED, "scalars")
        costly: list[Kind] = [kind for kind in thinned if shares.get(kind, 0.0) > _NEGLIGIBLE * state.limit]
        longer = next(
            (
                doubled
                for kind in [*sorted(costly, key=lambda kind: -shares[kind]), "statistics"]
                if (doubled := _scaled(state, cadence, kind, 2)) is not None
            ),
            None,
        )
        if longer is None:
            break
        cadence = longer
    return cadence


def _relaxed(state: Budget) -> Cadence:
    """Return the cadence with one doubling less: of the statistics or, if none is left, of the cheapest kind."""
    shares = _shares(state, state.cadence)
    rest: tuple[Kind, ...] = (*THINNED, "scalars")
    for kind in ["statistics", *sorted(rest, key=lambda kind: shares.get(kind, 0.0))]:
        shorter = _scaled(state, state.cadence, kind, 0.5)
        if shorter is not None and _overhead(state, shorter) <= _TARGET * state.limit:
            return shorter
    return state.cadence


def _scaled(state: Budget, cadence: Cadence, kind: str, factor: float) -> Cadence | None:
    """Return the cadence with a kind's interval doubled or halved.

    If that left other kinds to steps without statistics, their intervals are doubled too. None if the kind is never
    due, if its interval is at the end of its range, or if the kind itself were left to steps without statistics.
    """
    asked, interval = getattr(state.asked, kind), int(getattr(cadence, kind) * factor)
    if not asked or not asked <= interval <= asked * (LONGEST_SCALARS if kind == "scalars" else LONGEST):
        return None
    scaled = replace(cadence, **{kind: interval})
    if factor < 1:
        return None if _apart(state.asked, scaled) else scaled
    while apart := _apart(state.asked, scaled):
        scaled = replace(scaled, **{other: 2 * scaled.of(other) for other in apart})
    return scaled


def _apart(asked: Cadence, cadence: Cadence) -> list[Kind]:
    """Return the kinds that were asked for in steps with statistics, and would come in steps without.

    Without statistics they cost more: gradients and momenta are gathered all the same.
    """
    every = cadence.statistics
    return [kind for kind in THINNED if every and asked.of(kind) % asked.statistics == 0 and cadence.of(kind) % every]
