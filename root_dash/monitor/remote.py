"""Frames to a server far away: read back from a spool on the trainer's own disk, and sent until they are there.

The training knows nothing of it: its frames go into the spool, a store of one attempt, and one thread sends what it
finds in it. A spool is deleted once the server has all of it. What a trainer leaves behind, since it was killed or its
server was away, the next one with the same folder sends, or `root-dash sync`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from root_dash import wire
from root_dash.exceptions import NotRecorded, RootDashError, StoreMoved
from root_dash.monitor.failures import print_to_stderr
from root_dash.monitor.mail import Mail, Refused, Unreachable
from root_dash.monitor.spools import Hold, hold
from root_dash.records import Attempt, Event, Frame, Layer, Notice, Run

if TYPE_CHECKING:
    from root_dash.monitor.writer import Sink

BATCH_BYTES = 4 * 2**20
"""Of a batch before it is compressed; a frame that is larger travels alone."""

BATCH_FRAMES = 256

FRAME_BYTES = wire.LIMIT - 2**10
"""Of a frame before it is compressed: one that is larger, of billions of entries, travels without its exact masks."""

LINGER_SECONDS = 1.0
"""How long frames may gather before they are sent."""

PAUSE_SECONDS = (0.5, 60.0)
"""The first and the longest pause before a server that does not answer is tried again."""

DRAIN_SECONDS = 30.0
"""How long the end of a recording may wait for frames to be sent, while the server takes them."""


class Spool(Protocol):
    """What is asked of a store."""

    def run(self, run_id: int) -> Run:
        """The run of that id."""

    def layers(self, run_id: int) -> list[Layer]:
        """The run's layers."""

    def attempt(self, uid: str) -> Attempt:
        """The attempt of that uid; NotRecorded where there is none."""

    def frames(self, run_id: int, after: int = 0, limit: int = 1000) -> list[Notice]:
        """The run's frames beyond a cursor."""

    def frame(self, cursor: int) -> Frame:
        """The frame of that cursor."""

    def close(self) -> None:
        """Let go of the file."""


class Delivery:
    """One spool on its way to the server, a request at a time."""

    def __init__(self, held: Hold, spool: Spool, mail: Mail) -> None:
        self.path = held.path
        self.done = False
        """Whether the server has all of it, and it is deleted."""
        self._held = held
        self._uid = held.path.stem
        self._spool = spool
        self._mail = mail
        self._layers: list[Layer] | None = None
        self._acknowledged = -1
        self._cursor = 0
        self._again = 0

    def advance(self, *, ended: bool) -> bool:
        """Send what is next, in one request or two; whether there may be more to send at once.

        Where the attempt has `ended`, no more frames will come, and the spool goes once the server has all of it.

        Raises:
            Unreachable: the server did not take it now.
            Refused: it never will.
            StoreError: the spool cannot be read.
        """
        try:
            attempt = self._spool.attempt(self._uid)
        except NotRecorded:  # killed before it had anything to say
            if ended:
                self._delete()
            return False
        notices, frames = self._next(attempt.run)
        layers = self._spool.layers(attempt.run)
        if layers != self._layers:  # at the beginning, and where there are more of them now
            run = self._spool.run(attempt.run)
            stored = self._mail.begin(wire.pack_begin(run, layers, attempt), self._uid)
            first, self._layers = self._layers is None, layers
            if first:
                self._acknowledged = -1 if stored.last_seq is None else stored.last_seq
                self._cursor = 0
                return True
        if frames:
            if self._mail.append(wire.pack_batch(frames), self._uid) is None:
                self._begin_again()  # the server was restarted
            else:
                self._cursor, self._acknowledged, self._again = notices[-1].id, notices[-1].seq, 0
            return True
        if ended:
            last = self._acknowledged if self._acknowledged >= 0 else None
            end = wire.pack_end(wire.End(attempt.ended_at, attempt.lost, last))
            if self._mail.end(end, self._uid) is None:
                self._begin_again()  # what it had acknowledged may be gone: a machine that lost its power
                return True
            self._delete()
        return False

    def remaining(self) -> int:
        """Frames that the server has not acknowledged."""
        if self.done:
            return 0
        try:
            run = self._spool.attempt(self._uid).run
        except NotRecorded:
            return 0
        return sum(notice.seq > self._acknowledged for notice in self._notices(run, self._cursor))

    def close(self) -> None:
        """Leave it to another one."""
        self._spool.close()
        self._held.release()

    def _begin_again(self) -> None:
        self._layers = None
        self._again += 1
        if self._again >= 3:
            raise Unreachable(f"{self._mail.server} asks for the beginning of the attempt again and again")

    def _notices(self, run: int, cursor: int) -> Iterator[Notice]:
        while page := self._spool.frames(run, cursor):
            yield from page
            cursor = page[-1].id

    def _next(self, run: int) -> tuple[list[Notice], list[bytes]]:
        notices: list[Notice] = []
        frames: list[bytes] = []
        size = 0
        for notice in self._notices(run, self._cursor):
            if notice.seq <= self._acknowledged:
                self._cursor = notice.id
                continue
            packed = _packed(self._spool.frame(notice.id))
            if frames and size + len(packed) > BATCH_BYTES:
                break
            notices.append(notice)
            frames.append(packed)
            size += len(packed)
            if len(frames) >= BATCH_FRAMES:
                break
        return notices, frames

    def _delete(self) -> None:
        self.done = True
        self._spool.close()
        self._held.delete()


