"""A bounded queue of measured steps, and the thread that stores them as frames."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from root_dash.exceptions import StoreBusy, StoreError
from root_dash.monitor.failures import Failures, print_to_stderr
from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.quantities.quantity import Quantity
from root_dash.monitor.quantities.registry import QUANTITIES
from root_dash.monitor.ranks.merge import Joined, merged
from root_dash.monitor.writing.pending import PendingFrame, assembled, groups_of
from root_dash.monitor.writing.sink import Sink
from root_dash.records import Event, Frame, Kind, Layer

HEAVIEST_FIRST: tuple[Kind, ...] = ("spectra", "masks", "quantiles", "histograms", "statistics")


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """How much waits to be stored, and for how long storing is tried.

    Args:
        queue_bytes: the host memory that waiting frames may hold, beside the frame being stored. Further frames are
            lost, and counted.
        first_retry: seconds before storing is tried again if the store is locked or its disk is full.
        longest_retry: the longest such pause; pauses double up to it.
        release_seconds: how long a store that another process holds is tried again after the last frame, if nobody
            waits for the recording to end.
        report_seconds: the least time between two messages on stderr about a store that cannot be written. The
            recording itself tells of every such time.
    """

    queue_bytes: int = 64 * 2**20
    first_retry: float = 0.1
    longest_retry: float = 5.0
    release_seconds: float = 60.0
    report_seconds: float = 60.0


DEFAULT_LIMITS = WriterLimits()


class RankLink(Protocol):
    """Joins the measurements of several processes to one frame. Only the writer's thread uses it."""

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """Return what remains to be stored here of a step, given what was measured here."""

    def close(self) -> None:
        """Tell the other processes that no more frames come."""

    def abandon(self) -> None:
        """Stop waiting for other processes. This is the one call that another thread makes."""


