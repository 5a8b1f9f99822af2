"""An open database: its connections, and what is being recorded over them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from sqlalchemy import Connection, Engine, select

from root_dash.exceptions import StoreError, StoreForeign
from root_dash.records import Attempt, Float64Array, Layer, Run, histogram_edges
from root_dash.store.backends.engine import open_reader, open_writer, state, translated
from root_dash.store.backends.location import Given, Place, parse
from root_dash.store.backends.notifications import Listener
from root_dash.store.migrations import migrate
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.write.recording import Recording


class Database:
    """A database opened by `open` for reading, by `create` for writing too; closed once."""

    def __init__(self, path: Place, reader: Engine, writer: Engine | None = None) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer
        self._closed = False
        self._file = state(reader, path)
        self._reopening = threading.Lock()
        self._edges: dict[int, Float64Array] = {}
        self._recordings: list[Recording] = []
        self._listener = None if isinstance(path, Path) else Listener(path, reader)

    @classmethod
    def open(cls, path: Given) -> Self:
        """The database at that path, or of that URL, for reading only.

        Raises:
            ValueError: it is a URL of something else than PostgreSQL.
            StoreNotFound: it is missing, a directory, or cannot be read; its server cannot be reached.
            StoreForeign: it is no database of root-dash, or of a schema that this version does not know.
        """
        place = parse(path)
        return cls(place, open_reader(place))

    @classmethod
    def create(cls, path: Given) -> Self:
        """The database at that path, or of that URL, for writing and reading; migrated where it is old.

        A file is made where there is none, and the tables of a PostgreSQL database that is empty.

        Raises:
            ValueError: it is a URL of something else than PostgreSQL.
            StoreNotFound: its folder is missing, it is a directory, or it cannot be written; its server cannot be
                reached.
            StoreForeign: the file there is no database of root-dash, or of a newer schema.
            StoreBusy: it is of an older schema, and another process has it open.
        """
        place = parse(path)
        if isinstance(place, Path) and _filled(place):
            with suppress(StoreForeign):  # another may be making it at this moment; what is wrong the next line says
                migrate(place)
        writer = open_writer(place)
        return cls(place, open_reader(place), writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the recordings that were begun here and let go of the file; more than once does nothing."""
        self._closed = True
        for recording in self._recordings:
            recording.close()
        if self._listener is not None:
            self._listener.close()
        self._reader.dispose()
        if self._writer is not None:
            # Last, so that SQLite finds no reader of ours and folds the write-ahead log into the file.
            self._writer.dispose()

    def begin(self, run: Run, layers: Sequence[Layer], attempt: Attempt | None = None) -> Recording:
        """Begin an attempt of a run, which is stored where its `uid` is new and resumed where it is known.

        An attempt whose `uid` is known goes on; without one it is a new one of this process.

        Raises:
            ValueError: two layers share a position, or a resumed run's layer has another shape.
            AlreadyRecorded: the attempt is one at another run.
            StoreError: the store was opened for reading, or cannot be written.
        """
        if self._writer is None or self._closed:
            raise StoreError(f"{self.path} is not open for writing")
        recording = Recording(self._writer, self.path, run, layers, attempt)
        self._recordings = [*(one for one in self._recordings if one.is_open), recording]
        return recording

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        self._follow()
        with translated(self.path), self._reader.connect() as connection:
            try:
                yield connection
            except OverflowError:
                raise ValueError("ids and steps must be integers of 64 bits") from None

    def _follow(self) -> None:
        """Open the file anew where another one has taken its place: SQLite would go on reading the one that is gone.

        So it would read what was there first, where it was opened as a file that nobody writes to, and somebody does.
        """
        if self._writer is not None or state(self._reader, self.path) in (None, self._file):
            return
        with self._reopening:
            if state(self._reader, self.path) != self._file:
                self._reader.dispose()
                self._reader = open_reader(self.path)
                self._file = state(self._reader, self.path)
                self._edges.clear()

    def _edges_of(self, connection: Connection, run_id: int) -> Float64Array:
        edges = self._edges.get(run_id)
        if edges is None:
            column = schema.runs.c.histogram_edges
            content = connection.execute(select(column).where(schema.runs.c.id == run_id)).scalar_one()
            edges = decode(content, "<f8")
            edges = histogram_edges() if np.array_equal(edges, histogram_edges()) else edges
            edges.flags.writeable = False
            self._edges[run_id] = edges  # a run's edges never change
        return edges


def _filled(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except (OSError, ValueError):
        return False  # opening it says why
