"""Retention: recordings are removed when a user says so, and never otherwise: `root-dash prune`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, func, select, update

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.records import KINDS, Kind
from root_dash.store.backends.choose import backend_for
from root_dash.store.backends.location import LocationLike, parse
from root_dash.store.migrations import migrate_backend
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.buckets import FOLDED
from root_dash.store.pyramid.fold import Pyramid
from root_dash.store.tables import schema
from root_dash.store.tables.growth import readable

_TABLES: dict[Kind, Table] = {**schema.RECORDINGS, "scalars": schema.scalars}


@dataclass(frozen=True, slots=True)
class Pruned:
    """The frames and the rows by kind that were removed, or with `dry_run` would be removed."""

    dry_run: bool
    frames: int
    rows: dict[Kind, int] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def prune(
    path: LocationLike,
    *,
    before: float | None = None,
    keep_steps: int | None = None,
    kinds: Iterable[Kind] = (),
    runs: Sequence[int] = (),
    dry_run: bool = True,
    vacuum: bool = False,
) -> Pruned:
    """Remove what is older than all rules allow, in one transaction; by default, only count.

    Args:
        path: the database; a run may be recording to it.
        before: remove frames that were taken before this time, in seconds since the epoch.
        keep_steps: remove a run's frames that are at least this number of steps before its last step.
        kinds: remove only the rows of these kinds and keep the frames; if there are none, remove whole frames.
        runs: the ids of the runs that are pruned; if there are none, all runs.
        dry_run: only count. Nothing is written, and nobody who writes has to wait.
        vacuum: give the space back to the disk as well, which writes the whole file, or every table, anew.

    Raises:
        ValueError: there is no rule: no age, no steps and no kinds.
        NotRecorded: there is no such run.
        StoreForeign: the database has an older schema, and `dry_run` forbids a migration.
        StoreError: the database cannot be written.
    """
    chosen = tuple(dict.fromkeys(kinds))
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown[0]!r}")
    if before is None and keep_steps is None and not chosen:
        raise ValueError("prune needs a rule: an age, a number of steps to keep, or kinds")
    if keep_steps is not None and keep_steps < 1:
        raise ValueError(f"keep_steps must be at least 1, got {keep_steps}")
    if before is not None and not math.isfinite(before):
        # PostgreSQL takes every time for less than NaN.
        raise ValueError(f"before must be finite, got {before}")
    backend = backend_for(parse(path))
    if not dry_run:
        migrate_backend(backend)
    engine = backend.open_reader() if dry_run else backend.open_writer()
    rows, frames = dict[Kind, int](), 0
    try:
        before_bytes = backend.size(engine)
        with backend.translated(), engine.begin() as connection:
            for run_id in _runs(connection, runs):
                if not dry_run:
                    backend.lock(connection, run_id)
                condition = _condition(connection, run_id, before, keep_steps)
                if condition is None:
                    continue
                for kind in chosen or KINDS:
                    rows[kind] = rows.get(kind, 0) + _count(connection, kind, condition)
                if not chosen:
                    frames += connection.execute(select(func.count()).where(condition)).scalar_one()
                if not dry_run:
                    _remove(connection, run_id, condition, chosen)
        if vacuum and not dry_run:
            try:
                backend.compact(engine)
            except StoreError as error:
                raise type(error)(
                    f"{error}: the frames were removed, but their room was not given back to the disk"
                ) from error
        after_bytes = backend.size(engine)
    finally:
        engine.dispose()
    return Pruned(dry_run, frames, rows, before_bytes, after_bytes)


def repair(path: LocationLike) -> int:
    """Make the pyramid and the total of every run anew from its rows, and return the number of runs.

    Raises:
        StoreError: the database cannot be written.
    """
    backend = backend_for(parse(path))
    migrate_backend(backend)
    engine = backend.open_writer()
    try:
        with backend.translated(), engine.begin() as connection:
            found = _runs(connection, ())
            for run_id in found:
                backend.lock(connection, run_id)
                Pyramid(connection, run_id).rebuild()
                run_totals.recount(connection, run_id)
    finally:
        engine.dispose()
    return len(found)


def _runs(connection: Connection, wanted: Sequence[int]) -> list[int]:
    known = list(connection.scalars(select(schema.runs.c.id).order_by(schema.runs.c.id)))
    for run_id in wanted:
        if run_id not in known:
            raise NotRecorded(f"there is no run {run_id}")
    return [run_id for run_id in known if not wanted or run_id in wanted]


def _condition(
    connection: Connection, run_id: int, before: float | None, keep_steps: int | None
) -> ColumnElement[bool] | None:
    """Return the condition of the frames that the rules remove from a run; None if the run has no frames."""
    columns = schema.frames.c
    last = connection.execute(select(func.max(columns.step)).where(columns.run_id == run_id)).scalar()
    if last is None:
        return None
    condition = columns.run_id == run_id
    if before is not None:
        condition &= columns.time < before
    if keep_steps is not None:
        condition &= columns.step <= last - keep_steps
    return condition


def _frame_ids(condition: ColumnElement[bool]) -> Select[int]:
    return select(schema.frames.c.id).where(condition)


def _count(connection: Connection, kind: Kind, condition: ColumnElement[bool]) -> int:
    table = readable(connection, _TABLES[kind])
    query = select(func.count()).select_from(table).where(table.c.frame_id.in_(_frame_ids(condition)))
    return int(connection.execute(query).scalar_one())


def _remove(connection: Connection, run_id: int, condition: ColumnElement[bool], kinds: tuple[Kind, ...]) -> None:
    for kind in kinds or KINDS:
        table = _TABLES[kind]
        connection.execute(delete(table).where(table.c.frame_id.in_(_frame_ids(condition))))
    if kinds:
        mask = (1 << len(KINDS)) - 1
        for kind in kinds:
            mask &= ~(1 << KINDS.index(kind))
        held = schema.frames.c.kinds.bitwise_and(mask)
        connection.execute(update(schema.frames).where(condition).values(kinds=held))
    else:
        verdicts = schema.verdicts.c
        # A verdict goes with the frame that ended it. A fault that lasts is none of the past.
        over = (verdicts.run_id == run_id, verdicts.until.is_not(None), verdicts.frame_id.in_(_frame_ids(condition)))
        connection.execute(delete(schema.verdicts).where(*over))
        connection.execute(delete(schema.frames).where(condition))
        left = select(schema.frames.c.id).where(schema.frames.c.run_id == run_id).limit(1)
        if connection.execute(left).first() is None:
            for table in (schema.verdicts, schema.judged, schema.judge_states):
                connection.execute(delete(table).where(table.c.run_id == run_id))
        run_totals.recount(connection, run_id)
    Pyramid(connection, run_id).rebuild([kind for kind in kinds or FOLDED if kind in FOLDED])
