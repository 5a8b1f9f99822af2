"""Which kinds are recorded at a step: as asked, as the budget allows, and as the store can keep up with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from root_dash.monitor.failures import print_to_stderr
from root_dash.monitor.limits import jitter
from root_dash.monitor.limits.backpressure import Backpressure, describe_backpressure, leave_out, next_backpressure
from root_dash.monitor.limits.budget import PATIENCE, Charge, begun, describe_cadence, describe_exhaustion, next_cadence
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.cost_meter import CostMeter
from root_dash.monitor.limits.flight import Flight
from root_dash.records import KINDS, Event, Kind

TOGETHER = 8
"""Steps without any kind whose costs are settled together."""

AHEAD = 64
"""Steps for which it is looked up at once what is due."""

_NOTHING: frozenset[Kind] = frozenset()
_LOG: frozenset[Kind] = frozenset({"scalars"})


class Pace:
    """Keeps a recorder's cadence, and what is known of its cost; events tell what changes.

    Args:
        cadence: the interval of each kind as asked for.
        max_overhead: the share of a step's time that recording may add.
        seed: chooses the steps that remain of a thinned cadence; all processes of a run have the same.
        staggered: whether the kinds are rare until their costs are known.
    """

    def __init__(self, cadence: Cadence, max_overhead: float, seed: int = 0, *, staggered: bool = False) -> None:
        self.budget = begun(max_overhead, cadence, staggered=staggered)
        self.meter = CostMeter()
        self.flight = Flight()
        self.spent = 0.0
        """Seconds that recording took of the training thread in this step."""
        self.left_out = 0
        """How many recordings of a kind were left out because the store could not keep up."""
        self._seed = seed
        self._staggered = staggered and max_overhead < math.inf
        self._backpressure = Backpressure()
        self._began = math.nan
        self._exhausted = False
        self._looked_up: Cadence | None = None
        self._looked_until = 0
        self._due_at: dict[int, frozenset[Kind]] = {}
        self._alone: list[tuple[float, float]] = []

    def due(self, step: int, fill: float) -> tuple[frozenset[Kind], list[Event]]:
        """Return the kinds to record at a step if `fill` of the queue is taken, and the events of a change."""
        events = self._told("flight", self.flight.ended(step - 1), step)
        if self.flight.active(step):
            due = self.of_flight(step)
        elif step == 1 and self._staggered:
            due = frozenset()
        else:
            due = self._ahead(step) - _LOG
        before = self._backpressure
        if not before.kinds and fill == 0.0:
            return due, events
        self._backpressure = next_backpressure(before, fill)
        text = describe_backpressure(before, self._backpressure)
        kept, self._backpressure = leave_out(self._backpressure, due)
        self.left_out += len(due) - len(kept)
        return kept, events + self._told("queue", text, step)

    def end(self, step: int) -> list[Event]:
        """Return the event of a flight that ends because the recording ends after a step."""
        return self._told("flight", self.flight.stop(step), step)

    def _told(self, kind: str, text: str | None, step: int) -> list[Event]:
        return [] if text is None else [Event(kind, text, step, time.time())]

    def of_flight(self, step: int) -> frozenset[Kind]:
        """Return the kinds to record at a step of a flight: statistics, and the others as they were asked for."""
        asked = self.budget.asked
        return asked.due(step) | {"statistics"} if asked.statistics else asked.due(step)

    def logs(self, step: int) -> bool:
        """Return whether what is logged at a step is recorded, also if nothing else of the step is."""
        return self.flight.active(step) or step == 0 or "scalars" in self._ahead(step)

    def _ahead(self, step: int) -> frozenset[Kind]:
        """Return what is due at a step, the log among it; looked up for some steps ahead at a time."""
        cadence = self.budget.cadence
        if self._looked_up is not cadence or not self._looked_until - AHEAD <= step < self._looked_until:
            self._looked_up, self._looked_until = cadence, step + AHEAD
            self._due_at = jitter.recorded(self.budget.asked, cadence, self._seed, range(step, step + AHEAD))
        return self._due_at.get(step, _NOTHING)

    def settle(self, due: frozenset[Kind], step: int, entered: float | None = None) -> Iterator[Event]:
        """Compare the cost of the last step's recording, of the kinds that were due, with the budget.

        `entered` is the time at which the call that settles began; all since then is recording. None for now.
        """
        now = time.perf_counter()
        before_now = 0.0 if entered is None else now - entered
        spent = self.spent + before_now
        step_time, self._began = now - self._began - spent, now
        self.spent = -before_now  # the whole call will be added when it ends
        if math.isnan(step_time):
            return
        if self.flight.began:
            self.flight.seconds += spent
        if not due and not self.meter.charged and self.budget.steps >= PATIENCE:
            # Steps of sentinels alone are most of the steps of a small model: they are settled several at a time.
            self._alone.append((spent, step_time))
            if len(self._alone) < TOGETHER:
                return
            spent, step_time = (sum(one) / TOGETHER for one in zip(*self._alone, strict=True))
            self._alone.clear()
        self.meter.charge(lightest(due), max(spent - self.meter.total(), 0.0))
        for cost in self.meter.settle(step_time):
            before, self.budget = self.budget, next_cadence(self.budget, cost.by_kind(), cost.step_time)
            if self.budget.cadence != before.cadence:
                yield Event("cadence", describe_cadence(before, self.budget), step, time.time())
            if self.budget.exhausted and not self._exhausted:
                self._exhausted = True
                text = describe_exhaustion(self.budget)
                print_to_stderr(f"root-dash: {text}")
                yield Event("budget", text, step, time.time())


def lightest(due: frozenset[Kind]) -> Charge:
    """Return what is charged for what all kinds need: the lightest kind, which takes no less if it is due alone."""
    return next((kind for kind in KINDS if kind in due), "sentinels")
