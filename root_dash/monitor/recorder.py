"""The recorder: it attaches to optimizers, keeps the cadence, and hands measured steps to the writer.

The training run comes first: a failure of the recorder is caught, counted and shown once, nothing waits for the device
or the disk, and no tensor of the training is written to.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.changed_weights import ChangedWeights
from root_dash.monitor.failures import Failures, print_to_stderr
from root_dash.monitor.group_scalars import group_scalars
from root_dash.monitor.guarded import guarded
from root_dash.monitor.limits.budget import MAX_OVERHEAD, MAX_OVERHEAD_CPU
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.pace import Pace, lightest
from root_dash.monitor.logged import Log
from root_dash.monitor.measure import Memory, measure
from root_dash.monitor.new_layers import NewLayerFinder, describe_new_layers
from root_dash.monitor.open_frame import OpenFrame
from root_dash.monitor.optimizers.adapter import Adapter, RecorderHooks
from root_dash.monitor.optimizers.generic import has_closure
from root_dash.monitor.optimizers.registry import adapter_for
from root_dash.monitor.quantities.changes import CHANGES
from root_dash.monitor.quantities.quantity import DEFAULT_LIMITS, LayerBatch, MeasureLimits, Quantity
from root_dash.monitor.quantities.registry import QUANTITIES
from root_dash.monitor.sentinels.lookout import Lookout
from root_dash.monitor.skipped import SkippedSteps
from root_dash.monitor.status import RecorderStatus, VerdictKeeper
from root_dash.monitor.writing.drain import Drain
from root_dash.monitor.writing.sigterm import drain_on_termination, forget
from root_dash.monitor.writing.sink import NullSink, Sink
from root_dash.monitor.writing.writer import DEFAULT_LIMITS as DEFAULT_WRITER_LIMITS
from root_dash.monitor.writing.writer import HEAVIEST_FIRST, RankLink, Writer, WriterLimits
from root_dash.records import Event, Kind

DRAIN_SECONDS = 60.0
"""How long `close` waits for frames to be stored before it reports how many are missing."""

INTERRUPTED_SECONDS = 5.0
"""How long `close` waits after Ctrl-C."""

STAGGERED_ENTRIES = 2**22
"""Entries of a model from which on the kinds begin staggered: the first steps would be the dearest of the run."""


class Recorder(RecorderStatus):
    """What `watch` returns: records the steps of the optimizers until it is closed, each kind at its cadence.

    Use the recorder as a context manager, or call `close` yourself; otherwise it is closed when the process exits. With
    several optimizers, each steps at most once in a step: a new step begins when one of them steps again. A step's
    frame is complete when something is logged, or when the next step begins.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        positions: Mapping[Tensor, int],
        begin: Callable[[], Sink],
        *,
        cadence: Cadence,
        outlier_quantile: float,
        max_overhead: float | None = None,
        link: RankLink | None = None,
        forwards: bool = False,
        new_layers: NewLayerFinder | None = None,
        limits: MeasureLimits = DEFAULT_LIMITS,
        writer_limits: WriterLimits = DEFAULT_WRITER_LIMITS,
        quantities: Sequence[Quantity] = QUANTITIES,
        alerts: VerdictKeeper | None = None,
        seed: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        """Attach to the optimizers, and then begin the run: if anything before fails, nothing is begun or attached.

        Args:
            optimizers: what to record, in the order in which they step.
            positions: the place of each parameter among the run's layers.
            begin: begins the run, and returns where frames go.
            cadence: the interval of each kind in steps.
            outlier_quantile: the quantile of |M| at which outliers are counted if the optimizer takes none itself.
            max_overhead: the share of a step's time that recording may add; None for the default of the device.
            link: joins the processes that hold shards.
            forwards: whether this process measures for another process, and stores nothing.
            new_layers: finds layers that come later; None leaves them out of the recording.
            limits: how much is measured exactly, copied, and measured at a time.
            writer_limits: how much waits to be stored, and for how long.
            quantities: what is measured.
            alerts: keeps the verdicts of the run; None if nobody judges it.
            seed: chooses the steps that remain of a thinned cadence; all processes of a run have the same.
            names: the layers' names by position, for events.
        """
        self.step = 0
        """The last step begun, from 1; 0 before the first."""
        self._positions = dict(positions)
        self._on_cpu = all(parameter.is_cpu for parameter in self._positions)
        if max_overhead is None:
            max_overhead = MAX_OVERHEAD_CPU if self._on_cpu else MAX_OVERHEAD
        entries = sum(parameter.numel() for parameter in self._positions)
        self._pace = Pace(cadence, max_overhead, seed, staggered=entries > STAGGERED_ENTRIES)
        self._lookout = Lookout(names)
        self._log = Log()
        self._outlier_quantile = outlier_quantile
        self._limits = limits
        self._quantities = quantities
        self._alerts = alerts
        self._failures = Failures()
        self._new_layers = new_layers
        self._writer = Writer(NullSink(), link, quantities, writer_limits)
        self._frame = OpenFrame(
            self._writer,
            self._pace.meter,
            self._lookout.kept,
            joins=link is not None,
            forwards=forwards,
            charges_writer=self._on_cpu,
        )
        self._forwards = forwards
        self._process = os.getpid()
        self._begun = False
        self._closed = False
        self._due: frozenset[Kind] = frozenset()
        self._asked: frozenset[Kind] = frozenset()
        self._memory: Memory = {}
        self._optimizers = optimizers
        self._handles: list[Any] = []
        self._stepped: set[int] = set()
        self._late = False
        self._failures_before = 0
        # Neither keeps the recorder alive once its optimizers and the user have let go of it.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        self._drain = Drain(self._writer, self._lookout.kept)
        weakref.finalize(self, self._drain.release).atexit = False
        try:
            atexit.register(self._at_exit)
            for index, optimizer in enumerate(optimizers):
                self._attach(optimizer, index)
            for optimizer in optimizers if forwards else ():
                self._handles.append(optimizer.register_step_post_hook(lambda *_: self._seal_early(len(optimizers))))
            drain_on_termination(self._drain)
            self._writer.sink = begin()
            self._begun = True
        except BaseException:
            self.close(INTERRUPTED_SECONDS)
            raise

    def log(self, **scalars: float | Tensor) -> None:
        """Record numbers with the last finished step, such as `loss=loss`; a tensor is not waited for.

        A value that is not a single number is counted as a failure of recording and left out. Never raises.
        """
        if not self._forwards:
            self._take_log(scalars)

    def capture_masks(self) -> None:
        """Record the exact outlier masks of the next step too, whatever the cadence says.

        If parameters are sharded, all processes have to call this.
        """
        self._asked = frozenset({"masks"})

    def close(self, timeout: float = DRAIN_SECONDS) -> None:
        """Store the frames that wait, for at most `timeout` seconds, and detach from the optimizers.

        Closing a recorder that is closed does nothing.
        """
        if self._closed or os.getpid() != self._process:
            return
        self._seal_safely()
        self._closed = True
        atexit.unregister(self._at_exit)
        self._new_layers = None  # it holds the model
        self._lookout.detach()
        for handle in self._handles:
            handle.remove()
        try:
            stored = self._writer.close(timeout)
        finally:
            forget(self._drain)
        if self._writer.pending:
            print_to_stderr(f"root-dash: gave up on {self._writer.pending} frames that could not be stored in time")
        elif not stored:
            print_to_stderr("root-dash: all frames are stored, but the end of the recording was not waited for")
        elif self.lost:
            print_to_stderr(f"root-dash: {self.lost} frames were lost, {self.stored} stored")

    def __reduce__(self) -> tuple[Callable[[], Recorder], tuple[()]]:
        """Copy as a closed recorder, which records nothing: a spawned process may get one with its dataset."""
        return closed_recorder, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(INTERRUPTED_SECONDS if kind is KeyboardInterrupt else DRAIN_SECONDS)

    def _attach(self, optimizer: Optimizer, index: int) -> None:
        adapter = adapter_for(optimizer)
        self._lookout.attach(adapter, self._positions)
        # The first of the hooks: it hands over the frame of the step before, and reads the sentinels, which may fire.
        self._handles.append(
            optimizer.register_step_pre_hook(lambda _, args, kwargs: self._enter(index, has_closure(args, kwargs)))
        )
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._leave(index)))
        hooks = RecorderHooks(
            positions=self._positions,
            outlier_quantile=self._outlier_quantile,
            limits=self._limits,
            due=lambda: self._due,
            prepare=lambda look, device: self._prepare(look, device) if self._due else None,
            measure=lambda batches_of: self._measure(batches_of) if self._due else None,
            note=self._note,
            step=lambda: self.step,
        )
        weights = ChangedWeights(adapter, self._positions)
        skipped = SkippedSteps(optimizer, index)
        self._frame.skipped.append(skipped)
        # The weights are sampled before the adapter's hooks, and compared after its measurement. In most steps of a
        # small model nothing is due: a hook then costs no more than to look.
        self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._sample(weights) if self._due else None))
        self._handles.extend(adapter.attach(hooks))
        self._handles.append(
            optimizer.register_step_post_hook(
                lambda *_: self._look_back(weights, adapter, skipped) if self._due or skipped.may_look else None
            )
        )

    def _enter(self, index: int, makes_gradients: bool) -> None:
        """Begin a new step if an optimizer is about to step that is the first, or has stepped already.

        An optimizer that entered its step and did not leave it has not stepped: the step failed and is tried again, or
        its `step` calls the `step` of its parent class, which has the same hooks.
        """
        begins = not self.step or index in self._stepped
        if begins:
            self._stepped.clear()
            if not self.active and self._is_open:
                self._writer.count_lost()
        self._late = makes_gradients
        self._begin_and_read(begins, None if makes_gradients else index)

    def _leave(self, index: int) -> None:
        """Note that an optimizer has stepped. If the step itself made the gradients, they are read now."""
        self._stepped.add(index)
        if self._late:
            self._late = False
            self._begin_and_read(False, index)

    @guarded("to begin a step")
    def _begin_and_read(self, begins: bool, index: int | None) -> None:
        """Begin a step, if a step begins, and read the gradients of an optimizer, if they are there."""
        try:
            if begins:
                self._begin()
        finally:
            if index is not None and self._pace.budget.asked.statistics:
                self._read(index)

    def _read(self, index: int) -> None:
        """Read the sentinels of an optimizer; if one fires, every step is recorded for a while."""
        for reason in self._lookout.read(index, self.step, self._positions):
            if self._pace.flight.fire(self.step, reason):
                self._due |= self._pace.of_flight(self.step)
                self._frame.unsealed = True

    @guarded("to log")
    def _take_log(self, scalars: Mapping[str, Any]) -> None:
        started = time.perf_counter()
        if not (self._log.breaks(scalars) or self._frame.measured or self._frame.flushes or self._pace.logs(self.step)):
            return
        values = self._log.numbers(scalars)
        alone = not (self._frame.measured or self._frame.flushes)
        self._frame.seal(values, self.step, self._due)
        if alone:
            self._pace.meter.charge("scalars", time.perf_counter() - started)

    def _begin(self) -> None:
        entered = time.perf_counter()
        if self._failures.count == self._failures_before:
            self._failures.clear()
        self._failures_before = self._failures.count
        self.step += 1
        due = self._due
        try:
            self._frame.seal({}, self.step - 1, due)
        finally:
            self._due, events = self._pace.due(self.step, self._writer.fill)
            self._due |= self._asked
            self._asked = frozenset()
            # Another process waits for what was read here, and takes it along with frames that it alone chooses.
            self._frame.flushes = self._forwards or self._lookout.kept.wait_too_long
            self._frame.unsealed = bool(self._due) or self._frame.flushes
        events += self._pace.settle(due, self.step, entered)
        self._frame.events += events
        if self._due and self._new_layers is not None:
            layers, places = self._new_layers.find(self._positions)
            self._positions |= places
            if places:
                self._lookout.extend(layers, self._positions)
            if layers:
                self._writer.announce(layers)
                self._frame.events.append(Event("layers", describe_new_layers(layers), self.step, time.time()))

    @guarded("to read the gradients")
    def _prepare(self, look: Callable[[frozenset[Kind]], object], device: torch.device) -> None:
        if self._due:
            with self._pace.meter.timed(lightest(self._due), device):
                look(self._due)

    @guarded("to sample the weights")
    def _sample(self, weights: ChangedWeights) -> None:
        if CHANGES in self._quantities and "statistics" in self._due:
            with self._pace.meter.timed("statistics", weights.device):
                weights.before()

    @guarded("to look back at a step")
    def _look_back(self, weights: ChangedWeights, adapter: Adapter, skipped: SkippedSteps) -> None:
        """Compare the weights, and read with which options the optimizer stepped, and whether it did."""
        skipped.look()
        if "statistics" in self._due:
            with self._pace.meter.timed("statistics", weights.device):
                weights.after(self._frame.measured)
                before = takewhile(lambda one: one is not adapter.optimizer, self._optimizers)
                self._frame.options |= group_scalars(adapter, sum(len(one.param_groups) for one in before))

    @guarded("to note what an optimizer tells")
    def _note(self, event: Callable[[], Event]) -> None:
        self._frame.events.append(event())

    @guarded("to measure a step")
    def _measure(self, batches_of: Callable[[], Iterator[LayerBatch]]) -> None:
        batches = batches_of()
        try:
            while self._due and (batch := next(batches, None)) is not None:
                timed = functools.partial(self._pace.meter.timed, device=batch.seen.device)
                # Under the user's autocast our matmuls would be done in half precision.
                with torch.autocast(batch.seen.device.type, enabled=False):
                    self._frame.measured.append(
                        measure(
                            batch,
                            self._due,
                            timed,
                            self._give_up,
                            limits=self._limits,
                            quantities=self._quantities,
                            memory=self._memory,
                        )
                    )
                del batch  # before the next is made
        except torch.OutOfMemoryError as error:
            self._give_up("statistics", error)

    def _give_up(self, kind: Kind, error: Exception) -> None:
        """Leave a kind that the device has no memory for, and all heavier kinds, out of the rest of the step."""
        self._due -= frozenset(HEAVIEST_FIRST[: HEAVIEST_FIRST.index(kind) + 1])
        self._failures.add(f"to measure {kind}", error)

    @guarded("to hand over a frame")
    def _seal_early(self, optimizers: int) -> None:
        """Hand over the frame once all optimizers have stepped: another process waits for what was measured here."""
        if len(self._stepped) == optimizers:
            self._frame.seal({}, self.step, self._due)

    @guarded("to hand over the last frame")
    def _seal_safely(self) -> None:
        self._frame.flushes = True
        self._frame.events += self._pace.end(self.step)
        self._frame.seal({}, self.step, self._due)


def _close_if_alive(recorder: weakref.ref[Recorder]) -> None:
    alive = recorder()
    if alive is not None:
        interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
        alive.close(INTERRUPTED_SECONDS if interrupted else DRAIN_SECONDS)


def closed_recorder() -> Recorder:
    """Return a recorder that does nothing, whatever is done to it."""
    recorder = Recorder((), {}, NullSink, cadence=Cadence(), outlier_quantile=1.0)
    recorder.close()
    return recorder
