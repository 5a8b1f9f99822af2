"""Queries of several verbs, and records from rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Select, Table, cast, func, select

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.records import (
    KINDS,
    TENSORS,
    Float64Array,
    IntArray,
    Kind,
    Layer,
    Mask,
    Notice,
    Run,
    Spectrum,
    TensorName,
    statistic,
)
from root_dash.store.backends.backend import backend_of
from root_dash.store.pyramid import downsampling, run_totals, views
from root_dash.store.pyramid.buckets import Buckets
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.tables.growth import readable

Fields = Row[*tuple[Any, ...]]
Query = Select[*tuple[Any, ...]]

SPECTRUM = ("momentum", "base", "update", "estimated")
"""The columns of a spectrum, besides the step."""

_BOUND_VALUES = 500
"""Values in one statement: SQLite binds a limited number of values."""

_MASK_LIMIT = 2**31
"""Entries of a mask: a damaged size must not ask for more memory than the machine has."""


def runs(connection: Connection, run_id: int | None = None) -> list[Run]:
    """Return all runs, the newest first, or only the run with this id."""
    columns, attempts = schema.runs.c, schema.attempts.c
    sum_lost = cast(func.sum(attempts.lost), BigInteger)  # PostgreSQL sums to decimals
    lost_last = select(sum_lost).where(attempts.run_id == columns.id).scalar_subquery()
    query = select(schema.runs, lost_last.label("lost_last")).order_by(columns.started_at.desc(), columns.id.desc())
    if run_id is not None:
        query = query.where(columns.id == run_id)
    known = run_totals.stored(connection, run_id)
    # A run without a total has no frames, or its total was removed.
    return [
        _run(row, known.get(row.id) or run_totals.counted(connection, row.id))
        for row in connection.execute(query).all()
    ]


def _run(row: Fields, total: run_totals.Total) -> Run:
    return Run(
        uid=row.uid,
        name=row.name,
        started_at=row.started_at,
        config=_mapping(row.config),
        cadence=_mapping(row.cadence),
        optimizer=_mapping(row.optimizer),
        rank=row.rank,
        ended_at=row.ended_at,
        id=row.id,
        frames=total.frames,
        lost=total.lost + (row.lost_last or 0),
        last_step=total.last_step,
        last_time=total.last_time,
    )


def require_run(connection: Connection, run_id: int) -> None:
    """Raise NotRecorded if there is no run with this id."""
    if connection.execute(select(schema.runs.c.id).where(schema.runs.c.id == run_id)).first() is None:
        raise NotRecorded(f"there is no run {run_id}")


def run_of(connection: Connection, layer_id: int) -> int:
    """Return the id of a layer's run; raise NotRecorded if there is no such layer."""
    run_id = connection.execute(select(schema.layers.c.run_id).where(schema.layers.c.id == layer_id)).scalar()
    if run_id is None:
        raise NotRecorded(f"there is no layer {layer_id}")
    return int(run_id)


def layers_of(connection: Connection, run_id: int) -> list[Layer]:
    """Return a run's layers in the order of the model; raise NotRecorded if there is no such run."""
    columns = schema.layers.c
    query = select(schema.layers).where(columns.run_id == run_id).order_by(columns.position, columns.id)
    layers = [to_layer(row) for row in connection.execute(query)]
    if not layers:
        require_run(connection, run_id)
    return layers


def to_layer(row: Fields) -> Layer:
    """Return the layer of a row of the layers table."""
    return Layer(row.name, _shape(row.shape), row.algorithm, row.position, row.id)


def notices_query(run_id: int) -> Query:
    """Return the query of a run's frames, without an order."""
    columns = schema.frames.c
    return select(columns.id, columns.run_id, columns.seq, columns.step, columns.time, columns.kinds).where(
        columns.run_id == run_id
    )


def to_notice(row: Fields) -> Notice:
    """Return the notice of a row of `notices_query`."""
    kinds = tuple(kind for bit, kind in enumerate(KINDS) if row.kinds & (1 << bit))
    return Notice(row.id, row.run_id, row.seq, row.step, row.time, kinds)