def _packed(frame: Frame) -> bytes:
    """The frame as it travels; where it leaves its exact masks behind, it says so."""
    packed = wire.pack_frame(frame)
    if len(packed) <= FRAME_BYTES:
        return packed
    text = f"a frame of {len(packed) / 2**20:,.0f} MiB is too large to be sent: of its masks only the maps are"
    masks = {at: (replace(mask, packed=b""), statistics) for at, (mask, statistics) in frame.masks.items()}
    events = (*frame.events, Event("store", text, frame.step, frame.time))
    return wire.pack_frame(replace(frame, masks=masks, events=events))


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
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        said = False
        failures = 0
        while True:
            more = False
            wait = LINGER_SECONDS
            ended = self._closing
            try:
                if not self._own.done:
                    more = self._own.advance(ended=ended)
                if not more:
                    more = self._advance_other()
                trouble, said, failures = None, False, 0
            except Exception as error:
                trouble = str(error) or type(error).__name__
                wait = _pause(failures, error)
                failures += 1
                if not said:
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
    """The trainer's sink: into a spool, which its sender sends; into another one where that is deleted."""

    def __init__(self, begin: Begin, layers: Sequence[Layer]) -> None:
        self._begin = begin
        self._layers = list(layers)
        self._spool, self._sender = begin(self._layers)

    def append(self, frame: Frame) -> object:
        """Store a frame in the spool."""
        try:
            return self._spool.append(frame)
        except StoreMoved as error:
            told = Event("store", self._move(error), frame.step, time.time())
        return self._spool.append(replace(frame, events=(*frame.events, told)))

    def extend(self, layers: Sequence[Layer]) -> object:
        """Take layers that come later."""
        known = {layer.name for layer in self._layers}
        self._layers += [layer for layer in layers if layer.name not in known]
        try:
            return self._spool.extend(layers)
        except StoreMoved as error:
            return self._move(error)

    def end(self, time: float, lost: int) -> None:
        """End the attempt in the spool."""
        try:
            self._spool.end(time, lost)
        except StoreMoved as error:
            self._move(error)
            self._spool.end(time, lost)

    def close(self) -> None:
        """Let go of the spool, and give its last frames some time to arrive."""
        self._spool.close()
        self._sender.close()

    def _move(self, moved: StoreMoved) -> str:
        """Go on in another spool; what there is to say about it."""
        old = self._sender
        self._spool, self._sender = self._begin(self._layers)
        old.leave()  # it may still read what it has open
        text = f"{moved}: it goes on in another one, and what was not sent yet may be lost"
        print_to_stderr(f"root-dash: {text}")
        return text


def deliver(delivery: Delivery) -> int:
    """Send all of a spool whose trainer has ended; how many frames were sent.

    Raises:
        Unreachable: the server does not answer.
        Refused: it does not take the frames.
        StoreError: the spool cannot be read.
    """
    frames = delivery.remaining()
    while not delivery.done:
        delivery.advance(ended=True)
    return frames


def leftovers(folder: Path, open_spool: Callable[[Path], Spool], mail: Mail) -> Iterator[Delivery]:
    """The spools in the folder that no living trainer and nobody else sends, the oldest first."""
    for path in found(folder):
        try:
            held = hold(path)
        except OSError as error:
            print_to_stderr(f"root-dash: {path} stays as it is: {(error.strerror or str(error)).lower()}")
            continue
        if held is None:
            continue
        try:
            yield Delivery(held, open_spool(path), mail)
        except RootDashError as error:
            held.release()
            print_to_stderr(f"root-dash: {path} stays as it is: {error}")


def found(folder: Path) -> Sequence[Path]:
    """The spools in a folder, whoever holds them, the oldest first."""
    paths = [path for path in folder.glob("*.db") if len(path.stem) == 32 and set(path.stem) <= set("0123456789abcdef")]
    return sorted(paths, key=lambda path: (_written_at(path), path.name))


def _written_at(path: Path) -> float:
    """When a file was last written to, in seconds since the epoch; 0 of one that is gone by now."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _pause(failures: int, error: Exception) -> float:
    """Seconds until the next try: twice as many each time, and up to half of them less so that not all come at once."""
    first, longest = PAUSE_SECONDS
    if isinstance(error, Refused):
        return longest
    pause = min(first * 2.0 ** min(failures, 20), longest) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
    asked = error.retry_after if isinstance(error, Unreachable) else 0.0
    return max(pause, asked)
