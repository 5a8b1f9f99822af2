"""A bounded queue and its thread: what was measured goes in, stored frames come out at the sink."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray

from root_dash.exceptions import StoreBusy, StoreError
from root_dash.monitor.failures import Failures, print_to_stderr
from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.limits.cost_meter import Bill
from root_dash.monitor.quantities.quantity import Quantity
from root_dash.monitor.quantities.registry import QUANTITIES
from root_dash.monitor.ranks.merge import Joined, merged
from root_dash.monitor.writing.transfer import Arrival
from root_dash.records import Event, Frame, Kind, Layer

QUEUE_BYTES = 64 * 2**20
"""The host memory that waiting frames may hold, beside the one being stored; what comes on top is lost, and counted."""

FRAME_BYTES, PART_BYTES = 512, 320
"""What a waiting frame holds beside its arrays (463 were measured), and each of these beside its entries (286)."""

RETRY_SECONDS = (0.1, 5.0)
"""The first and the longest pause before storing is tried again, where the store is locked or its disk full."""

PATIENCE_SECONDS = 60.0
"""How long a store that another process holds is tried again once no more frames come, where nobody waits for it."""

SAID_SECONDS = 60.0
"""How long nothing more is said on stderr of a store that cannot be written; the recording itself tells each time."""

HEAVIEST_FIRST: tuple[Kind, ...] = ("spectra", "masks", "quantiles", "histograms", "statistics")


class Sink(Protocol):
    """Where frames go. Used by the writer's thread alone."""

    def append(self, frame: Frame) -> object:
        """Store a frame, whole or not at all; storing it again changes nothing."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Take layers that the run did not have at its start, before the first frame that names them."""

    def end(self, time: float, lost: int) -> None:
        """Say that no more frames will come, and how many were lost since the last that was stored."""

    def close(self) -> None:
        """Release what the sink holds."""


class Link(Protocol):
    """What a frame's measurements go through where several processes train. Used by the writer's thread alone."""

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """What remains to be stored here of a step, given what was measured here."""

    def close(self) -> None:
        """Say that no more frames will come."""

    def abandon(self) -> None:
        """Wait for nobody any more. The one call that another thread makes."""


class Nowhere:
    """A sink that keeps nothing."""

    def append(self, frame: Frame) -> object:
        """Let it go."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Let them go."""

    def end(self, time: float, lost: int) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to close."""


class SentArray(NamedTuple):
    """The place of a tensor that was sent: which batch of the step, which quantity, and the tensor's name there."""

    batch: int
    quantity: str
    name: str


class SentScalar(NamedTuple):
    """The name of a logged tensor that was sent."""

    name: str


Sent = SentArray | SentScalar


@dataclass(frozen=True, slots=True)
class Pending:
    """A step's measurements on their way to the host. Scalars that were logged as tensors are among them."""

    step: int
    time: float
    layout: tuple[tuple[tuple[int, ...], tuple[int, int], int | None], ...]
    """Positions, shape and entries of each measured batch, in the order of `SentArray.batch`."""
    arrival: Arrival[Sent]
    scalars: Mapping[str, float]
    cost: float
    events: tuple[Event, ...] = ()
    bill: Bill | None = None
    """Where to write what the frame took of the writer's thread; None where nobody asks."""
    joins: bool = False
    """Whether other processes have measured something of the step."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds of the host's memory while it waits, about."""
        return FRAME_BYTES + PART_BYTES * len(self.arrival.slots) + self.arrival.nbytes


