"""An open database: its connections and its recordings."""

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
from root_dash.store.backends.backend import Backend
from root_dash.store.backends.choose import backend_for
from root_dash.store.backends.location import LocationLike, Server, parse
from root_dash.store.backends.notifications import Listener
from root_dash.store.judge import Judge
from root_dash.store.limits import Limits
from root_dash.store.migrations import migrate_backend
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.write.judging import Tell
from root_dash.store.write.recording import Recording


class Database:
    """A database, opened for reading by `open`, or for writing by `create`."""

    def __init__(self, backend: Backend, writer: Engine | None = None, judge: Judge | None = None) -> None:
        self.path = backend.location
        self.limits = backend.limits
        self._backend = backend
        self._writer = writer
        self.judge = judge
        self._reader = backend.open_reader()
        self._closed = False
        self._file = backend.state(self._reader)
        self._reopening = threading.Lock()
        self._edges: dict[int, Float64Array] = {}
        self._recordings: list[Recording] = []
        self._listener = None
        if isinstance(self.path, Server):
            self._listener = Listener(backend, self._reader)

    @classmethod
    def open(cls, path: LocationLike, limits: Limits | None = None) -> Self:
        """Open the database at a path, or of a URL, for reading only.

        Raises:
            ValueError: the URL is not of PostgreSQL.
            StoreNotFound: the file is missing, a directory, or cannot be read; the server cannot be reached.
            StoreForeign: the database is not one of root-dash, or has a schema that this version does not know.
        """
        return cls(backend_for(parse(path), limits))

    @classmethod
    def create(cls, path: LocationLike, limits: Limits | None = None, judge: Judge | None = None) -> Self:
        """Open the database at a path, or of a URL, for writing and reading.

        A missing file is made, and so are the tables and columns that the database lacks. A database of an older schema
        is brought up to date; a copy of a file is kept. With a judge, frames are judged as they are stored.

        Raises:
            ValueError: the URL is not of PostgreSQL.
            StoreNotFound: the folder is missing, the path is a directory, or the file cannot be written; the server
                cannot be reached.
            StoreForeign: the database is not one of root-dash, or has a newer schema.
            StoreBusy: the database has an older schema, and another process has it open.
        """
        backend = backend_for(parse(path), limits)
        if isinstance(backend.location, Server) or _has_content(backend.location):
            with suppress(StoreForeign):  # another process may be making it now; the next line says what is wrong
                migrate_backend(backend)
        writer = backend.open_writer()
        try:
            return cls(backend, writer, judge)
        except BaseException:
            writer.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the recordings and the connections. A second call does nothing."""
        self._closed = True
        for recording in self._recordings:
            recording.close()
        if self._listener is not None:
            self._listener.close()
        self._reader.dispose()
        if self._writer is not None:
            # Last: SQLite then finds none of our readers and folds the write-ahead log into the file.
            self._writer.dispose()

    def begin(
        self, run: Run, layers: Sequence[Layer], attempt: Attempt | None = None, tell: Tell | None = None
    ) -> Recording:
        """Begin an attempt at a run. A run with a new `uid` is stored, a run with a known `uid` is resumed.

        An attempt with a known `uid` goes on. Without an attempt, this process begins a new attempt. If the store has
        a judge, `tell` gets the changes of verdicts when they are stored; it must not raise.

        Raises:
            ValueError: two layers share a position, or a resumed run's layer has another shape.
            AlreadyRecorded: the attempt is stored as an attempt at another run.
            StoreError: the store was opened for reading, or cannot be written.
        """
        recording = Recording(self._require_writer(), self._backend, run, layers, attempt, self.judge, tell)
        self._recordings = [*(one for one in self._recordings if one.is_open), recording]
        return recording

    def _require_writer(self) -> Engine:
        if self._writer is None or self._closed:
            raise StoreError(f"{self.path} is not open for writing")
        return self._writer

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        self._follow_replacement()
        with self._backend.translated(), self._reader.connect() as connection:
            try:
                yield connection
            except OverflowError:
                raise ValueError("ids and steps must be integers of 64 bits") from None

    def _follow_replacement(self) -> None:
        """Open the file anew if another file has taken its place: SQLite would go on reading the old file.

        A file that was opened as a file without writers is opened anew, too, if it has changed.
        """
        if self._writer is not None or self._backend.state(self._reader) in (None, self._file):
            return
        with self._reopening:
            if self._backend.state(self._reader) != self._file:
                self._reader.dispose()
                self._reader = self._backend.open_reader()
                self._file = self._backend.state(self._reader)
                self._edges.clear()

    def _edges_of(self, connection: Connection, run_id: int) -> Float64Array:
        edges = self._edges.get(run_id)
        if edges is None:
            column = schema.runs.c.histogram_edges
            content = connection.execute(select(column).where(schema.runs.c.id == run_id)).scalar_one()
            edges = decode(content, "<f8")
            edges = histogram_edges() if np.array_equal(edges, histogram_edges()) else edges
            edges.flags.writeable = False
            self._edges[run_id] = edges  # the edges of a run never change
        return edges


def _has_content(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except (OSError, ValueError):
        return False  # opening the file says why
