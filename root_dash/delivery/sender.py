"""The way of frames to a server: the trainer stores them in a spool on its disk, and a thread sends them from there.

The training does not know the server. A spool is a store of one attempt. If a trainer leaves frames behind, because the
trainer was killed or the server was away, `root-dash sync` or the next trainer with the same folder sends the frames.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from root_dash.delivery.client import IngestClient, Refused, Unreachable
from root_dash.delivery.delivery import Delivery
from root_dash.delivery.limits import DeliveryLimits
from root_dash.exceptions import RootDashError, StoreBusy, StoreError, StoreFull, StoreMoved
from root_dash.monitor.failures import print_to_stderr
from root_dash.records import Event, Frame, Layer

if TYPE_CHECKING:
    from root_dash.monitor.writing.sink import Sink

_JITTER = random.Random()  # noqa: S311 (no secret)
"""The generator of the pauses. The generator of the module `random` belongs to the training."""


class Sender:
    """A thread that sends a trainer's spool as the spool grows, and the spools that other trainers left in the folder.

    The thread never raises. A failure is reported once. The thread tries again with growing pauses while the process
    lives.
    """

    def __init__(
        self, own: Delivery, others: Iterator[Delivery], client: IngestClient, limits: DeliveryLimits | None = None
    ) -> None:
        self._own = own
        self._others = others
        self._other: Delivery | None = None
        self._client = client
        self._limits = DeliveryLimits() if limits is None else limits
        self._changed = threading.Condition()
        self._closing = False
        self._tried = 0
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="root-dash-sender", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the remaining frames, for at most `drain_seconds` and while the server takes them; report what is left.

        No more frames may come. The thread goes on while the process lives.
        """
        with self._changed:
            self._closing = True
            tried = self._tried
            self._changed.notify_all()
            self._await_attempt(tried)
            trouble = self._trouble or "there was no time"
        if not self._own.done:
            with suppress(RootDashError):
                print_to_stderr(
                    f"root-dash: {self._own.remaining()} frames are not at {self._client.server} yet ({trouble}): "
                    f"they are kept in {self._own.path}, and `root-dash sync` or the next run sends them"
                )

    def leave(self) -> None:
        """Announce that no more frames come, without waiting for the remaining frames."""
        self._own.moved = True
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def vacate(self) -> bool:
        """Have the spool deleted if the server has all frames, even if more frames come; return whether it is gone."""
        if self._own.remaining():
            return False
        self._own.moved = True
        with self._changed:
            self._closing = True
            tried = self._tried
            self._changed.notify_all()
            self._await_attempt(tried)
            if not self._own.done:  # go on with this spool; a late deletion is seen by the next frame
                self._closing = self._own.moved = False
        return self._own.done

    @property
    def vacated(self) -> bool:
        """Whether the spool was deleted because the server has all frames."""
        return self._own.done

    def _await_attempt(self, tried: int) -> None:
        """Wait until all frames are sent or a try after number `tried` failed, for at most `drain_seconds`."""
        self._changed.wait_for(
            lambda: self._own.done or (self._trouble and self._tried > tried), self._limits.drain_seconds
        )

    def check_room(self) -> None:
        """Raise StoreFull if the spool is full."""
        if (size := self._own.size()) >= self._limits.spool_bytes:
            text = f"{self._own.path} is full: {size / 2**20:,.1f} MiB wait for {self._client.server}"
            raise StoreFull(f"{text}, and frames are lost until some frames are sent")

    def _run(self) -> None:
        reported = False
        failures = 0
        while True:
            more = False
            wait = self._limits.linger_seconds
            ended = self._closing
            try:
                waited = self._waiting() if reported else 0
                if not self._own.done:
                    more = self._own.advance(ended=ended)
                if not more:
                    more = self._advance_other()
                if reported:
                    print_to_stderr(f"root-dash: {self._client.server} takes frames again: {waited} waited")
                trouble, reported, failures = None, False, 0
            except Exception as error:
                trouble = str(error) or type(error).__name__
                wait = _pause(failures, error, self._limits)
                failures += 1
                # A server that is away for the first time may be back at once.
                if not reported and (failures > 1 or not isinstance(error, Unreachable)):
                    print_to_stderr(f"root-dash: {trouble}; training goes on, frames wait in {self._own.path.parent}")
                    reported = True
            with self._changed:
                self._tried += 1
                self._trouble = trouble
                self._changed.notify_all()
                if self._own.done and not more and trouble is None:
                    break
                if not more and self._closing == ended:  # if the sender was closed meanwhile, a last try comes at once
                    self._changed.wait(wait)
        self._client.close()

    def _waiting(self) -> int:
        """Return the number of frames in both spools that the server does not have."""
        return self._own.remaining() + (self._other.remaining() if self._other is not None else 0)

    def _advance_other(self) -> bool:
        """Send a part of another trainer's spool; return whether there may be more. A refused spool stays."""
        self._other = self._other or next(self._others, None)
        if self._other is None:
            return False
        try:
            self._other.advance(ended=True)
        except Unreachable:
            raise
        except Exception as error:
            print_to_stderr(f"root-dash: {self._other.path} stays as it is: {error}")
            self._other.close()
            self._other = None
        else:
            self._other = None if self._other.done else self._other
        return True


