"""Which kinds are recorded at a step: as asked, as the budget allows, and as the store can keep up with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from root_dash.monitor.limits.backpressure import Backpressure, describe_backpressure, leave_out, next_backpressure
from root_dash.monitor.limits.budget import Budget, describe_cadence, next_cadence
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.cost_meter import CostMeter
from root_dash.records import KINDS, Event, Kind


class Pace:
    """Keeps a recorder's cadence, and what is known of its cost; events tell what changes."""

    def __init__(self, cadence: Cadence, max_overhead: float) -> None:
        self.budget = Budget(max_overhead, cadence, cadence)
        self.meter = CostMeter()
        self.spent = 0.0
        """Seconds that recording took of the training thread in this step."""
        self.left_out = 0
        """How many recordings of a kind were left out because the store could not keep up."""
        self._backpressure = Backpressure()
        self._began = math.nan

    def due(self, step: int, fill: float) -> tuple[frozenset[Kind], list[Event]]:
        """Return the kinds to record at a step if `fill` of the queue is taken, and the events of a change."""
        due = self.budget.cadence.due(step)
        before, self._backpressure = self._backpressure, next_backpressure(self._backpressure, fill)
        text = describe_backpressure(before, self._backpressure)
        kept, self._backpressure = leave_out(self._backpressure, due)
        self.left_out += len(due) - len(kept)
        return kept, [] if text is None else [Event("queue", text, step, time.time())]

    def settle(self, due: frozenset[Kind], step: int) -> Iterator[Event]:
        """Compare the cost of the last step's recording, of the kinds that were due, with the budget."""
        now, spent = time.perf_counter(), self.spent
        step_time, self._began, self.spent = now - self._began - spent, now, 0.0
        if math.isnan(step_time):
            return
        self.meter.charge(lightest(due), max(spent - self.meter.total(), 0.0))
        for cost in self.meter.settle(step_time):
            before, self.budget = self.budget, next_cadence(self.budget, cost.by_kind(), cost.step_time)
            if self.budget.cadence != before.cadence:
                yield Event("cadence", describe_cadence(before, self.budget), step, time.time())


def lightest(due: frozenset[Kind]) -> Kind:
    """Return the kind that is charged for what all kinds need: due alone, the kind takes no less."""
    return next((kind for kind in KINDS if kind in due), "scalars")