def statistic_kind(name: str) -> Kind:
    """Return the kind of a statistic; raise ValueError if there is no such statistic."""
    try:
        return statistic(name).kind
    except KeyError:
        raise ValueError(f"there is no statistic of the name {name!r}") from None


def checked_tensor(tensor: TensorName) -> TensorName:
    """Return `tensor`; raise ValueError if TENSORS does not have it."""
    if tensor not in TENSORS:
        raise ValueError(f"tensor must be one of {', '.join(TENSORS)}, got {tensor!r}")
    return tensor


def series(
    connection: Connection, run_id: int, table: Table, value: ColumnElement[Any], where: ColumnElement[bool]
) -> tuple[IntArray, Float64Array]:
    """Return the steps, ascending and each once, and the values of a scalar."""
    query = select(table.c.frame_id, table.c.step, value).where(where).order_by(table.c.frame_id)
    frames, steps, values = fetch_columns(connection, query, np.int64, np.int64, np.float64)
    keys = np.zeros_like(steps)
    if not downsampling.in_order(keys, steps):
        columns = schema.frames.c
        attempts = select(columns.id, columns.attempt_id).where(columns.run_id == run_id).order_by(columns.id)
        known, of_attempt = fetch_columns(connection, attempts, np.int64, np.int64)
        kept = downsampling.newest(keys, steps, of_attempt[np.searchsorted(known, frames)], frames)
        steps, values = steps[kept], values[kept]
    return steps, values


def costs(connection: Connection, run_id: int) -> tuple[IntArray, Float64Array]:
    """Return the steps, ascending, and the seconds of recording at each step. A step may have several frames."""
    columns = schema.frames.c
    query = select(columns.attempt_id, columns.step, columns.cost).where(columns.run_id == run_id)
    attempts, steps, seconds = fetch_columns(connection, query, np.int64, np.int64, np.float64)
    found, place = np.unique(steps, return_inverse=True)
    newest, total = np.zeros(len(found), np.int64), np.zeros(len(found))
    np.maximum.at(newest, place, attempts)
    counted = attempts == newest[place]  # the cost of a step that was trained again is the cost of the last time
    np.add.at(total, place[counted], seconds[counted])
    return found, total


def at_step(
    connection: Connection,
    kind: Kind,
    layer_id: int,
    step: int | None,
    names: Sequence[str],
    required: str | None = None,
) -> Fields | None:
    """Return the step and some columns of a layer's latest row at or before a step, or of the newest row.

    Args:
        connection: a connection inside a transaction.
        kind: the kind of recording.
        layer_id: the id of the layer.
        step: the step; if None, the newest row counts.
        names: the names of the columns.
        required: a column that must not be NULL.
    """
    frames = schema.frames.c
    run_id = run_of(connection, layer_id)
    if not views.holds(Buckets(connection, run_id), kind, layer_id):
        return None  # otherwise the search would go through every frame of the run
    table = readable(connection, schema.RECORDINGS[kind])
    query = (
        select(table.c.step, *(table.c[name] for name in names))
        .select_from(schema.frames.join(table, table.c.frame_id == frames.id))
        .where(
            frames.run_id == run_id,
            frames.kinds.bitwise_and(1 << KINDS.index(kind)) != 0,
            table.c.layer_id == layer_id,
        )
    )
    if required is not None:
        query = query.where(table.c[required].is_not(None))
    if step is None:
        newest = backend_of(connection).frame_ids().desc()
        return connection.execute(query.order_by(newest).limit(1)).first()
    order = (frames.step.desc(), frames.attempt_id.desc(), frames.id.desc())
    return connection.execute(query.where(frames.step <= step).order_by(*order).limit(1)).first()