Begin = Callable[[Sequence[Layer]], "tuple[Sink, Sender]"]
"""Begins an attempt in a spool of its own; returns the sink of the frames and the sender of the spool."""


class SpoolSink:
    """The trainer's sink: stores frames in a spool, which a sender sends; if the spool is deleted, in another spool.

    SQLite needs room to remove anything. So if the disk is full, perhaps because of the spool, the whole spool is
    deleted once the server has all frames.
    """

    def __init__(self, begin: Begin, layers: Sequence[Layer]) -> None:
        self._begin = begin
        self._layers = list(layers)
        self._spool, self._sender = begin(self._layers)
        self._unrecorded: list[str] = []

    def append(self, frame: Frame) -> object:
        """Store a frame in the spool; raise StoreFull if the spool is full."""
        self._renew()
        self._sender.check_room()
        try:
            return self._append(frame)
        except StoreMoved as error:
            self._move(error)
        except StoreBusy:
            raise
        except StoreError:  # a full disk or a used-up quota, for which SQLite has another error
            if not self._sender.vacate():
                raise
            self._renew()
        return self._append(frame)

    def _append(self, frame: Frame) -> object:
        """Store a frame, with events for the sentences that are not recorded yet."""
        events = [Event("store", text, frame.step, time.time()) for text in self._unrecorded]
        stored = self._spool.append(replace(frame, events=(*frame.events, *events)) if events else frame)
        self._unrecorded.clear()
        return stored

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers to the run."""
        known = {layer.name for layer in self._layers}
        self._layers += [layer for layer in layers if layer.name not in known]
        self._renew()
        try:
            self._spool.extend(layers)
        except StoreMoved as error:
            self._move(error)

    def end(self, time: float, lost: int) -> None:
        """End the attempt in the spool."""
        self._renew()
        try:
            self._spool.end(time, lost)
        except StoreMoved as error:
            self._move(error)
            self._spool.end(time, lost)

    def close(self) -> None:
        """Close the spool, and give its last frames some time to arrive."""
        self._spool.close()
        self._sender.close()

    def _renew(self) -> None:
        """Go on in another spool if the spool was deleted because the server has all frames."""
        if self._sender.vacated:
            self._spool, self._sender = self._begin(self._layers)

    def _move(self, moved: StoreMoved) -> None:
        """Go on in another spool, and report the change."""
        old = self._sender
        self._spool, self._sender = self._begin(self._layers)
        old.leave()  # the old sender can still read the deleted file
        self._unrecorded.append(f"{moved}: it goes on in another one, and what was not sent yet may be lost")
        print_to_stderr(f"root-dash: {self._unrecorded[-1]}")


def _pause(failures: int, error: Exception, limits: DeliveryLimits) -> float:
    """Return the seconds until the next try. Pauses double, and are shortened by up to a half to spread the senders."""
    if isinstance(error, Refused):
        return limits.longest_pause
    pause = min(limits.first_pause * 2.0 ** min(failures, 20), limits.longest_pause) * _JITTER.uniform(0.5, 1.0)
    asked = error.retry_after if isinstance(error, Unreachable) else 0.0
    return max(pause, asked)
