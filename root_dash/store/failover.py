"""A recording that outlasts its file: if the file is deleted or replaced, the recording goes on in a file beside it.

SQLite would go on writing into a file that nobody can open again. The new file at the path is never touched, because
it may belong to somebody else. The earlier recordings are copied from the old file, which this process can still read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from root_dash.exceptions import StoreError, StoreFull, StoreMoved
from root_dash.records import Event, Frame, Layer, Run
from root_dash.store.admin.filesystem import filesystem, is_network
from root_dash.store.backends.location import Location
from root_dash.store.backends.sqlite_file import log_size, sqlite_has_wal_reset_bug
from root_dash.store.store import Store
from root_dash.store.write.judging import Tell


class FailoverRecording:
    """Appends to one attempt at a run; if the database is gone, to another attempt in `NAME.2`, and so on.

    One thread may use it. `say` gets a sentence for people when the recording moves, and when something may damage the
    database; the next frame holds the sentence as an event of kind "store".
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        layers: Sequence[Layer],
        say: Callable[[str], None],
        tell: Tell | None = None,
    ) -> None:
        self._store = store
        self._run = run
        self._layers = list(layers)
        self._say = say
        self._tell = tell
        self._recording = store.begin(run, layers, tell=tell)
        self._log_has_grown = False
        self._unrecorded: list[str] = []
        for text in dangers(store.path, self._recording.other_processes()):
            self._report(text)

    def append(self, frame: Frame) -> int:
        """Store a frame as `Recording.append` does."""
        path, limit = self._store.path, self._store.limits.log_bytes
        if not self._log_has_grown and isinstance(path, Path) and (size := log_size(path)) > limit:
            self._log_has_grown = True
            text = f"the write-ahead log of {path} has {size / 2**20:,.0f} MiB: a reader holds it open"
            self._report(f"{text}, and it shrinks when the reader is closed")
        try:
            return self._append(frame)
        except StoreMoved as error:
            self._move(error)
            return self._append(frame)

    def _append(self, frame: Frame) -> int:
        """Store a frame, with events for the sentences that are not recorded yet."""
        events = [Event("store", text, frame.step, time.time()) for text in self._unrecorded]
        stored = self._recording.append(replace(frame, events=(*frame.events, *events)) if events else frame)
        self._unrecorded.clear()
        return stored

    def _report(self, text: str) -> None:
        self._unrecorded.append(text)
        self._say(f"root-dash: {text}")

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers as `Recording.extend` does."""
        try:
            self._recording.extend(layers)
        except StoreMoved as error:
            self._move(error)
            self._recording.extend(layers)
        self._layers.extend(layers)

    def end(self, time: float, lost: int = 0) -> None:
        """End the attempt as `Recording.end` does."""
        try:
            self._recording.end(time, lost)
        except StoreMoved as error:
            self._move(error)
            self._recording.end(time, lost)

    def close(self) -> None:
        """Close the recording and its store."""
        self._recording.close()
        self._store.close()

    def _move(self, moved: StoreMoved) -> None:
        """Go on in another file, and say so."""
        assert isinstance(self._store.path, Path)
        path = _make_beside(self._store.path)
        try:
            kept = self._copy_to(path)
            store = Store.create(path, self._store.limits, self._store.judge)
            try:
                begun = store.begin(self._run, self._layers, tell=self._tell)
            except BaseException:
                store.close()
                raise
        except BaseException:
            for end in ("", "-wal", "-shm"):
                with suppress(OSError):
                    os.unlink(f"{path}{end}")
            raise  # nothing is lost yet: the writer tries again
        self._recording, old = begun, self._recording
        old.abandon()
        self._store = store
        self._report(f"{moved}: it goes on in {path}, {kept}")

    def _copy_to(self, path: Path) -> str:
        """Copy the earlier recordings into an empty file; return a sentence. Raise StoreFull if the disk is full."""
        try:
            self._recording.copy_to(path)
        except StoreFull:
            raise
        except StoreError as error:
            with suppress(OSError):
                os.truncate(path, 0)
            return f"what was recorded before is lost ({error})"
        return "what was recorded before is in it"


def dangers(location: Location, other_processes: Sequence[int]) -> list[str]:
    """Return sentences on what may damage a database during a recording.

    Args:
        location: where the database is.
        other_processes: the ids of the other processes that record to the database.
    """
    if not isinstance(location, Path):
        return []
    found = []
    kind = filesystem(location)
    if kind is not None and is_network(kind):
        found.append(
            f"{location} is on {kind}, which may be shared between machines; SQLite's locks cannot be relied on there: "
            f"keep it on a local disk"
        )
    if other_processes and sqlite_has_wal_reset_bug():
        found.append(
            f"process {other_processes[0]} records to {location} too, and SQLite {sqlite3.sqlite_version} can damage a "
            f"file that two processes write at once (fixed in 3.51.3): give each run a file of its own"
        )
    return found


def _make_beside(path: Path) -> Path:
    """Make the first free file of `NAME.2`, `NAME.3`, ..., and return its path.

    A number at the end of the given name is left out first. If two recordings move at once, each makes a file of its
    own.

    Raises:
        StoreError: the file cannot be made.
    """
    stem = path.name
    head, _, tail = stem.rpartition(".")
    if head and tail.isdecimal():
        stem = head
    for number in count(2):
        free = path.with_name(f"{stem}.{number}")
        if any(os.path.lexists(f"{free}{end}") for end in ("-wal", "-shm")):
            continue  # a log without its file: the file was deleted and is still written to
        try:
            os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(f"{free} cannot be made: {(error.strerror or str(error)).lower()}") from None
        return free
    raise AssertionError("there is always a number")
