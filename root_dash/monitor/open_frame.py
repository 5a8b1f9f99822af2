"""The frame of the step that is under way: what it has so far, and how it is handed to the writer."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from root_dash.monitor.limits.budget import Charge
from root_dash.monitor.limits.cost_meter import CostMeter
from root_dash.monitor.measure import Measurement
from root_dash.monitor.sentinels.rows import Sentinels
from root_dash.monitor.skipped import SkipCounts, SkippedSteps
from root_dash.monitor.writing.pending import BatchShape, PendingFrame, tensors_to_send
from root_dash.monitor.writing.transfer import send
from root_dash.monitor.writing.writer import HEAVIEST_FIRST, Writer
from root_dash.records import Event, Kind


class OpenFrame:
    """Gathers a step's measurements, events and cost until they are sealed.

    Args:
        writer: takes the sealed frames.
        meter: keeps what the frame costs.
        sentinels: the rows that no frame has taken along yet.
        joins: whether other processes measure something of the step.
        forwards: whether this process measures for another process.
        charges_writer: whether the time of the writer's thread is a cost of the training.
    """

    def __init__(
        self,
        writer: Writer,
        meter: CostMeter,
        sentinels: Sentinels,
        *,
        joins: bool,
        forwards: bool,
        charges_writer: bool,
    ) -> None:
        self.measured: list[Measurement] = []
        self.events: list[Event] = []
        self.options: dict[str, float | Tensor] = {}
        """The options of the parameter groups with which the optimizers stepped."""
        self.skipped: list[SkippedSteps] = []
        """Who counts the skipped steps of each optimizer."""
        self.cost = 0.0
        """Seconds that recording took of the training thread since the frame before."""
        self.unsealed = False
        """Whether the step will have a frame, and has none yet."""
        self.flushes = False
        """Whether the frame takes the sentinels along, also if nothing was measured."""
        self._writer = writer
        self._meter = meter
        self._sentinels = sentinels
        self._joins = joins
        self._forwards = forwards
        self._charges_writer = charges_writer

    def seal(self, scalars: Mapping[str, float | Tensor], step: int, due: frozenset[Kind]) -> None:
        """Hand over the frame of a step with these scalars, or a frame of the scalars alone; nothing if it is empty."""
        if not (scalars or self.measured or self.events or self.unsealed or self.flushes):
            self.cost = 0.0  # most steps of a small model: nothing was recorded but sentinels, which wait
            return
        measured, self.measured = self.measured, []
        options, self.options = self.options, {}
        skips: list[tuple[SkipCounts, Tensor]] = []
        if measured and not self._forwards:
            scalars = {**options, **scalars}
            skips = [counts for one in self.skipped for counts in one.counts()]
        events, self.events = () if self._forwards else tuple(self.events), []
        cost, self.cost = self.cost, 0.0
        joins, self.unsealed = self._joins and self.unsealed, False
        flushes, self.flushes = self.flushes, False
        rows = self._sentinels.take() if measured or flushes or joins else ()
        if not measured and not scalars and not events and not joins and not rows:
            return
        try:
            arrival = send(tensors_to_send(measured, scalars, skips))
        except Exception:
            self._writer.count_lost()
            raise
        # What the writer takes is charged to the heaviest kind, to the sentinels alone, or to the log alone.
        alone: Charge = "flushes" if rows else "scalars"
        pending = PendingFrame(
            step=step,
            time=time.time(),
            batches=tuple(BatchShape(one.positions, one.shape, one.entries) for one in measured),
            arrival=arrival,
            scalars={name: value for name, value in scalars.items() if not isinstance(value, Tensor)},
            cost=cost,
            events=events,
            step_cost=self._meter.current if self._charges_writer else None,
            charge=next((kind for kind in HEAVIEST_FIRST if kind in due), alone) if measured else alone,
            joins=joins,
            sentinels=rows,
        )
        self._meter.current.awaits_writer |= pending.step_cost is not None  # also if more is logged later
        self._writer.put(pending)
