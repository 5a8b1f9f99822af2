"""What is wrong with a database, and what may go wrong with it: `root-dash doctor`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, func, select

from root_dash.exceptions import RootDashError
from root_dash.records import KINDS
from root_dash.store.backends.engine import open_reader, translated
from root_dash.store.backends.location import Given, Place, Server, parse
from root_dash.store.backends.sqlite import connect_reader, log_size, sqlite_has_wal_reset_bug
from root_dash.store.migrations import older
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.buckets import FOLDED
from root_dash.store.tables import schema

WAL_LIMIT = 256 * 2**20
"""Bytes of write-ahead log beyond which a reader must be holding it open."""

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"(nfs\d*|cifs|smb\d*|smbfs|ncpfs|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|panfs|orangefs|pvfs2|virtiofs|fuse\..+)"
)

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how bad it is, what it is, and in one sentence what is so."""

    level: Level
    what: str
    text: str


def examine(path: Given, *, thorough: bool = False) -> list[Finding]:
    """Look at everything, in the order from the file or the server to the runs; nothing is changed.

    With `thorough` SQLite compares every index with its table as well, which reads the whole file more than once. A
    PostgreSQL server looks after its own files, and is asked how; with `thorough` every row is asked for its frame.
    What cannot be opened at all is one finding of level `"error"`; nothing is raised for it.

    Raises:
        ValueError: it is a URL of something else than PostgreSQL.
    """
    place = parse(path)
    return _file(place, thorough) if isinstance(place, Path) else _of_server(place, thorough)


def _file(path: Path, thorough: bool) -> list[Finding]:
    found = [_sqlite(), *_filesystem(path)]
    try:
        version = older(path)
        if version is not None:
            text = f"schema {version}: `root-dash migrate` brings it to {schema.SCHEMA_VERSION} and keeps a copy"
            return [*found, Finding("warning", "schema", text)]
        found.append(Finding("ok", "schema", f"version {schema.SCHEMA_VERSION}"))
        found.append(_log(path))
        found.extend(_integrity(path, thorough))
        found.extend(_content(path))
    except RootDashError as error:
        found.append(Finding("error", "database", str(error)))
    return found


def _of_server(server: Server, thorough: bool) -> list[Finding]:
    try:
        return _content(server, thorough)
    except RootDashError as error:
        return [Finding("error", "database", str(error))]


def _content(place: Place, thorough: bool = False) -> list[Finding]:
    found: list[Finding] = []
    engine = open_reader(place)
    try:
        with translated(place), engine.connect() as connection:
            if isinstance(place, Server):
                found.extend(_server(connection))
                found.extend(_orphans(connection) if thorough else ())
            found.extend(_runs(connection))
            found.extend(_pyramid(connection))
    finally:
        engine.dispose()
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
    yield Finding("ok", "schema", f"version {schema.SCHEMA_VERSION}")
    yield Finding("ok", "integrity", f"the server's own affair; its checksums of pages are {checksums}")


def _orphans(connection: Connection) -> Iterator[Finding]:
    """Rows whose frame is gone: in SQLite its own check finds them."""
    frames = schema.frames.c
    for table in (*schema.RECORDINGS.values(), schema.scalars):
        source = table.outerjoin(schema.frames, frames.id == table.c.frame_id)
        lost = connection.execute(select(func.count()).select_from(source).where(frames.id.is_(None))).scalar_one()
        if lost:
            yield Finding("error", "integrity", f"{lost} rows of {table.name} belong to a row of frames that is gone")


def filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the filesystem that the path lies on; None where the machine does not say."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        place = path.resolve()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        fields = line.split()
        if "-" not in fields[6:]:
            continue
        # A space in a mount point is written as an octal escape.
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        depth = len(point.parts)
        # Of two mounts on one point the later one hides the earlier.
        if place.is_relative_to(point) and (best is None or depth >= best[0]):
            best = depth, fields[fields.index("-", 6) + 1]
    return None if best is None else best[1]


def is_network(kind: str) -> bool:
    """Whether a filesystem of that type may lie on another machine, where a write-ahead log does not work."""
    return _NETWORK.fullmatch(kind) is not None


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
        text = f"{kind} may be shared between machines, where SQLite's locks cannot be relied on: use a local disk"
        yield Finding("warning", "filesystem", text)
    elif kind is not None:
        yield Finding("ok", "filesystem", kind)


def _log(path: Path) -> Finding:
    size = log_size(path)
    if size > WAL_LIMIT:
        text = f"{size / 2**20:,.0f} MiB: a reader holds it open; it shrinks when that is closed"
        return Finding("warning", "write-ahead log", text)
    return Finding("ok", "write-ahead log", f"{size / 2**20:,.1f} MiB")


def _integrity(path: Path, thorough: bool) -> Iterator[Finding]:
    check = "integrity_check" if thorough else "quick_check"
    with translated(path):
        connection = connect_reader(path)
        try:
            said = [str(row[0]) for row in connection.execute(f"PRAGMA {check}(5)")]
            lost = connection.execute("PRAGMA foreign_key_check").fetchmany(5)
        finally:
            connection.close()
    if said != ["ok"]:
        yield Finding(
            "error", "integrity", f"the file is damaged: {'; '.join(' '.join(line.split()) for line in said)}"
        )
    elif lost:
        yield Finding("error", "integrity", f"rows of {lost[0][0]} belong to a row of {lost[0][2]} that is gone")
    else:
        yield Finding("ok", "integrity", check.replace("_", " "))


def _runs(connection: Connection) -> Iterator[Finding]:
    runs, attempts, frames = schema.runs.c, schema.attempts.c, schema.frames.c
    # What is missing between an attempt's first and last frame; what was pruned lies before the first.
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
    """Whether every frame is in its run's total, and in the pyramid or in an open bucket."""
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
