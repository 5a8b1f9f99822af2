"""A recording that outlasts its file: where that is deleted or replaced, it goes on in another one beside it.

SQLite would go on writing into a file that nobody can open again. What stands at the path now is never touched: it may
be somebody else's. What was recorded so far is copied over from the file that is gone, which is still ours to read.
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
from root_dash.store.admin.doctor import WAL_LIMIT, filesystem, is_network
from root_dash.store.backends.location import Place
from root_dash.store.backends.sqlite import log_size, sqlite_has_wal_reset_bug
from root_dash.store.store import Store


class Lasting:
    """Appends to one attempt of a run, and to another one in `NAME.2` where the database is gone, and so on.

    Used by one thread. `say` is given a sentence for people where that happens; the frame that it happens to holds it
    as an event of kind "store". So it is with what may damage the database.
    """

    def __init__(self, store: Store, run: Run, layers: Sequence[Layer], say: Callable[[str], None]) -> None:
        self._store = store
        self._run = run
        self._layers = list(layers)
        self._say = say
        self._recording = store.begin(run, layers)
        self._grown = False
        self._untold: list[str] = []
        for text in concerns(store.path, self._recording.beside()):
            self._tell(text)

    def append(self, frame: Frame) -> int:
        """Store a frame as `Recording.append` does."""
        place = self._store.path
        if not self._grown and isinstance(place, Path) and (size := log_size(place)) > WAL_LIMIT:
            self._grown = True
            text = f"the write-ahead log of {place} has {size / 2**20:,.0f} MiB: a reader holds it open"
            self._tell(f"{text}, and it shrinks when that is closed")
        try:
            return self._append(frame)
        except StoreMoved as error:
            self._move(error)
            return self._append(frame)

    def _append(self, frame: Frame) -> int:
        """Store a frame with what was not told yet."""
        events = [Event("store", text, frame.step, time.time()) for text in self._untold]
        stored = self._recording.append(replace(frame, events=(*frame.events, *events)) if events else frame)
        self._untold.clear()
        return stored

    def _tell(self, text: str) -> None:
        self._untold.append(text)
        self._say(f"root-dash: {text}")

    def extend(self, layers: Sequence[Layer]) -> None:
        """Take layers that come later, as `Recording.extend` does."""
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
        """Let go of the database."""
        self._recording.close()
        self._store.close()

    def _move(self, moved: StoreMoved) -> None:
        """Go on in another file, and tell."""
        assert isinstance(self._store.path, Path)
        path = _made_beside(self._store.path)
        try:
            kept = self._copy_to(path)
            store = Store.create(path)
            try:
                begun = store.begin(self._run, self._layers)
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
        self._tell(f"{moved}: it goes on in {path}, {kept}")

    def _copy_to(self, path: Path) -> str:
        """Copy what was recorded before into an empty file, and say what came of it; a disk that is full is raised."""
        try:
            self._recording.copy_to(path)
        except StoreFull:
            raise
        except StoreError as error:
            with suppress(OSError):
                os.truncate(path, 0)
            return f"what was recorded before is lost ({error})"
        return "what was recorded before is in it"


def concerns(place: Place, beside: Sequence[int]) -> list[str]:
    """Sentences on what may damage a database that is about to be recorded to, also by the processes beside this."""
    if not isinstance(place, Path):
        return []
    found = []
    kind = filesystem(place)
    if kind is not None and is_network(kind):
        found.append(
            f"{place} is on {kind}, which may be shared between machines, where SQLite's locks cannot be relied on: "
            f"keep it on a local disk"
        )
    if beside and sqlite_has_wal_reset_bug():
        found.append(
            f"process {beside[0]} records to {place} too, which SQLite {sqlite3.sqlite_version} can damage where two "
            f"write at once (fixed in 3.51.3): give each run a file of its own"
        )
    return found


def _made_beside(path: Path) -> Path:
    """The first of `NAME.2`, `NAME.3`, ... that is free, made: of two that move at once each has its own.

    Of the name without such a number.

    Raises:
        StoreError: it cannot be made.
    """
    stem = path.name
    head, _, tail = stem.rpartition(".")
    if head and tail.isdecimal():
        stem = head
    for number in count(2):
        free = path.with_name(f"{stem}.{number}")
        if any(os.path.lexists(f"{free}{end}") for end in ("-wal", "-shm")):
            continue  # a log without its file is one that was deleted, and still written to
        try:
            os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(f"{free} cannot be made: {(error.strerror or str(error)).lower()}") from None
        return free
    raise AssertionError("there is always a number")