class Writer:
    """Owns the thread that waits for copies, assembles frames and appends them to the sink, in order.

    In a forked process it does nothing: thread, queue and sink belong to the parent.
    """

    def __init__(
        self,
        sink: Sink,
        link: RankLink | None = None,
        quantities: Sequence[Quantity] = QUANTITIES,
        limits: WriterLimits = DEFAULT_LIMITS,
    ) -> None:
        self.limits = limits
        self.failures = Failures()
        self.sink = sink
        """Where frames go. Replaced before the first frame, or never."""
        self._link = link
        self._quantities = quantities
        self._reported_at = -math.inf
        self._waiting: deque[PendingFrame] = deque()
        self._new_layers: list[Layer] = []
        self._bytes = 0
        self._unstored = 0
        self._changed = threading.Condition()
        self._closing = False
        self._deadline = math.inf
        self.stored = 0
        self.lost = 0
        self._lost_recorded = 0
        self._process = os.getpid()
        _writers.add(self)
        self._thread = threading.Thread(target=self._run, name="root-dash-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Frames handed over and not yet stored."""
        return self._unstored

    @property
    def fill(self) -> float:
        """The share of the queue's memory that is taken, 0 to 1."""
        return self._bytes / self.limits.queue_bytes

    def count_lost(self) -> None:
        """Count a frame that was lost before it reached the queue."""
        if self._in_fork():
            return
        with self._changed:
            self.lost += 1

    def announce(self, layers: Sequence[Layer]) -> None:
        """Take layers that the sink does not know, before the first frame that names them."""
        if self._in_fork():
            return
        with self._changed:
            self._new_layers.extend(layers)

    def put(self, pending: PendingFrame) -> None:
        """Hand a frame over; if the queue is full, the frame is lost and counted.

        The caller never waits for longer than a lock takes.
        """
        if self._in_fork():
            return
        with self._changed:
            if self._closing or (self._waiting and self._bytes + pending.nbytes > self.limits.queue_bytes):
                self.lost += 1
                return
            self._waiting.append(pending)
            self._bytes += pending.nbytes
            self._unstored += 1
            self._changed.notify()

    def release(self, timeout: float | None = None) -> None:
        """Let the thread store what waits and end the recording, in `timeout` seconds, without waiting for it.

        None takes `WriterLimits.release_seconds`.
        """
        if self._in_fork():
            return
        seconds = self.limits.release_seconds if timeout is None else timeout
        with self._changed:
            self._closing = True
            self._deadline = min(self._deadline, time.monotonic() + seconds)
            self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Store what waits, for at most `timeout` seconds; return whether all was stored and ended."""
        self.release(timeout)
        if not self._in_fork():
            self._thread.join(timeout)
            if self._link is not None and self._thread.is_alive():
                self._link.abandon()
                self._thread.join(1.0)
        return not self._thread.is_alive()

    def leave_to_parent(self) -> None:
        """In a forked process: never wait for a lock that a parent's thread held, nor let the sink be closed."""
        self._changed = threading.Condition()
        self._unstored = 0
        _sinks_of_parents.append(self.sink)

    def _in_fork(self) -> bool:
        return os.getpid() != self._process

    def _run(self) -> None:
        on_one_thread()
        assembler = Assembler(self._quantities)
        seq = 0
        while (pending := self._next()) is not None:
            stored = not self.failures.gave_up and self._store(assembler, pending, seq)
            with self._changed:
                self._unstored -= 1
                self.stored += stored
                self.lost += not stored
            seq += 1  # also of a frame that failed: a gap in the numbers is a lost frame
        closing = [self._end, self.sink.close]
        for close in closing if self._link is None else [*closing, self._link.close]:
            try:  # each, whatever became of the others: other processes may wait for the last
                close()
            except Exception as error:
                self.failures.add("to end the recording", error)

    def _store(self, assembler: Assembler, pending: PendingFrame, seq: int) -> bool:
        started = time.thread_time()
        try:
            arrays = pending.arrival.wait()
            joined = self._join(pending, groups_of(pending, arrays))
            lost = self.lost
            frame = assembled(assembler, pending, joined, arrays, seq, lost - self._lost_recorded)
            self._append(frame)
            if pending.step_cost is not None:
                pending.step_cost.writer = (pending.charge, time.thread_time() - started)
        except Exception as error:
            self.failures.add("to store a frame", error)
            if self.failures.gave_up and self._link is not None:
                self._link.abandon()  # the other processes would wait to be heard
            return False
        self._lost_recorded = lost
        self.failures.clear()
        return True

    def _join(self, pending: PendingFrame, groups: Sequence[LayerGroup]) -> Joined:
        """Return what is to be stored of a frame; a frame that lacks another process's part counts as lost too."""
        if self._link is None or not pending.joins:
            return Joined(merged([groups], self._quantities))
        joined = self._link.join(pending.step, groups)
        with self._changed:
            self.lost += joined.lost
        return joined

    def _append(self, frame: Frame) -> None:
        """Append to the sink, however often that has to be tried.

        Meanwhile frames wait in the queue and, once it is full, are lost and counted. The frame itself has an event
        about the wait.
        """
        began, latest = time.monotonic(), frame

        def store() -> None:
            self._extend()
            self.sink.append(latest)

        def report(error: StoreError) -> None:
            nonlocal latest
            if latest is frame:
                self._report_waiting(error)
            text = f"nothing could be stored for {time.monotonic() - began:.1f} s: {error}"
            latest = replace(frame, events=(*frame.events, Event("queue", text, frame.step, time.time())))

        self._retry(store, report)

    def _end(self) -> None:
        """End the run in the sink, however often that has to be tried."""
        now = time.time()
        self._retry(lambda: self.sink.end(now, self.lost - self._lost_recorded), self._report_waiting)

    def _retry(self, work: Callable[[], None], report: Callable[[StoreError], None]) -> None:
        """Repeat the work while the store fails: a lock is let go, a disk is emptied.

        Once the writer is closing, a lock is waited for until the deadline, and any other failure is the last.
        """
        pause = self.limits.first_retry
        while True:
            closing, began = self._closing, time.monotonic()
            try:
                return work()
            except StoreError as error:
                now = time.monotonic()
                again = now + pause + (now - began) <= self._deadline  # as long as the last try took
                if closing and not (isinstance(error, StoreBusy) and again):
                    raise
                report(error)
                with self._changed:
                    if closing:  # only a caller with less patience notifies any more
                        self._changed.wait(pause)
                    elif self._changed.wait_for(lambda: self._closing, pause):
                        pause = self.limits.first_retry / 2
                pause = min(2 * pause, self.limits.longest_retry)

    def _extend(self) -> None:
        with self._changed:
            layers = tuple(self._new_layers)
        if layers:
            self.sink.extend(layers)
            with self._changed:
                del self._new_layers[: len(layers)]

    def _report_waiting(self, error: StoreError) -> None:
        if time.monotonic() - self._reported_at >= self.limits.report_seconds:
            self._reported_at = time.monotonic()
            print_to_stderr(f"root-dash: recording waits, training goes on, it is tried again and again: {error}")

    def _next(self) -> PendingFrame | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            pending = self._waiting.popleft()
            self._bytes -= pending.nbytes
            return pending


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()

_sinks_of_parents: list[Sink] = []
"""In a forked process, the sinks of its parents. Closing one would release locks and merge files of the parent."""


def _leave_to_parent() -> None:
    for writer in list(_writers):
        writer.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def on_one_thread() -> None:
    """Let torch compute on one core in the calling thread, and in no other: the cores belong to the training.

    On two cores that train, the eigenvectors of a matrix of 128 x 128 took 1 ms of processor time on one thread, and up
    to 80 ms on two threads that wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that begin hereafter
    restore = threading.Thread(target=torch.set_num_threads, args=(threads,))  # of later threads, but not of this one
    restore.start()
    restore.join()