def over_steps(
    connection: Connection, run_id: int, kind: Kind, layer_id: int, max_points: int, names: Sequence[str]
) -> tuple[list[Sequence[Any]], int]:
    """Return at most `max_points` of a layer's rows, by ascending step and evenly apart, and the number of all.

    A row is the step, the named columns, and the id of the frame.
    """
    _, frames = views.recorded(Buckets(connection, run_id), kind, layer_id)
    chosen = frames[downsampling.spread(len(frames), max_points)]
    table = readable(connection, schema.RECORDINGS[kind])
    query = select(table.c.step, *(table.c[name] for name in names), table.c.frame_id)
    query = query.where(table.c.layer_id == layer_id)
    if len(chosen) > _BOUND_VALUES and len(chosen) == len(frames):
        # All rows, found by the run's frames: the statement is shorter than with so many ids.
        join = schema.frames.join(table, table.c.frame_id == schema.frames.c.id)
        held = schema.frames.c.kinds.bitwise_and(1 << KINDS.index(kind)) != 0
        queries = [query.select_from(join).where(schema.frames.c.run_id == run_id, held)]
    else:
        parts = (chosen[start : start + _BOUND_VALUES].tolist() for start in range(0, len(chosen), _BOUND_VALUES))
        queries = [query.where(table.c.frame_id.in_(part)) for part in parts]
    found: list[Sequence[Any]] = []
    for wanted in queries:
        cursor = connection.execute(wanted).cursor
        assert cursor is not None
        found.extend(cursor.fetchall())
    counted = set(chosen.tolist())
    return sorted((row for row in found if row[-1] in counted), key=itemgetter(0)), len(frames)


def fetch_columns(connection: Connection, query: Query, *types: type[np.generic]) -> list[NDArray[Any]]:
    """Return a query's columns of integers and floats as arrays of these types; NULL is NaN."""
    cursor = connection.execute(query).cursor
    assert cursor is not None
    # The driver's own tuples: to make a Row of each would take longer than to read them from the file.
    columns = list(zip(*cursor.fetchall(), strict=True)) or [()] * len(types)
    return [np.array(column, kind) for column, kind in zip(columns, types, strict=True)]


def not_recorded(what: str, layer_id: int, step: int | None) -> NotRecorded:
    """Return the error for a recording of a layer that is missing."""
    when = "yet" if step is None else f"at or before step {step}"
    return NotRecorded(f"layer {layer_id} has no {what} {when}")


def number(value: float | None) -> float:
    """Return a number of the database: NULL is NaN."""
    return math.nan if value is None else float(value)


def to_spectrum(row: Sequence[Any]) -> Spectrum:
    """Return the spectrum of a row, which begins with the step and the columns of `SPECTRUM`."""
    momentum, base, update = (decode(content, "<f4") for content in row[1:4])
    return Spectrum(momentum, base, update, step=row[0], estimated=bool(row[4]))


def to_mask(row: Fields) -> Mask:
    """Return the mask of a row of the masks table."""
    rows, cols, height, width = row.rows, row.cols, row.pooled_rows, row.pooled_cols
    if min(rows, cols, height, width) < 0 or rows * cols > _MASK_LIMIT or height * width > _MASK_LIMIT:
        raise StoreError(f"a mask in the database is damaged: {rows} x {cols} entries")
    values = decode(row.largest_values, "<f4")
    packed = row.packed and decode(row.packed, "|u1", -(-rows * cols // 8), compressed=True).tobytes()
    return Mask(
        rows=rows,
        cols=cols,
        pooled=decode(row.pooled, "<u4", height * width, compressed=True).reshape(height, width),
        row_totals=decode(row.row_totals, "<u4", rows, compressed=True),
        col_totals=decode(row.col_totals, "<u4", cols, compressed=True),
        largest=decode(row.largest, "<u4", 2 * len(values)).astype(np.int64).reshape(-1, 2),
        largest_values=values,
        packed=packed,
        step=row.step,
    )


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StoreError(f"a run's description in the database is damaged: {error}") from error
    return value if isinstance(value, dict) else {}


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in json.loads(text))
    except (TypeError, ValueError) as error:
        raise StoreError(f"a layer's shape in the database is damaged: {error}") from error
