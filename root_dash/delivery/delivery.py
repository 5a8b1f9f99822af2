"""One spool on its way to the server: what is sent next, what has arrived, and what the next trainer finds left.

A spool holds what the server does not have for good. It is deleted once the server has all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from root_dash import wire
from root_dash.delivery.client import Mail, Unreachable
from root_dash.delivery.spool_lock import Hold, hold
from root_dash.exceptions import NotRecorded, RootDashError, StoreError
from root_dash.monitor.failures import print_to_stderr
from root_dash.records import Attempt, Event, Frame, Layer, Notice, Run

BATCH_BYTES = 4 * 2**20
"""Of a batch before it is compressed; a frame that is larger travels alone."""

BATCH_FRAMES = 256

SETTLED_BYTES = 64 * 2**20
"""Of frames that the server acknowledged, before it is asked to write them through to its disk and they go here.

Measured with 100 layers: 0.2 to 0.3 s for these 112 frames, two thirds of it here.
"""

FRAME_BYTES = wire.LIMIT - 2**10
"""Of a frame before it is compressed: one that is larger, of billions of entries, travels without its exact masks."""


class Spool(Protocol):
    """What is asked of a store of one attempt."""

    def runs(self) -> list[Run]:
        """All runs."""

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

    def latest(self, run_id: int) -> Notice | None:
        """The run's frame that was stored last, or None while it has none."""

    def waiting(self, uid: str, seq: int) -> int:
        """How many frames of the attempt have a number beyond `seq`."""

    def size(self) -> int:
        """Bytes that are taken."""

    def remove(self, cursor: int) -> None:
        """Remove the frames before that cursor."""

    def close(self) -> None:
        """Let go of the file."""


class Delivery:
    """One spool on its way to the server, a request at a time."""

    def __init__(self, held: Hold, spool: Spool, mail: Mail) -> None:
        self.path = held.path
        self.done = False
        """Whether the server has all of it, and it is deleted."""
        self.moved = False
        """Whether its trainer goes on in another spool: then it is not the end of the run."""
        self._held = held
        self._uid = held.path.stem
        self._spool = spool
        self._mail = mail
        self._layers: list[Layer] | None = None
        self._acknowledged = -1
        self._cursor = 0
        self._unsettled = 0
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
        if self._unsettled >= SETTLED_BYTES and self._layers is not None and not ended:
            self._settle()
            return True
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
                self._unsettled += sum(map(len, frames))
            return True
        if ended:
            if not self._told(self._ended_at(attempt), attempt.lost):
                return True
            self._delete()
        return False

    def remaining(self) -> int:
        """Frames that the server has not acknowledged."""
        return 0 if self.done else self._spool.waiting(self._uid, self._acknowledged)

    def size(self) -> int:
        """Bytes that the spool takes; 0 where somebody deleted it."""
        return 0 if self.done or not self.path.exists() else self._spool.size()

    def close(self) -> None:
        """Leave it to another one."""
        self._spool.close()
        self._held.release()

    def _settle(self) -> None:
        """Let go of what the server has, once a lost power cannot take it away there; but of the last frame.

        Where it cannot go, as from a disk that is full, it stays until the next time: what is not sent yet is sent.
        """
        if self._told(None, 0):
            self._unsettled, self._layers = 0, None  # the server lets go of an attempt that it is told such of
            with suppress(StoreError):
                self._spool.remove(self._cursor)

    def _told(self, time: float | None, lost: int) -> bool:
        """Say that the attempt ended, or without a time pauses; whether the server has all that it acknowledged."""
        last = self._acknowledged if self._acknowledged >= 0 else None
        if self._mail.end(wire.pack_end(wire.End(time, lost, last)), self._uid) is None:
            self._begin_again()  # it may be gone: a machine that lost its power
            return False
        return True

    def _ended_at(self, attempt: Attempt) -> float | None:
        """When the attempt ended; of one that was killed, which nobody else can hold, when its last frame was taken."""
        if attempt.ended_at is not None or self.moved:
            return attempt.ended_at
        latest = self._spool.latest(attempt.run)
        return attempt.started_at if latest is None else latest.time

    def _begin_again(self) -> None:
        self._layers = None
        self._again += 1
        if self._again >= 3:
            raise Unreachable(f"{self._mail.server} asks for the beginning of the attempt again and again")

    def _notices(self, run: int) -> Iterator[Notice]:
        cursor = self._cursor
        while page := self._spool.frames(run, cursor):
            yield from page
            cursor = page[-1].id

    def _next(self, run: int) -> tuple[list[Notice], list[bytes]]:
        notices: list[Notice] = []
        frames: list[bytes] = []
        size = 0
        for notice in self._notices(run):
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


def deliver(delivery: Delivery) -> int:
    """Send all of a spool whose trainer has ended; how many frames were sent.

    Raises:
        Unreachable: the server does not answer.
        Refused: it does not take the frames.
        StoreError: the spool cannot be read.
    """
    delivery.advance(ended=True)  # then it is known what the server has already
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
            yield Delivery(held, _opened(path, open_spool), mail)
        except RootDashError as error:
            held.release()
            print_to_stderr(f"root-dash: {path} stays as it is: {error}")


def _opened(path: Path, open_spool: Callable[[Path], Spool]) -> Spool:
    """The spool at that path.

    Raises:
        StoreError: it cannot be read, or it is a database of somebody's that only bears the name of one: it would be
            deleted as a spool that nothing was put into.
    """
    spool = open_spool(path)
    try:
        with suppress(NotRecorded):
            spool.attempt(path.stem)
            return spool
        if spool.runs():
            raise StoreError("it holds runs, but not the attempt that its name says")
    except BaseException:
        spool.close()
        raise
    return spool


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
