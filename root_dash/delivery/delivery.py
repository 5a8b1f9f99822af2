"""Deliveries: spools on their way to a server, the own spool and the spools that earlier trainers left behind.

A spool holds the frames that the server may still lose. When the server has all frames for good, the spool is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from root_dash import wire
from root_dash.delivery.client import IngestClient, Unreachable
from root_dash.delivery.limits import DeliveryLimits
from root_dash.delivery.spool_lock import SpoolLock, lock_spool
from root_dash.exceptions import NotRecorded, RootDashError, StoreError
from root_dash.monitor.failures import print_to_stderr
from root_dash.records import Attempt, Event, Frame, Layer, Notice
from root_dash.store.spool import Spool


class Delivery:
    """A spool on its way to the server, a request at a time."""

    def __init__(
        self, lock: SpoolLock, spool: Spool, client: IngestClient, limits: DeliveryLimits | None = None
    ) -> None:
        self.path = lock.path
        self.done = False
        """Whether the server has all of the spool, and the spool is deleted."""
        self.moved = False
        """Whether the trainer goes on in another spool. Then the end of this spool is not the end of the run."""
        self._lock = lock
        self._uid = lock.path.stem
        self._spool = spool
        self._client = client
        self._limits = DeliveryLimits() if limits is None else limits
        self._layers: list[Layer] | None = None
        self._acknowledged = -1
        self._cursor = 0
        self._unsettled = 0
        self._restarts = 0

    def advance(self, *, ended: bool) -> bool:
        """Send the next part, in one request or two; return whether there may be more to send at once.

        If the attempt has `ended`, no more frames will come. Once the server has all frames, the spool is deleted.

        Raises:
            Unreachable: the server does not take the request now.
            Refused: the server will never take the request.
            StoreError: the spool cannot be read.
        """
        try:
            attempt = self._spool.attempt(self._uid)
        except NotRecorded:  # the trainer was killed before the first frame was stored
            if ended:
                self._delete()
            return False
        if self._unsettled >= self._limits.settled_bytes and self._layers is not None and not ended:
            self._settle()
            return True
        notices, frames = self._next(attempt.run)
        layers = self._spool.layers(attempt.run)
        if layers != self._layers:  # at the beginning, and when layers were added
            run = self._spool.run(attempt.run)
            stored = self._client.begin(wire.pack_begin(run, layers, attempt), self._uid)
            first, self._layers = self._layers is None, layers
            if first:
                self._acknowledged = -1 if stored.last_seq is None else stored.last_seq
                self._cursor = 0
                return True
        if frames:
            if self._client.append(wire.pack_batch(frames), self._uid) is None:
                self._begin_again()  # the server was restarted
            else:
                self._cursor, self._acknowledged, self._restarts = notices[-1].id, notices[-1].seq, 0
                self._unsettled += sum(map(len, frames))
            return True
        if ended:
            if not self._end(self._ended_at(attempt), attempt.lost):
                return True
            self._delete()
        return False

    def remaining(self) -> int:
        """Return the number of frames that the server has not acknowledged."""
        return 0 if self.done else self._spool.waiting(self._uid, self._acknowledged)

    def size(self) -> int:
        """Return the size of the spool in bytes; 0 if the spool was deleted."""
        return 0 if self.done or not self.path.exists() else self._spool.size()

    def close(self) -> None:
        """Close the spool, so that another process can send it."""
        self._spool.close()
        self._lock.release()

    def _settle(self) -> None:
        """Have the server write the acknowledged frames to its disk, and remove all but the last of them here.

        If the spool cannot be written, as on a full disk, the frames stay until the next time; sending goes on.
        """
        if self._end(None, 0):
            self._unsettled, self._layers = 0, None  # the server closes an attempt after such a message
            with suppress(StoreError):
                self._spool.remove(self._cursor)

    def _end(self, time: float | None, lost: int) -> bool:
        """Announce the end of the attempt, or a pause if `time` is None; return whether no frame was lost."""
        last = self._acknowledged if self._acknowledged >= 0 else None
        if self._client.end(wire.pack_end(wire.End(time, lost, last)), self._uid) is None:
            self._begin_again()  # the server may have lost frames, as when its machine lost power
            return False
        return True

    def _ended_at(self, attempt: Attempt) -> float | None:
        """Return the time of the attempt's end. A killed attempt ended with its last frame."""
        if attempt.ended_at is not None or self.moved:
            return attempt.ended_at
        latest = self._spool.latest(attempt.run)
        return attempt.started_at if latest is None else latest.time

    def _begin_again(self) -> None:
        self._layers = None
        self._restarts += 1
        if self._restarts >= 3:
            raise Unreachable(f"{self._client.server} asks for the beginning of the attempt again and again")

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
            packed = _packed(self._spool.frame(notice.id), self._limits.frame_bytes)
            if frames and size + len(packed) > self._limits.batch_bytes:
                break
            notices.append(notice)
            frames.append(packed)
            size += len(packed)
            if len(frames) >= self._limits.batch_frames:
                break
        return notices, frames

    def _delete(self) -> None:
        self.done = True
        self._spool.close()
        self._lock.delete()


