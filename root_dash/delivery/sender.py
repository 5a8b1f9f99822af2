"""Frames to a server far away: read back from a spool on the trainer's own disk, and sent until they are there.

The training knows nothing of it: its frames go into the spool, a store of one attempt, and one thread sends what it
finds in it. What a trainer leaves behind, since it was killed or its server was away, the next one with the same folder
sends, or `root-dash sync`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from root_dash.delivery.client import Mail, Refused, Unreachable
from root_dash.delivery.delivery import Delivery
from root_dash.exceptions import RootDashError, StoreBusy, StoreError, StoreFull, StoreMoved
from root_dash.monitor.failures import print_to_stderr
from root_dash.records import Event, Frame, Layer

if TYPE_CHECKING:
    from root_dash.monitor.writing.sink import Sink

LINGER_SECONDS = 1.0
"""How long frames may gather before they are sent."""

PAUSE_SECONDS = (0.5, 60.0)
"""The first and the longest pause before a server that does not answer is tried again."""

SPOOL_BYTES = 2 * 2**30
"""What a spool may hold, and one frame: the disk is the training's too. Beyond, frames are lost, and counted."""

DRAIN_SECONDS = 30.0
"""How long the end of a recording may wait for frames to be sent, while the server takes them."""


class Sender:
    """One thread that sends a trainer's spool as it grows, and what other trainers left in the same folder.

    It never raises: what goes wrong is said once, and tried again with growing pauses for as long as the process lives.
    """

    def __init__(self, own: Delivery, others: Iterator[Delivery], mail: Mail) -> None:
        self._own = own
        self._others = others
        self._other: Delivery | None = None
        self._mail = mail
        self._changed = threading.Condition()
        self._closing = False
        self._tried = 0
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="root-dash-sender", daemon=True)
        self._thread.start()

    def close(self, timeout: float = DRAIN_SECONDS) -> None:
        """Send what is left, for at most `timeout` seconds and while the server takes it; say what remains, and where.

        No more frames may come. The thread goes on for as long as the process lives.
        """
        with self._changed:
            self._closing = True
            tried = self._tried
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._own.done or (self._trouble and self._tried > tried), timeout)
            trouble = self._trouble or "there was no time"
        if not self._own.done:
            with suppress(RootDashError):
                print_to_stderr(
                    f"root-dash: {self._own.remaining()} frames are not at {self._mail.server} yet ({trouble}): "
                    f"they are kept in {self._own.path}, and `root-dash sync` or the next run sends them"
                )

    def leave(self) -> None:
        """Say that no more frames come, without waiting for those that are left."""
        self._own.moved = True
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def vacate(self) -> bool:
        """Have the spool deleted, though more frames come, if the server has all that is in it; whether it is gone."""
        if self._own.remaining():
            return False
        self._own.moved = True
        with self._changed:
            self._closing = True
            tried = self._tried
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._own.done or (self._trouble and self._tried > tried), DRAIN_SECONDS)
            if not self._own.done:  # it goes on; where it is deleted late all the same, the next frame sees it
                self._closing = self._own.moved = False
        return self._own.done

    @property
    def vacated(self) -> bool:
        """Whether the spool is gone, since the server has all of it."""
        return self._own.done

    def check_room(self) -> None:
        """Raise StoreFull where as much waits as may."""
        if (size := self._own.size()) >= SPOOL_BYTES:
            text = f"{self._own.path} is full: {size / 2**20:,.1f} MiB wait for {self._mail.server}"
            raise StoreFull(f"{text}, and frames are lost until some of it is sent")

    def _run(self) -> None:
        said = False
        failures = 0
        while True:
            more = False
            wait = LINGER_SECONDS
            ended = self._closing
            try:
                waited = self._waiting() if said else 0
                if not self._own.done:
                    more = self._own.advance(ended=ended)
                if not more:
                    more = self._advance_other()
                if said:
                    print_to_stderr(f"root-dash: {self._mail.server} takes frames again: {waited} waited")
                trouble, said, failures = None, False, 0
            except Exception as error:
                trouble = str(error) or type(error).__name__
                wait = _pause(failures, error)
                failures += 1
                if not said and (failures > 1 or not isinstance(error, Unreachable)):  # else it may be back at once
                    print_to_stderr(f"root-dash: {trouble}; training goes on, frames wait in {self._own.path.parent}")
                    said = True
            with self._changed:
                self._tried += 1
                self._trouble = trouble
                self._changed.notify_all()
                if self._own.done and not more and trouble is None:
                    break
                if not more and self._closing == ended:  # else it was closed meanwhile: a last try at once
                    self._changed.wait(wait)
        self._mail.close()

    def _waiting(self) -> int:
        """Frames that the server does not have, of all that is being sent."""
        return self._own.remaining() + (self._other.remaining() if self._other is not None else 0)

    def _advance_other(self) -> bool:
        """Send something of what others left; what is refused stays where it is. Whether there may be more."""
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
"""Begins an attempt in a spool of its own: where its frames go, and what sends them."""


class Spooled:
    """The trainer's sink: into a spool, which its sender sends; into another one where that is deleted.

    To let go of anything SQLite needs room. So a spool on a disk that is full, which it may have filled itself, is
    deleted as a whole once the server has all of it.
    """

    def __init__(self, begin: Begin, layers: Sequence[Layer]) -> None:
        self._begin = begin
        self._layers = list(layers)
        self._spool, self._sender = begin(self._layers)
        self._untold: list[str] = []

    def append(self, frame: Frame) -> object:
        """Store a frame in the spool; StoreFull where that holds as much as it may."""
        self._renew()
        self._sender.check_room()
        try:
            return self._append(frame)
        except StoreMoved as error:
            self._move(error)
        except StoreBusy:
            raise
        except StoreError:  # a full disk is one, and a quota that is used up, which SQLite calls otherwise
            if not self._sender.vacate():
                raise
            self._renew()
        return self._append(frame)

    def _append(self, frame: Frame) -> object:
        """Store a frame with what was not told yet."""
        events = [Event("store", text, frame.step, time.time()) for text in self._untold]
        stored = self._spool.append(replace(frame, events=(*frame.events, *events)) if events else frame)
        self._untold.clear()
        return stored

    def extend(self, layers: Sequence[Layer]) -> None:
        """Take layers that come later."""
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
        """Let go of the spool, and give its last frames some time to arrive."""
        self._spool.close()
        self._sender.close()

    def _renew(self) -> None:
        """Go on in another spool where this one was vacated."""
        if self._sender.vacated:
            self._spool, self._sender = self._begin(self._layers)

    def _move(self, moved: StoreMoved) -> None:
        """Go on in another spool, and tell."""
        old = self._sender
        self._spool, self._sender = self._begin(self._layers)
        old.leave()  # it may still read what it has open
        self._untold.append(f"{moved}: it goes on in another one, and what was not sent yet may be lost")
        print_to_stderr(f"root-dash: {self._untold[-1]}")


def _pause(failures: int, error: Exception) -> float:
    """Seconds until the next try: twice as many each time, and up to half of them less so that not all come at once."""
    first, longest = PAUSE_SECONDS
    if isinstance(error, Refused):
        return longest
    pause = min(first * 2.0 ** min(failures, 20), longest) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
    asked = error.retry_after if isinstance(error, Unreachable) else 0.0
    return max(pause, asked)
