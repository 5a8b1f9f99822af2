"""An examination of a database for faults and risks: `root-dash doctor`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, func, select

from root_dash.exceptions import RootDashError
from root_dash.records import KINDS
from root_dash.store.admin.filesystem import filesystem, is_network
from root_dash.store.backends.backend import Backend
from root_dash.store.backends.choose import backend_for
from root_dash.store.backends.location import LocationLike, parse
from root_dash.store.backends.sqlite_file import check_file, connect_reader, log_size, sqlite_has_wal_reset_bug
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.buckets import FOLDED
from root_dash.store.tables import schema
from root_dash.store.tables.growth import readable
from root_dash.store.tables.versions import SCHEMA_VERSION

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of an examination: how bad the state is, what was examined, and a sentence on the state."""

    level: Level
    what: str
    text: str


def examine(path: LocationLike, *, thorough: bool = False) -> list[Finding]:
    """Examine a database, in the order from the file or the server to the runs; nothing is changed.

    A database that cannot be opened gives a single finding of level `"error"`, and no error is raised.

    Args:
        path: the database.
        thorough: SQLite compares every index with its table as well, which reads the whole file more than once. A
            PostgreSQL server looks after its own files; with `thorough` every row is asked for its frame.

    Raises:
        ValueError: the URL is not of PostgreSQL.
    """
    backend = backend_for(parse(path))
    found: list[Finding] = []
    try:
        if isinstance(backend.location, Path):
            found += [_sqlite(), *_filesystem(backend.location)]
            check_file(backend.location)
        engine = backend.open_reader()
        try:
            found.append(Finding("ok", "schema", f"version {SCHEMA_VERSION}"))
            if isinstance(backend.location, Path):
                found += [_log(backend), *_integrity(backend, backend.location, thorough)]
            with backend.translated(), engine.connect() as connection:
                if not isinstance(backend.location, Path):
                    found += [*_server(connection), *(_orphans(connection) if thorough else ())]
                found += [*_runs(connection), *_pyramid(connection)]
        finally:
            engine.dispose()
    except RootDashError as error:
        found.append(Finding("error", "database", str(error)))
    return found


def _server(connection: Connection) -> Iterator[Finding]:
    version, checksums, *durable = (
        str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())
        for name in ("server_version", "data_checksums", "fsync", "full_page_writes")
    )
    if durable == ["on", "on"]:
        yield Finding("ok", "PostgreSQL", version)
    else:
        yield Finding("warning", "PostgreSQL", f"{version} runs without fsync: a crash of its machine can damage it")
    yield Finding("ok", "integrity", f"the server looks after its files; its checksums of pages are {checksums}")


def _orphans(connection: Connection) -> Iterator[Finding]:
    """Look for rows whose frame is gone. In SQLite its own check finds them."""
    frames = schema.frames.c
    for table in (*schema.RECORDINGS.values(), schema.scalars):
        found = readable(connection, table)
        source = found.outerjoin(schema.frames, frames.id == found.c.frame_id)
        lost = connection.execute(select(func.count()).select_from(source).where(frames.id.is_(None))).scalar_one()
        if lost:
            yield Finding("error", "integrity", f"{lost} rows of {table.name} belong to a row of frames that is gone")


def _sqlite() -> Finding:
    if sqlite_has_wal_reset_bug():
        text = (
            f"SQLite {sqlite3.sqlite_version} can damage a database on which two processes checkpoint (fixed in 3.51.3)"
        )
        return Finding("note", "SQLite", f"{text}: let one process at a time record to a file")
    return Finding("ok", "SQLite", sqlite3.sqlite_version)


def _filesystem(path: Path) -> Iterator[Finding]:
    kind = filesystem(path)
    if kind is not None and is_network(kind):
        text = f"{kind} may be shared between machines; SQLite's locks cannot be relied on there: use a local disk"
        yield Finding("warning", "filesystem", text)
    elif kind is not None:
        yield Finding("ok", "filesystem", kind)


