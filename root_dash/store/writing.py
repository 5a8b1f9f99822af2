"""Frames in: one attempt's recording into a store."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, Insert, insert, select, update

from root_dash.exceptions import AlreadyRecorded, StoreError, StoreMoved
from root_dash.records import (
    KINDS,
    QUANTILE_COUNT,
    TENSORS,
    Attempt,
    CountArray,
    Frame,
    Histogram,
    IntArray,
    Layer,
    Mask,
    Quantiles,
    Run,
    histogram_edges,
    statistic_names,
)
from root_dash.store import attempts, schema, sqlite
from root_dash.store.counts import pack
from root_dash.store.encoding import encode, text
from root_dash.store.engine import identity, insert_numbers, insert_or_ignore, insert_rows, lock, tell, translated
from root_dash.store.folding import Pyramid
from root_dash.store.place import Place
from root_dash.store.tally import Tally

Row = dict[str, Any]


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
                self.run, known = _store_run(connection, run, attempt)
                self.layers = _store_layers(connection, self.run.id, layers)
                self._attempt = attempts.add(connection, attempt, self.run.id) if known is None else known
                self._derived = Pyramid(connection, self.run.id, self._attempt)
                self._tally = Tally()
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
            connection = self._open()
            self._stay()
            self._tally.forget()  # of a frame that could not be stored
            with translated(self._path), connection.begin():
                lock(connection, self.run.id)
                stored = connection.execute(
                    insert_or_ignore(connection, schema.frames)
                    .on_conflict_do_nothing(index_elements=["attempt_id", "seq"])
                    .returning(schema.frames.c.id),
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
                ).scalar()
                if stored is None:
                    columns = schema.frames.c
                    query = select(columns.id, columns.step, columns.time)
                    same = (columns.attempt_id == self._attempt) & (columns.seq == frame.seq)
                    known = connection.execute(query.where(same)).one()
                    if (known.step, known.time) != (frame.step, frame.time):
                        raise AlreadyRecorded(f"frame {frame.seq} of the attempt is stored already, and another one")
                    return int(known.id)
                for table, rows in (
                    (schema.histograms, self._histograms(frame, stored)),
                    (schema.quantiles, self._quantiles(frame, stored)),
                    (schema.spectra, self._spectra(frame, stored)),
                    (schema.masks, self._masks(connection, frame, stored)),
                    (schema.scalars, self._scalars(frame, stored)),
                ):
                    insert_rows(connection, table, [tuple(map(row.get, table.c.keys())) for row in rows])
                events, layers = self._events(frame, stored), self._measured(frame, stored)
                if events:
                    connection.execute(insert(schema.events), events)
                if len(layers):
                    keys = np.column_stack([np.full_like(layers, stored), layers, np.full_like(layers, frame.step)])
                    insert_numbers(connection, schema.layer_statistics, keys, frame.statistics)
                    self._derived.keep(stored, frame.step, layers, frame.statistics)
                self._derived.add(frame.step, frame.kinds)
                tell(connection, self.run.id)
            self._tally.keep()
            return int(stored)

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
                stored = _store_layers(connection, self.run.id, new)
                self._derived = Pyramid(connection, self.run.id, self._attempt)
            self.layers = (*self.layers, *stored)
            self._ids |= {layer.position: layer.id for layer in stored}

    def end(self, time: float, lost: int = 0) -> None:
        """Record that the attempt, and with it the run, ended at that time, in seconds since the epoch.

        `lost` counts the frames lost after the last that was stored: no later frame can say so.
        """
        with self._lock, translated(self._path):
            connection = self._open()
            self._stay()
            with _durable(connection), connection.begin():
                lock(connection, self.run.id)
                self._derived.finish()
                ended = {"ended_at": time, "lost": lost}
                connection.execute(update(schema.attempts).where(schema.attempts.c.id == self._attempt).values(ended))
                connection.execute(update(schema.runs).where(schema.runs.c.id == self.run.id).values(ended_at=time))
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

    def _place(self, frame: Frame, frame_id: int, position: int) -> Row:
        try:
            layer = self._ids[int(position)]
        except KeyError:
            raise ValueError(
                f"frame {frame.seq} names layer position {position}, but the run has {len(self._ids)} layers"
            ) from None
        return {"layer_id": layer, "frame_id": frame_id, "step": frame.step}

    def _measured(self, frame: Frame, frame_id: int) -> IntArray:
        """The ids of the layers that the frame has statistics of."""
        names = statistic_names("statistics")
        if frame.statistics.shape != (len(frame.layers), len(names)):
            raise ValueError(
                f"statistics must have shape {(len(frame.layers), len(names))}, got {frame.statistics.shape}"
            )
        positions = frame.layers.tolist()
        return np.array([self._place(frame, frame_id, position)["layer_id"] for position in positions], np.int64)

    def _histograms(self, frame: Frame, frame_id: int) -> list[Row]:
        rows, held = [], []
        for position, by_tensor in frame.histograms.items():
            row = self._place(frame, frame_id, position)
            for tensor in TENSORS:
                histogram = by_tensor.get(tensor)
                row[f"{tensor}_counts"] = None
                row[f"{tensor}_nan"] = None if histogram is None else histogram.nan
                row[f"{tensor}_inf"] = None if histogram is None else histogram.inf
                if histogram is not None:
                    held.append((row, f"{tensor}_counts", _counts(histogram)))
            rows.append(row)
        # All of a frame at once: the cost of packing is in its calls.
        packed = pack(np.stack([counts for _, _, counts in held])) if held else []
        for (row, name, _), content in zip(held, packed, strict=True):
            row[name] = content
        return rows

    def _quantiles(self, frame: Frame, frame_id: int) -> list[Row]:
        rows = []
        for position, by_tensor in frame.quantiles.items():
            row = self._place(frame, frame_id, position)
            for tensor in TENSORS:
                quantiles = by_tensor.get(tensor)
                row[f"{tensor}_values"] = None if quantiles is None else _values(quantiles)
                row[f"{tensor}_count"] = None if quantiles is None else quantiles.count
            rows.append(row)
        return rows

    def _spectra(self, frame: Frame, frame_id: int) -> list[Row]:
        return [
            self._place(frame, frame_id, position)
            | _named(statistics, statistic_names("spectra"))
            | {name: encode(getattr(spectrum, name), "<f4") for name in ("momentum", "base", "update")}
            | {"estimated": int(spectrum.estimated)}
            for position, (spectrum, statistics) in frame.spectra.items()
        ]

    def _masks(self, connection: Connection, frame: Frame, frame_id: int) -> list[Row]:
        rows = []
        for position, (mask, statistics) in frame.masks.items():
            row = self._place(frame, frame_id, position) | _named(statistics, statistic_names("masks"))
            row |= _mask_columns(mask)
            rows.append(row | self._tally.add(connection, row["layer_id"], mask.row_totals, mask.col_totals))
        return rows

    def _events(self, frame: Frame, frame_id: int) -> list[Row]:
        return [
            {
                "run_id": self.run.id,
                "step": event.step,
                "time": event.time,
                "kind": text(event.kind),
                "text": text(event.text),
                "frame_id": frame_id,
            }
            for event in frame.events
        ]

    def _scalars(self, frame: Frame, frame_id: int) -> list[Row]:
        return [
            {
                "run_id": self.run.id,
                "name": text(name),
                "frame_id": frame_id,
                "step": frame.step,
                "value": float(value),
            }
            for name, value in frame.scalars.items()
        ]


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


def _insert(connection: Connection, row: Insert) -> int:
    key = connection.execute(row).inserted_primary_key
    assert key is not None
    return int(key[0])


def _store_run(connection: Connection, run: Run, attempt: Attempt) -> tuple[Run, int | None]:
    """The run as it is stored, and the key of an attempt at it that goes on."""
    columns = schema.runs.c
    uid = text(run.uid)
    known = connection.execute(select(columns.id).where(columns.uid == uid)).scalar()
    if known is not None:
        # A resumed run: what was said of it first stays.
        going_on = attempts.belongs(connection, attempt, int(known))
        if going_on is None:
            connection.execute(update(schema.runs).where(columns.id == known).values(ended_at=None))  # it trains again
        return replace(run, id=int(known), ended_at=None), going_on
    key = _insert(
        connection,
        insert(schema.runs).values(
            uid=uid,
            name=text(run.name),
            started_at=run.started_at,
            ended_at=run.ended_at,
            config=_json(run.config),
            cadence=_json(run.cadence),
            optimizer=_json(run.optimizer),
            histogram_edges=encode(histogram_edges(), "<f8"),
            rank=run.rank,
        ),
    )
    return replace(run, id=key), attempts.belongs(connection, attempt, key)


def _store_layers(connection: Connection, run_id: int, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    columns = schema.layers.c
    known = {
        row.name: row
        for row in connection.execute(select(columns.id, columns.name, columns.shape).where(columns.run_id == run_id))
    }
    stored = []
    for layer in layers:
        name, shape = text(layer.name), json.dumps([int(size) for size in layer.shape])
        if name not in known:
            key = _insert(
                connection,
                insert(schema.layers).values(
                    run_id=run_id,
                    position=layer.position,
                    name=name,
                    shape=shape,
                    algorithm=text(layer.algorithm),
                ),
            )
        elif known[name].shape == shape:
            key = known[name].id
        else:
            raise ValueError(f"layer {name!r} of the run has shape {known[name].shape}, got {shape}")
        stored.append(replace(layer, name=name, id=int(key)))
    return tuple(stored)


def _counts(histogram: Histogram) -> CountArray:
    edges = histogram_edges()
    if histogram.edges is not edges and not np.array_equal(histogram.edges, edges):
        raise ValueError("a histogram must lie on the run's edges, got others")
    if histogram.counts.shape != (len(edges) - 1,):
        raise ValueError(f"a histogram must have {len(edges) - 1} counts, got shape {histogram.counts.shape}")
    return histogram.counts.astype(np.uint32, casting="same_kind", copy=False)


def _values(quantiles: Quantiles) -> bytes:
    if quantiles.values.shape != (QUANTILE_COUNT,):
        raise ValueError(f"quantiles must have {QUANTILE_COUNT} values, got shape {quantiles.values.shape}")
    return encode(quantiles.values, "<f4")


def _mask_columns(mask: Mask) -> Row:
    if mask.row_totals.shape != (mask.rows,) or mask.col_totals.shape != (mask.cols,) or mask.pooled.ndim != 2:
        raise ValueError(f"a mask of {mask.rows} x {mask.cols} must have as many totals and a two-dimensional map")
    if mask.largest.shape != (len(mask.largest_values), 2):
        raise ValueError(f"a mask's largest entries must be {len(mask.largest_values)} pairs, got {mask.largest.shape}")
    if mask.packed and len(mask.packed) != -(-mask.rows * mask.cols // 8):
        raise ValueError(
            f"a packed mask of {mask.rows} x {mask.cols} must be one bit an entry, got {len(mask.packed)} bytes"
        )
    if mask.largest.size and not 0 <= mask.largest.min() <= mask.largest.max() < 2**32:
        raise ValueError("a mask's largest entries must be rows and columns of it")
    return {
        "rows": mask.rows,
        "cols": mask.cols,
        "pooled_rows": mask.pooled.shape[0],
        "pooled_cols": mask.pooled.shape[1],
        "pooled": encode(mask.pooled, "<u4", compress=True),
        "row_totals": encode(mask.row_totals, "<u4", compress=True),
        "col_totals": encode(mask.col_totals, "<u4", compress=True),
        "largest": encode(mask.largest.astype(np.uint32), "<u4"),
        "largest_values": encode(mask.largest_values, "<f4"),
        "packed": encode(mask.packed, "|u1", compress=True) if mask.packed else b"",
    }


def _named(statistics: Mapping[str, float], names: tuple[str, ...]) -> Row:
    unknown = statistics.keys() - set(names)
    if unknown:
        raise ValueError(f"there is no such statistic: {', '.join(sorted(unknown))}")
    return {name: float(statistics.get(name, math.nan)) for name in names}


def _json(value: Any) -> str:
    return json.dumps(_plain(value, 0))


def _plain(value: Any, depth: int) -> Any:
    # What a user passes as a config may hold anything: paths, enums, classes. What JSON lacks is kept as its repr.
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value) if abs(int(value)) < 2**63 else hex(value)  # Python refuses to print very long ones
    if isinstance(value, float | np.floating):
        return float(value)
    if depth < 20 and isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if depth < 20 and isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    try:
        return repr(value)
    except Exception:  # somebody else's code: a config that cannot show itself must not stop a training run
        return f"<{type(value).__name__}>"
