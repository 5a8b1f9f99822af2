"""Which kinds are recorded at a step: as asked, as the budget allows, and as the store can keep up with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from root_dash.monitor.limits.backpressure import Crowding, crowded, leave_out, told
from root_dash.monitor.limits.budget import Budget, change, next_cadence
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.cost_meter import Meter
from root_dash.records import KINDS, Event, Kind


class Pace:
    """Keeps a recorder's cadence, and what is known of its cost; what changes is told in events."""

    def __init__(self, cadence: Cadence, max_overhead: float) -> None:
        self.budget = Budget(max_overhead, cadence, cadence)
        self.meter = Meter()
        self.spent = 0.0
        """Seconds that recording took of the training thread in this step."""
        self.left_out = 0
        """How many recordings of a kind were left out since the store could not keep up."""
        self._crowding = Crowding()
        self._began = math.nan

    def due(self, step: int, fill: float) -> tuple[frozenset[Kind], list[Event]]:
        """The kinds to record at a step, where `fill` of the queue's room is taken."""
        due = self.budget.cadence.due(step)
        before, self._crowding = self._crowding, crowded(self._crowding, fill)
        text = told(before, self._crowding)
        kept, self._crowding = leave_out(self._crowding, due)
        self.left_out += len(due) - len(kept)
        return kept, [] if text is None else [Event("queue", text, step, time.time())]

    def settle(self, due: frozenset[Kind], step: int) -> Iterator[Event]:
        """Hold what the last step's recording cost, of the kinds that were due, against the budget."""
        now, spent = time.perf_counter(), self.spent
        step_time, self._began, self.spent = now - self._began - spent, now, 0.0
        if math.isnan(step_time):
            return
        self.meter.charge(lightest(due), max(spent - self.meter.total(), 0.0))
        for bill in self.meter.settle(step_time):
            before, self.budget = self.budget, next_cadence(self.budget, bill.costs(), bill.step_time)
            if self.budget.cadence != before.cadence:
                yield Event("cadence", change(before, self.budget), step, time.time())


def lightest(due: frozenset[Kind]) -> Kind:
    """To which of the kinds that are due is charged what all need: where it is due alone, it takes no less."""
    return next((kind for kind in KINDS if kind in due), "scalars")