def _log(backend: Backend) -> Finding:
    assert isinstance(backend.location, Path)
    size = log_size(backend.location)
    if size > backend.limits.log_bytes:
        text = f"{size / 2**20:,.0f} MiB: a reader holds it open; it shrinks when the reader is closed"
        return Finding("warning", "write-ahead log", text)
    return Finding("ok", "write-ahead log", f"{size / 2**20:,.1f} MiB")


def _integrity(backend: Backend, path: Path, thorough: bool) -> Iterator[Finding]:
    check = "integrity_check" if thorough else "quick_check"
    with backend.translated():
        connection = connect_reader(path, backend.limits.lock_seconds)
        try:
            answers = [str(row[0]) for row in connection.execute(f"PRAGMA {check}(5)")]
            lost = connection.execute("PRAGMA foreign_key_check").fetchmany(5)
        finally:
            connection.close()
    if answers != ["ok"]:
        text = "; ".join(" ".join(answer.split()) for answer in answers)
        yield Finding("error", "integrity", f"the file is damaged: {text}")
    elif lost:
        yield Finding("error", "integrity", f"rows of {lost[0][0]} belong to a row of {lost[0][2]} that is gone")
    else:
        yield Finding("ok", "integrity", check.replace("_", " "))


def _runs(connection: Connection) -> Iterator[Finding]:
    runs, attempts, frames = schema.runs.c, schema.attempts.c, schema.frames.c
    # The frames that are missing between an attempt's first and last frame; pruned frames lie before the first.
    spans = (
        select(
            frames.attempt_id,
            func.sum(frames.lost).label("lost"),
            (func.max(frames.seq) - func.min(frames.seq) + 1 - func.count()).label("missing"),
        )
        .group_by(frames.attempt_id)
        .subquery()
    )
    query = (
        select(
            runs.id,
            runs.name,
            func.coalesce(func.sum(spans.c.lost), 0) + func.coalesce(func.sum(attempts.lost), 0),
            func.coalesce(func.sum(spans.c.missing), 0),
            func.count(attempts.id),
            func.count(attempts.ended_at),
        )
        .select_from(
            schema.runs.outerjoin(schema.attempts, attempts.run_id == runs.id).outerjoin(
                spans, spans.c.attempt_id == attempts.id
            )
        )
        .group_by(runs.id, runs.name)
        .order_by(runs.id)
    )
    for run_id, name, lost, missing, begun, ended in connection.execute(query):
        parts = []
        if lost:
            parts.append(f"{lost} frames were lost, as the recording itself says")
        if missing:
            parts.append(f"{missing} frames are missing between its first and its last")
        if begun > ended:
            parts.append(f"{begun - ended} of {begun} attempts have no end: still running, or killed")
        level: Level = "warning" if lost or missing else "note" if parts else "ok"
        yield Finding(level, f"run {run_id}, {name}", "; ".join(parts) or "complete")


def _pyramid(connection: Connection) -> Iterator[Finding]:
    """Check that every frame is in the total of its run, and in the pyramid or in an open bucket."""
    frames, derived, opened = schema.frames.c, schema.pyramid.c, schema.pyramid_open.c
    listed = run_totals.stored(connection)
    for run_id, name in list(connection.execute(select(schema.runs.c.id, schema.runs.c.name))):
        known, counted = listed.get(run_id), run_totals.counted(connection, run_id)
        if known is not None and known != counted:
            text = (
                f"it is listed with {known.frames} of {counted.frames} frames: `root-dash doctor --repair` counts them"
            )
            yield Finding("error", f"run {run_id}, {name}", text)
        for kind in FOLDED:
            place = KINDS.index(kind)
            held = frames.kinds.bitwise_and(1 << place) != 0
            recorded = select(func.count()).where(frames.run_id == run_id, held)
            folded = select(func.coalesce(func.sum(derived.frames), 0)).where(
                derived.run_id == run_id, derived.kind == place, derived.level == 0
            )
            waiting = select(func.count()).where(opened.run_id == run_id, opened.kind == place)
            total, done = connection.execute(recorded).scalar_one(), connection.execute(folded).scalar_one()
            if done > total or (done < total and not connection.execute(waiting).scalar_one()):
                text = f"the views of its {kind} hold {done} of {total} frames: `root-dash doctor --repair` makes them"
                yield Finding("error", f"run {run_id}, {name}", text)
