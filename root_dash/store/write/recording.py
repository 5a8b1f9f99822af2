"""Frames in: one attempt's recording into a store."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, insert, select, update

from root_dash.exceptions import AlreadyRecorded, StoreError, StoreMoved
from root_dash.records import (
    KINDS,
    Attempt,
    Frame,
    Layer,
    Run,
)
from root_dash.store.backends import sqlite
from root_dash.store.backends.engine import (
    execute,
    identity,
    insert_numbers,
    insert_or_ignore,
    insert_rows,
    lock,
    translated,
)
from root_dash.store.backends.location import Place
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.fold import Pyramid
from root_dash.store.tables import schema
from root_dash.store.write import attempts, rows
from root_dash.store.write.outlier_counts import Tally
from root_dash.store.write.runs import store_layers, store_run


class Recording:
    """One attempt of a run, open for appending.

    `append` may be called from another thread than the one that began it, one thread at a time.
    """

    def __init__(
        self, engine: Engine, path: Place, run: Run, layers: Sequence[Layer], attempt: Attempt | None = None
    ) -> None:
        attempt = attempts.here() if attempt is None else attempt
        self._path = path
        self._pid = os.getpid()
        self._lock = threading.RLock()
        positions = [layer.position for layer in layers]
        if len(set(positions)) != len(positions):
            raise ValueError("layers must have a position each, got one twice")
        with translated(path), ExitStack() as undo:
            connection = engine.connect()
            undo.callback(connection.close)
            with connection.begin():
                lock(connection)
                self.run, known = store_run(connection, run, attempt)
                self.layers = store_layers(connection, self.run.id, layers)
                self._attempt = attempts.add(connection, attempt, self.run.id) if known is None else known
                self._derived = Pyramid(connection, self.run.id, self._attempt)
                self._tally = Tally(self.run.id, self._attempt)
                self._insertion = (
                    insert_or_ignore(connection, schema.frames)
                    .on_conflict_do_nothing(index_elements=["attempt_id", "seq"])
                    .returning(schema.frames.c.id)
                )
            undo.pop_all()
            self._connection: Connection | None = connection
        self._ids = {layer.position: layer.id for layer in self.layers}
        self._file = identity(path)

    def append(self, frame: Frame) -> int:
        """Store a frame, whole or not at all, and return its cursor; one that is stored already stays as it is.

        Raises:
            ValueError: the frame contradicts itself or the run's layers.
            AlreadyRecorded: another frame is stored under its number.
            StoreBusy: another process holds the database for longer than the timeout.
            StoreMoved: the file was deleted or replaced meanwhile.
            StoreError: it could not be stored: the disk is full.
        """
        with self._lock:
            frame = rows.checked(frame)
            connection = self._open()
            self._stay()
            self._tally.forget()  # of a frame that could not be stored
            with translated(self._path), connection.begin():
                lock(connection, self.run.id, telling=True)
                inserted = execute(
                    connection,
                    self._insertion,
                    {
                        "run_id": self.run.id,
                        "attempt_id": self._attempt,
                        "seq": frame.seq,
                        "step": frame.step,
                        "time": frame.time,
                        "kinds": sum(1 << KINDS.index(kind) for kind in frame.kinds),
                        "lost": frame.lost,
                        "cost": frame.cost,
                    },
                ).fetchone()
                if inserted is None:
                    columns = schema.frames.c
                    query = select(columns.id, columns.step, columns.time)
                    same = (columns.attempt_id == self._attempt) & (columns.seq == frame.seq)
                    known = connection.execute(query.where(same)).one()
                    if (known.step, known.time) != (frame.step, frame.time):
                        raise AlreadyRecorded(f"frame {frame.seq} of the attempt is stored already, and another one")
                    return int(known.id)
                stored = int(inserted[0])
                for table, content in (
                    (schema.histograms, rows.histograms(frame, stored, self._ids)),
                    (schema.quantiles, rows.quantiles(frame, stored, self._ids)),
                    (schema.spectra, rows.spectra(frame, stored, self._ids)),
                    (schema.masks, rows.masks(frame, stored, self._ids, connection, self._tally)),
                    (schema.scalars, rows.scalars(frame, stored, self.run.id)),
                ):
                    insert_rows(connection, table, [tuple(map(row.get, table.c.keys())) for row in content])
                events, layers = rows.events(frame, stored, self.run.id), rows.measured(frame, stored, self._ids)
                if events:
                    connection.execute(insert(schema.events), events)
                if len(layers):
                    keys = np.column_stack([np.full_like(layers, stored), np.full_like(layers, frame.step), layers])
                    insert_numbers(connection, schema.layer_statistics, keys, frame.statistics)
                    self._derived.keep(stored, frame.step, layers, frame.statistics)
                self._derived.add(frame.step, frame.kinds)
                run_totals.add(connection, self.run.id, frame)
            self._tally.keep()
            return stored

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers that the run did not have at its start; one that it has stays as it is.

        Raises:
            ValueError: two layers share a position, or a layer that is known has another shape.
            StoreError: they could not be stored.
        """
        with self._lock, translated(self._path):
            connection = self._open()
            self._stay()
            new = [layer for layer in layers if layer not in [replace(known, id=layer.id) for known in self.layers]]
            if len({layer.position for layer in (*self.layers, *new)}) < len(self.layers) + len(new):
                raise ValueError("layers must have a position each, got one twice")
            with connection.begin():
                lock(connection)
                stored = store_layers(connection, self.run.id, new)
                self._derived = Pyramid(connection, self.run.id, self._attempt)
            self.layers = (*self.layers, *stored)
            self._ids |= {layer.position: layer.id for layer in stored}

    def end(self, time: float | None, lost: int = 0) -> None:
        """Record that the attempt ended at that time, in seconds since the epoch, and with it the run.

        But not a run that goes on in a later attempt: what was left of this one may arrive late. None is for one whose
        end nobody saw: no more frames come, and what there is outlives lost power all the same. `lost` counts
        the frames lost after the last that was stored: no later frame can say so.
        """
        with self._lock, translated(self._path):
            connection = self._open()
            self._stay()
            with _durable(connection), connection.begin():
                lock(connection, self.run.id)
                self._derived.finish()
                ended = {"ended_at": time, "lost": lost}
                columns = schema.attempts.c
                connection.execute(update(schema.attempts).where(columns.id == self._attempt).values(ended))
                if time is not None:
                    later = (columns.run_id == self.run.id) & (columns.id > self._attempt) & columns.ended_at.is_(None)
                    of_run = (schema.runs.c.id == self.run.id) & ~select(columns.id).where(later).exists()
                    connection.execute(update(schema.runs).where(of_run).values(ended_at=time))
        self.run = replace(self.run, ended_at=time)

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return self._connection is not None

    def close(self) -> None:
        """Let go of the database; more than once does nothing."""
        if self._pid != os.getpid():
            return  # a thread of the parent's may have held the lock
        if identity(self._path) != self._file:
            self.abandon()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def beside(self) -> list[int]:
        """The ids of the other processes of this machine that are recording to the database now."""
        with self._lock, translated(self._path):
            connection = self._open()
            with connection.begin():
                return attempts.beside(connection)

    def copy_to(self, path: Path) -> None:
        """Write all that the database holds into a new file, also where it was deleted meanwhile.

        Raises:
            StoreError: it could not be read, or the other not be written.
        """
        with self._lock, translated(path):
            raw = self._open().connection.dbapi_connection
            assert raw is not None
            raw.cursor().execute("VACUUM INTO ?", (str(path),))

    def abandon(self) -> None:
        """Let go of a file that is gone, and of nothing else."""
        with self._lock:
            if self._connection is not None:
                self._connection.detach()
                raw, self._connection = self._connection.connection.dbapi_connection, None
                sqlite.abandon(raw)

    def _stay(self) -> None:
        if identity(self._path) != self._file:
            # SQLite would go on writing into a file that nobody can open again.
            raise StoreMoved(f"{self._path} was deleted or replaced while it was being recorded to")

    def _open(self) -> Connection:
        if self._pid != os.getpid():
            raise StoreError("a recording cannot be used in a forked process")
        if self._connection is None:
            raise StoreError(f"the recording to {self._path} is closed")
        return self._connection


@contextmanager
def _durable(connection: Connection) -> Iterator[None]:
    """Have SQLite write its log through to the disk: what was committed outlives a killed process, but not lost power.

    PostgreSQL always does.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    try:
        yield
    finally:
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()