class Writer:
    """Owns the thread that waits for copies, assembles frames and appends them to the sink, in order.

    In a process that was forked off it does nothing: the thread, the queue and the sink are the other one's.
    """

    def __init__(self, sink: Sink, link: Link | None = None, quantities: Sequence[Quantity] = QUANTITIES) -> None:
        self.sink = sink
        """Where frames go; replaced before the first one, or never."""
        self._link = link
        self._quantities = quantities
        self.failures = Failures()
        self._said = -SAID_SECONDS
        self._waiting: deque[Pending] = deque()
        self._announced: list[Layer] = []
        self._bytes = 0
        self._unstored = 0
        self._closing = False
        self._until = math.inf
        self._changed = threading.Condition()
        self.stored = 0
        self.lost = 0
        self._lost_said = 0
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
        """The share of the queue's room that is taken, 0 to 1."""
        return self._bytes / QUEUE_BYTES

    def lose(self) -> None:
        """Count a frame that was not even taken."""
        if self._elsewhere():
            return
        with self._changed:
            self.lost += 1

    def announce(self, layers: Sequence[Layer]) -> None:
        """Take layers that the sink does not know, before the first frame that names them."""
        if self._elsewhere():
            return
        with self._changed:
            self._announced.extend(layers)

    def put(self, pending: Pending) -> None:
        """Hand a frame over; where the queue is full it is lost and counted. Never blocks for longer than a lock."""
        if self._elsewhere():
            return
        with self._changed:
            if self._closing or (self._waiting and self._bytes + pending.nbytes > QUEUE_BYTES):
                self.lost += 1
                return
            self._waiting.append(pending)
            self._bytes += pending.nbytes
            self._unstored += 1
            self._changed.notify()

    def release(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Let the thread store what is waiting and end the recording, in `timeout` seconds, without waiting for it."""
        if self._elsewhere():
            return
        with self._changed:
            self._closing = True
            self._until = min(self._until, time.monotonic() + timeout)
            self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Store what is waiting, for at most `timeout` seconds; whether all was."""
        self.release(timeout)
        if not self._elsewhere():
            self._thread.join(timeout)
            if self._link is not None and self._thread.is_alive():
                self._link.abandon()
                self._thread.join(1.0)
        return not self._thread.is_alive()

    def leave_to_parent(self) -> None:
        """In a forked child: never wait for a lock that a thread of the parent's held, nor let the sink be closed."""
        self._changed = threading.Condition()
        self._unstored = 0
        _parents.append(self.sink)

    def _elsewhere(self) -> bool:
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
            seq += 1  # also where it failed, so that a gap in the numbers is a frame that was lost
        closing = [self._end, self.sink.close]
        for close in closing if self._link is None else [*closing, self._link.close]:
            try:  # each, whatever became of the others: other processes may wait for the last
                close()
            except Exception as error:
                self.failures.add("to end the recording", error)

    def _store(self, assembler: Assembler, pending: Pending, seq: int) -> bool:
        started = time.thread_time()
        try:
            arrays = pending.arrival.wait()
            joined = self._join(pending, _groups(pending, arrays))
            lost = self.lost
            frame = _assemble(assembler, pending, joined, arrays, seq, lost - self._lost_said)
            self._append(frame)
            if pending.bill is not None:
                kinds = [kind for kind in HEAVIEST_FIRST if kind in frame.kinds]
                pending.bill.writer = (kinds[0] if kinds else "scalars", time.thread_time() - started)
        except Exception as error:
            self.failures.add("to store a frame", error)
            if self.failures.gave_up and self._link is not None:
                self._link.abandon()  # or others would wait to be heard
            return False
        self._lost_said = lost
        self.failures.clear()
        return True

    def _join(self, pending: Pending, groups: Sequence[LayerGroup]) -> Joined:
        """What there is to store of a frame; one that lacks what another process measured is counted as lost too."""
        if self._link is None or not pending.joins:
            return Joined(merged([groups], self._quantities))
        joined = self._link.join(pending.step, groups)
        with self._changed:
            self.lost += joined.lost
        return joined

    def _append(self, frame: Frame) -> None:
        """Append to the sink, however often that takes.

        Meanwhile frames wait in the queue and, once it is full, are lost and counted. The frame itself tells of it, as
        an event.
        """
        began, told = time.monotonic(), frame

        def store() -> None:
            self._extend()
            self.sink.append(told)

        def tell(error: StoreError) -> None:
            nonlocal told
            if told is frame:
                self._say_waiting(error)
            text = f"nothing could be stored for {time.monotonic() - began:.1f} s: {error}"
            told = replace(frame, events=(*frame.events, Event("queue", text, frame.step, time.time())))

        self._insist(store, tell)

    def _end(self) -> None:
        """Tell the sink that no more frames come, however often that takes."""
        now = time.time()
        self._insist(lambda: self.sink.end(now, self.lost - self._lost_said), self._say_waiting)

    def _insist(self, work: Callable[[], None], tell: Callable[[StoreError], None]) -> None:
        """Do it again and again while it is the store that cannot: a lock is let go, a disk is emptied.

        Once the writer is closed, a lock is waited for as long as `close` does, and all else is tried for a last time.
        """
        pause, longest = RETRY_SECONDS
        while True:
            closing, began = self._closing, time.monotonic()
            try:
                return work()
            except StoreError as error:
                now = time.monotonic()
                again = now + pause + (now - began) <= self._until  # as long as the last try took
                if closing and not (isinstance(error, StoreBusy) and again):
                    raise
                tell(error)
                with self._changed:
                    if closing:  # nobody notifies any more, but one who has less patience
                        self._changed.wait(pause)
                    elif self._changed.wait_for(lambda: self._closing, pause):
                        pause = RETRY_SECONDS[0] / 2
                pause = min(2 * pause, longest)

    def _extend(self) -> None:
        with self._changed:
            layers = tuple(self._announced)
        if layers:
            self.sink.extend(layers)
            with self._changed:
                del self._announced[: len(layers)]

    def _say_waiting(self, error: StoreError) -> None:
        if time.monotonic() - self._said >= SAID_SECONDS:
            self._said = time.monotonic()
            print_to_stderr(f"root-dash: recording waits, training goes on, it is tried again and again: {error}")

    def _next(self) -> Pending | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            pending = self._waiting.popleft()
            self._bytes -= pending.nbytes
            return pending


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()

_parents: list[Sink] = []
"""In a forked child the sinks of its parent: closing one would let go of locks and fold files that are not its own."""


def _leave_to_parent() -> None:
    for writer in list(_writers):
        writer.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def on_one_thread() -> None:
    """Let torch compute on one core in the thread that calls, and in no other: the cores are the training's.

    On two cores that train, the eigenvectors of a matrix of 128 x 128 took 1 ms of processor time on one thread, and up
    to 80 ms on two that wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that begin hereafter
    restore = threading.Thread(target=torch.set_num_threads, args=(threads,))  # of those, but not of this one
    restore.start()
    restore.join()


def _groups(pending: Pending, arrays: Mapping[Sent, NDArray[Any]]) -> list[LayerGroup]:
    found: list[dict[str, dict[str, NDArray[Any]]]] = [{} for _ in pending.layout]
    for key, array in arrays.items():
        if isinstance(key, SentArray):
            found[key.batch].setdefault(key.quantity, {})[key.name] = array
    return [
        LayerGroup(positions, shape, quantities, entries)
        for (positions, shape, entries), quantities in zip(pending.layout, found, strict=True)
    ]


def _assemble(
    assembler: Assembler, pending: Pending, joined: Joined, arrays: Mapping[Sent, NDArray[Any]], seq: int, lost: int
) -> Frame:
    sent = {key.name: float(array) for key, array in arrays.items() if isinstance(key, SentScalar)}
    return assembler.frame(
        joined.groups,
        seq=seq,
        step=pending.step,
        time=pending.time,
        scalars=dict(pending.scalars) | sent,
        events=(*pending.events, *joined.events),
        lost=lost,
        cost=pending.cost,
    )
