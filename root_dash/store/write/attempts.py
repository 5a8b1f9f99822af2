"""Attempts at a run. Each attempt begins once, even if a trainer begins it again after a lost connection."""

from __future__ import annotations

import os
import platform
import time
import uuid

from sqlalchemy import Connection, func, insert, select

from root_dash.exceptions import AlreadyRecorded
from root_dash.records import Attempt
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import text


def new_attempt() -> Attempt:
    """Return a new attempt by this process."""
    return Attempt(uuid.uuid4().hex, time.time(), pid=os.getpid(), host=platform.node())


def find(connection: Connection, uid: str) -> Attempt | None:
    """Return the attempt with this uid and its last stored `seq`, or None."""
    attempts, frames = schema.attempts.c, schema.frames.c
    row = connection.execute(select(schema.attempts).where(attempts.uid == uid)).first()
    if row is None:
        return None
    last = connection.scalar(select(func.max(frames.seq)).where(frames.attempt_id == row.id))
    return Attempt(row.uid, row.started_at, row.ended_at, row.lost, row.pid, row.host, row.run_id, last)


def other_processes(connection: Connection) -> list[int]:
    """Return the ids of this machine's other processes that record to the database now."""
    columns = schema.attempts.c
    query = select(columns.pid).where(columns.ended_at.is_(None), columns.host == text(platform.node())).distinct()
    return [pid for pid in connection.scalars(query) if pid not in (None, os.getpid()) and _is_alive(pid)]


def find_key(connection: Connection, attempt: Attempt, run_id: int) -> int | None:
    """Return the key of an attempt at a run, or None if the attempt is not stored yet.

    Raises:
        AlreadyRecorded: the attempt is stored as an attempt at another run.
    """
    columns = schema.attempts.c
    known = connection.execute(select(columns.id, columns.run_id).where(columns.uid == attempt.uid)).first()
    if known is None:
        return None
    if known.run_id != run_id:
        raise AlreadyRecorded(f"attempt {attempt.uid} is one at another run")
    return int(known.id)


def add(connection: Connection, attempt: Attempt, run_id: int) -> int:
    """Store a new attempt at a run and return its key."""
    row = {
        "run_id": run_id,
        "uid": text(attempt.uid),
        "started_at": attempt.started_at,
        "pid": attempt.pid,
        "host": text(attempt.host),
    }
    key = connection.execute(insert(schema.attempts).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return False  # other systems cannot be asked: the signal 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True