def _packed(frame: Frame, limit: int) -> bytes:
    """Return a packed frame. A frame of more bytes than the limit loses its exact masks, and gets an event about it."""
    packed = wire.pack_frame(frame)
    if len(packed) <= limit:
        return packed
    text = f"a frame of {len(packed) / 2**20:,.0f} MiB is too large to be sent: only the maps of its masks are sent"
    masks = {at: (replace(mask, packed=b""), statistics) for at, (mask, statistics) in frame.masks.items()}
    events = (*frame.events, Event("store", text, frame.step, frame.time))
    return wire.pack_frame(replace(frame, masks=masks, events=events))


def deliver(delivery: Delivery) -> int:
    """Send all of a spool whose trainer has ended, and return how many frames were sent.

    Raises:
        Unreachable: the server does not answer.
        Refused: the server does not take the frames.
        StoreError: the spool cannot be read.
    """
    delivery.advance(ended=True)  # the first answer says which frames the server has already
    frames = delivery.remaining()
    while not delivery.done:
        delivery.advance(ended=True)
    return frames


def leftovers(folder: Path, client: IngestClient, limits: DeliveryLimits | None = None) -> Iterator[Delivery]:
    """Yield the spools in a folder that no other process sends, the oldest first."""
    for path in find_spools(folder):
        try:
            lock = lock_spool(path)
        except OSError as error:
            print_to_stderr(f"root-dash: {path} stays as it is: {(error.strerror or str(error)).lower()}")
            continue
        if lock is None:
            continue
        try:
            yield Delivery(lock, _open(path), client, limits)
        except RootDashError as error:
            lock.release()
            print_to_stderr(f"root-dash: {path} stays as it is: {error}")


def _open(path: Path) -> Spool:
    """Open the spool at a path.

    Raises:
        StoreError: the spool cannot be read, or the file is a database with the name of a spool, which would be deleted
            as an empty spool.
    """
    spool = Spool.create(path)
    try:
        with suppress(NotRecorded):
            spool.attempt(path.stem)
            return spool
        if spool.runs():
            raise StoreError("the file holds runs, but not the attempt of its name")
    except BaseException:
        spool.close()
        raise
    return spool


def find_spools(folder: Path) -> Sequence[Path]:
    """Return the spools in a folder, the oldest first, also those that other processes send."""
    paths = [path for path in folder.glob("*.db") if len(path.stem) == 32 and set(path.stem) <= set("0123456789abcdef")]
    return sorted(paths, key=lambda path: (_written_at(path), path.name))


def _written_at(path: Path) -> float:
    """Return the time of a file's last change, in seconds since the epoch; 0 if the file is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
