"""Frames to a server far away: read back from a spool on the trainer's own disk, and sent until they are there.

The training knows nothing of the server: its frames go into the spool, a store of one attempt, and one thread sends
what it finds in the spool. If a trainer leaves frames behind, because it was killed or its server was away, the next
trainer with the same folder sends them, or `root-dash sync` does.
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
"""The generator of the pauses. The generator of the `random` module belongs to the training."""


class Sender:
    """One thread that sends a trainer's spool as it grows, and what other trainers left in the same folder.

    The thread never raises. It reports a failure once, and tries again with growing pauses while the process lives.
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
        """Send what is left, for at most `drain_seconds` and while the server takes it; report what remains.

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
        """Announce that no more frames come, without waiting for the frames that are left."""
        self._own.moved = True
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def vacate(self) -> bool:
        """Have the spool deleted if the server has all of it, although more frames come; return whether it is."""
        if self._own.remaining():
            return False
        self._own.moved = True
        with self._changed:
            self._closing = True
            tried = self._tried
            self._changed.notify_all()
            self._await_attempt(tried)
            if not self._own.done:  # the spool is used on; if it is deleted late all the same, the next frame sees it
                self._closing = self._own.moved = False
        return self._own.done

    @property
    def vacated(self) -> bool:
        """Whether the spool was deleted because the server has all of it."""
        return self._own.done

    def _await_attempt(self, tried: int) -> None:
        """Wait until all is sent or a later try than number `tried` failed, for at most `drain_seconds`."""
        self._changed.wait_for(
            lambda: self._own.done or (self._trouble and self._tried > tried), self._limits.drain_seconds
        )

    def check_room(self) -> None:
        """Raise StoreFull if the spool holds as much as it may."""
        if (size := self._own.size()) >= self._limits.spool_bytes:
            text = f"{self._own.path} is full: {size / 2**20:,.1f} MiB wait for {self._client.server}"
            raise StoreFull(f"{text}, and frames are lost until some of it is sent")

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
                if not reported and (
                    failures > 1 or not isinstance(error, Unreachable)
                ):  # otherwise it may be back at once
                    print_to_stderr(f"root-dash: {trouble}; training goes on, frames wait in {self._own.path.parent}")
                    reported = True
            with self._changed:
                self._tried += 1
                self._trouble = trouble
                self._changed.notify_all()
                if self._own.done and not more and trouble is None:
                    break
                if not more and self._closing == ended:  # otherwise it was closed meanwhile: a last try at once
                    self._changed.wait(wait)
        self._client.close()

    def _waiting(self) -> int:
        """Return how many frames the server does not have, of all spools that are being sent."""
        return self._own.remaining() + (self._other.remaining() if self._other is not None else 0)

    def _advance_other(self) -> bool:
        """Send a part of what other trainers left; return whether there may be more. A refused spool stays."""
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
    deleted once the server has all of it.
    """

    def __init__(self, begin: Begin, layers: Sequence[Layer]) -> None:
        self._begin = begin
        self._layers = list(layers)
        self._spool, self._sender = begin(self._layers)
        self._unrecorded: list[str] = []

    def append(self, frame: Frame) -> object:
        """Store a frame in the spool; raise StoreFull if the spool holds as much as it may."""
        self._renew()
        self._sender.check_room()
        try:
            return self._append(frame)
        except StoreMoved as error:
            self._move(error)
        except StoreBusy:
            raise
        except StoreError:  # a full disk, and also a used-up quota, for which SQLite has another error
            if not self._sender.vacate():
                raise
            self._renew()
        return self._append(frame)

    def _append(self, frame: Frame) -> object:
        """Store a frame, with the sentences that no frame holds yet."""
        events = [Event("store", text, frame.step, time.time()) for text in self._unrecorded]
        stored = self._spool.append(replace(frame, events=(*frame.events, *events)) if events else frame)
        self._unrecorded.clear()
        return stored

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers that come later."""
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
        """Go on in another spool if this one was deleted because the server has all of it."""
        if self._sender.vacated:
            self._spool, self._sender = self._begin(self._layers)

    def _move(self, moved: StoreMoved) -> None:
        """Go on in another spool, and report it."""
        old = self._sender
        self._spool, self._sender = self._begin(self._layers)
        old.leave()  # it can still read the deleted file
        self._unrecorded.append(f"{moved}: it goes on in another one, and what was not sent yet may be lost")
        print_to_stderr(f"root-dash: {self._unrecorded[-1]}")


def _pause(failures: int, error: Exception, limits: DeliveryLimits) -> float:
    """Return the seconds until the next try: doubled each time, and up to half of them less to spread the senders."""
    if isinstance(error, Refused):
        return limits.longest_pause
    pause = min(limits.first_pause * 2.0 ** min(failures, 20), limits.longest_pause) * _JITTER.uniform(0.5, 1.0)
    asked = error.retry_after if isinstance(error, Unreachable) else 0.0
    return max(pause, asked)
