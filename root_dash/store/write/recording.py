"""The recording of an attempt into a store."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, insert, select, update

from root_dash.exceptions import AlreadyRecorded, StoreError, StoreMoved
from root_dash.records import KINDS, Attempt, Frame, Layer, Run
from root_dash.records.validation import checked
from root_dash.store.backends import sqlite_file
from root_dash.store.backends.backend import Backend
from root_dash.store.judge import Judge
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.fold import Pyramid
from root_dash.store.tables import schema
from root_dash.store.write import attempts, rows
from root_dash.store.write.judging import RunJudge, Tell
from root_dash.store.write.outlier_counts import RunningCounts
from root_dash.store.write.runs import store_layers, store_run


class Recording:
    """An attempt at a run, open for appending.

    `append` may be called from another thread than the thread that began the recording, one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        run: Run,
        layers: Sequence[Layer],
        attempt: Attempt | None = None,
        judge: Judge | None = None,
        tell: Tell | None = None,
    ) -> None:
        attempt = attempts.new_attempt() if attempt is None else attempt
        self._backend = backend
        self._pid = os.getpid()
        self._lock = threading.RLock()
        positions = [layer.position for layer in layers]
        if len(set(positions)) != len(positions):
            raise ValueError("layers must have a position each, got one twice")
        with backend.translated(), ExitStack() as undo:
            connection = engine.connect()
            undo.callback(connection.close)
            with connection.begin():
                backend.lock(connection)
                self.run, known = store_run(connection, run, attempt)
                self.layers = store_layers(connection, self.run.id, layers)
                self._attempt = attempts.add(connection, attempt, self.run.id) if known is None else known
                self._pyramid = Pyramid(connection, self.run.id, self._attempt)
                self._counts = RunningCounts(self.run.id, self._attempt)
                self._judge = None if judge is None else RunJudge(judge, self.run.id, backend.limits, tell)
                self._insertion = (
                    backend.insert(schema.frames)
                    .on_conflict_do_nothing(index_elements=["attempt_id", "seq"])
                    .returning(schema.frames.c.id)
                )
            undo.pop_all()
            self._connection: Connection | None = connection
        self._ids = {layer.position: layer.id for layer in self.layers}
        self._file = backend.identity()

    def append(self, frame: Frame) -> int:
        """Store a frame, whole or not at all, and return its cursor. A frame that is stored already does not change.

        Raises:
            ValueError: the frame contradicts itself or the run's layers.
            AlreadyRecorded: another frame is stored under the same number.
            StoreBusy: another process holds the database for longer than the timeout.
            StoreMoved: the file was deleted or replaced meanwhile.
            StoreError: the frame could not be stored: the disk is full.
        """
        with self._lock:
            frame = checked(frame)
            connection, backend = self._require_connection(), self._backend
            self._require_file()
            self._counts.discard()  # the counts of a frame that could not be stored
            with backend.translated(), connection.begin():
                backend.lock(connection, self.run.id, notify=True)
                inserted = backend.execute(
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
                    return self._stored_before(connection, frame)
                self._store(connection, frame, int(inserted[0]))
            self._counts.keep()
            if self._judge is not None:
                self._judge.keep()
            return int(inserted[0])

    def _stored_before(self, connection: Connection, frame: Frame) -> int:
        """Return the cursor of a stored frame; raise AlreadyRecorded if another frame has the number."""
        columns = schema.frames.c
        query = select(columns.id, columns.step, columns.time)
        same = (columns.attempt_id == self._attempt) & (columns.seq == frame.seq)
        known = connection.execute(query.where(same)).one()
        if (known.step, known.time) != (frame.step, frame.time):
            raise AlreadyRecorded(f"another frame of the attempt is stored already as frame {frame.seq}")
        return int(known.id)

    def _store(self, connection: Connection, frame: Frame, frame_id: int) -> None:
        """Store the parts of a frame, and bring everything derived up to date."""
        for table, content in (
            (schema.histograms, rows.histograms(frame, frame_id, self._ids)),
            (schema.quantiles, rows.quantiles(frame, frame_id, self._ids)),
            (schema.spectra, rows.spectra(frame, frame_id, self._ids)),
            (schema.masks, rows.masks(frame, frame_id, self._ids, connection, self._counts)),
            (schema.scalars, rows.scalars(frame, frame_id, self.run.id)),
        ):
            self._backend.insert_rows(connection, table, [tuple(map(row.get, table.c.keys())) for row in content])
        layers = rows.layer_ids(frame, self._ids)
        if self._judge is not None:
            frame = self._judge.judge(connection, frame, frame_id, self._ids)
        if events := rows.events(frame, frame_id, self.run.id):
            connection.execute(insert(schema.events), events)
        if len(layers):
            keys = np.column_stack([np.full_like(layers, frame_id), np.full_like(layers, frame.step), layers])
            self._backend.insert_numbers(connection, schema.layer_statistics, keys, frame.statistics)
            self._pyramid.keep(frame_id, frame.step, layers, frame.statistics)
        self._pyramid.add(frame.step, frame.kinds)
        run_totals.add(connection, self.run.id, frame)

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add new layers to the run. A layer that the run has does not change.

        Raises:
            ValueError: two layers share a position, or a known layer has another shape.
            StoreError: the layers could not be stored.
        """
        with self._lock, self._backend.translated():
            connection = self._require_connection()
            self._require_file()
            new = [layer for layer in layers if layer not in [replace(known, id=layer.id) for known in self.layers]]
            if len({layer.position for layer in (*self.layers, *new)}) < len(self.layers) + len(new):
                raise ValueError("layers must have a position each, got one twice")
            with connection.begin():
                self._backend.lock(connection)
                stored = store_layers(connection, self.run.id, new)
                self._pyramid = Pyramid(connection, self.run.id, self._attempt)
            self.layers = (*self.layers, *stored)
            self._ids |= {layer.position: layer.id for layer in stored}
            if self._judge is not None:
                self._judge.forget_layers()

    def end(self, time: float | None, lost: int = 0) -> None:
        """Record the end of the attempt, and of the run.

        A run that goes on in a later attempt does not end: the rest of this attempt may arrive late.

        Args:
            time: the end in seconds since the epoch. None for an attempt whose end nobody saw; what is stored outlives
                a loss of power all the same.
            lost: frames lost after the last stored frame, which no later frame can tell.
        """
        with self._lock, self._backend.translated():
            connection = self._require_connection()
            self._require_file()
            with self._backend.durable(connection), connection.begin():
                self._backend.lock(connection, self.run.id)
                self._pyramid.finish()
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
        """Whether the recording was not closed yet."""
        return self._connection is not None

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        if self._pid != os.getpid():
            return  # a thread of the parent process may have held the lock
        if self._backend.identity() != self._file:
            self.abandon()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def other_processes(self) -> list[int]:
        """Return the ids of this machine's other processes that record to the database now."""
        with self._lock, self._backend.translated():
            connection = self._require_connection()
            with connection.begin():
                return attempts.other_processes(connection)

    def copy_to(self, path: Path) -> None:
        """Copy the whole database into a new file, also if the old file was deleted meanwhile.

        Raises:
            StoreError: the database could not be read, or the new file could not be written.
        """
        with self._lock, self._backend.translated():
            raw = self._require_connection().connection.dbapi_connection
            assert raw is not None
            raw.cursor().execute("VACUUM INTO ?", (str(path),))

    def abandon(self) -> None:
        """Close the connection to a file that is gone, and touch nothing else."""
        with self._lock:
            if self._connection is not None:
                self._connection.detach()
                raw, self._connection = self._connection.connection.dbapi_connection, None
                sqlite_file.abandon(raw)

    def _require_file(self) -> None:
        """Raise StoreMoved if the file is gone: SQLite would go on writing into a file that nobody can open again."""
        if self._backend.identity() != self._file:
            raise StoreMoved(f"{self._backend.location} was deleted or replaced while it was being recorded to")

    def _require_connection(self) -> Connection:
        if self._pid != os.getpid():
            raise StoreError("a recording cannot be used in a forked process")
        if self._connection is None:
            raise StoreError(f"the recording to {self._backend.location} is closed")
        return self._connection
