"""What recording may cost, and which kinds are recorded less often where it costs more.

A kind costs what it takes of the training each time, divided by its interval. These are added up and held against the
time of a step without recording; while they are more than the budget, the interval of the kind that costs the most is
doubled, and while there is room for it, a doubling is taken back. The steps that remain are some of those before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from root_dash.monitor.limits.cadence import Cadence
from root_dash.records import Kind

PATIENCE = 12
"""Steps between two changes, and before the first: what was measured until then says what the last one did."""

THINNED: tuple[Kind, ...] = ("spectra", "masks", "quantiles", "histograms")
"""The kinds that are recorded less often before the statistics are."""

LONGEST = 2**10
"""By how much an interval grows at most."""

LONGEST_STATISTICS = 2**4
"""The same of the statistics: a map with fewer columns does not say since when a layer is sick."""

_ROOM = 0.7
"""Of the budget: what thinning comes down to, since a training loses more than is measured here (a fifth more, where
the demo's tiny model is measured in every step), and what a doubling that is taken back must stay below."""
_WORTH = 0.1
"""Of the budget: a kind that takes less is not thinned, since there is nothing to gain but gaps."""
_SPIKE = 4.0  # times what was usual: a single measurement counts for no more
_PAUSE = 1.25
"""The same of a step's time: what a loop does now and then, such as to validate, is not part of a step."""
_MEMORY = 0.25  # the weight of the newest measurement of a kind
_STEP_MEMORY = 1 / 16


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each kind is recorded for the time being, and what is known of its cost.

    `limit` is the share of a step's time that recording may add; `asked` is the cadence that was asked for, `cadence`
    the one that is kept. `costs` are seconds each time, `step_time` the seconds of a step without recording.
    """

    limit: float
    asked: Cadence
    cadence: Cadence
    costs: Mapping[Kind, float] = field(default_factory=dict)
    seen: Mapping[Kind, int] = field(default_factory=dict)
    """How often each kind was measured. Once is not enough: the first time, caches and libraries are cold."""
    step_time: float = 0.0
    first: tuple[float, ...] = ()
    """The times of the first steps, whose median it is until there are enough: some compile, or load."""
    steps: int = 0
    since_change: int = 0

    @property
    def overhead(self) -> float:
        """The share of a step's time that recording adds at this cadence; 0 before it is known."""
        return _overhead(self, self.cadence)


def next_cadence(state: Budget, cost: Mapping[Kind, float], step_time: float) -> Budget:
    """The state after one more step.

    Args:
        state: before the step.
        cost: seconds that each kind took which was due in the step; under `"scalars"` what belongs to none.
        step_time: seconds of the step, `cost` not included.
    """
    costs, seen = dict(state.costs), dict(state.seen)
    first = state.first if len(state.first) == PATIENCE else (*state.first, step_time)
    if first is state.first:
        step_time = _updated(state.step_time, step_time, _PAUSE, _STEP_MEMORY)
    else:
        step_time = median(first)
    for kind, seconds in cost.items():
        count = seen.get(kind, 0)
        costs[kind] = seconds if count < 2 else _updated(costs[kind], seconds, _SPIKE, _MEMORY)
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
    if state.since_change < PATIENCE:
        return state
    cadence = _thinned(state)
    if cadence == state.cadence:
        cadence = _relaxed(state)
    return state if cadence == state.cadence else replace(state, cadence=cadence, since_change=0)


def change(before: Budget, after: Budget) -> str:
    """A sentence on what changed between two states, for people."""
    was, now = asdict(before.cadence), asdict(after.cadence)
    changes = ", ".join(
        f"{kind} every {now[kind]} steps (before: {was[kind]})" for kind in now if now[kind] != was[kind]
    )
    cost = _overhead(after, before.cadence)
    return f"{changes}: recording added {cost:.1%} to a step, the budget is {after.limit:.1%}"


def _updated(old: float, new: float, spike: float, memory: float) -> float:
    return old + memory * (min(new, spike * old) - old)


def _overhead(state: Budget, cadence: Cadence) -> float:
    return sum(_shares(state, cadence).values())


def _shares(state: Budget, cadence: Cadence) -> dict[Kind, float]:
    """Of a step's time, by kind; what was measured only once is left out."""
    if not state.step_time:
        return {}
    return {
        kind: seconds / every / state.step_time
        for kind, seconds in state.costs.items()
        if state.seen[kind] > 1 and (every := cadence.of(kind))
    }


def _thinned(state: Budget) -> Cadence:
    cadence = state.cadence
    if _overhead(state, cadence) <= state.limit:
        return cadence
    while _overhead(state, cadence) > _ROOM * state.limit:
        shares = _shares(state, cadence)
        costly: list[Kind] = [kind for kind in THINNED if shares.get(kind, 0.0) > _WORTH * state.limit]
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
    """One doubling less, the statistics' first and then that of the kind which is the cheapest."""
    shares = _shares(state, state.cadence)
    for kind in ["statistics", *sorted(THINNED, key=lambda kind: shares.get(kind, 0.0))]:
        shorter = _scaled(state, state.cadence, kind, 0.5)
        if shorter is not None and _overhead(state, shorter) <= _ROOM * state.limit:
            return shorter
    return state.cadence


def _scaled(state: Budget, cadence: Cadence, kind: str, factor: float) -> Cadence | None:
    """The cadence with a kind's interval doubled or halved, and with it those of kinds that it would leave alone.

    None where it is never due, at the end of its range, or would itself be left alone.
    """
    asked, interval = getattr(state.asked, kind), int(getattr(cadence, kind) * factor)
    longest = LONGEST_STATISTICS if kind == "statistics" else LONGEST
    if not asked or not asked <= interval <= asked * longest:
        return None
    scaled = replace(cadence, **{kind: interval})
    if factor < 1:
        return None if _apart(state.asked, scaled) else scaled
    while apart := _apart(state.asked, scaled):
        scaled = replace(scaled, **{other: 2 * scaled.of(other) for other in apart})
    return scaled


def _apart(asked: Cadence, cadence: Cadence) -> list[Kind]:
    """The kinds that were asked for in steps that have statistics, and would come in others.

    Alone they cost more: gradients and momenta are gathered for them all the same.
    """
    every = cadence.statistics
    return [kind for kind in THINNED if every and asked.of(kind) % asked.statistics == 0 and cadence.of(kind) % every]
