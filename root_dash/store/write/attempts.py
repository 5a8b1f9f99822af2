"""Attempts at a run: each begins once, also where it is begun again after its connection was lost."""

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


def here() -> Attempt:
    """A new attempt by this process."""
    return Attempt(uuid.uuid4().hex, time.time(), pid=os.getpid(), host=platform.node())


def find(connection: Connection, uid: str) -> Attempt | None:
    """The attempt of that uid with what is stored of it, or None."""
    attempts, frames = schema.attempts.c, schema.frames.c
    row = connection.execute(select(schema.attempts).where(attempts.uid == uid)).first()
    if row is None:
        return None
    last = connection.scalar(select(func.max(frames.seq)).where(frames.attempt_id == row.id))
    return Attempt(row.uid, row.started_at, row.ended_at, row.lost, row.pid, row.host, row.run_id, last)


def beside(connection: Connection) -> list[int]:
    """The ids of the other processes of this machine that are recording to the database now."""
    columns = schema.attempts.c
    query = select(columns.pid).where(columns.ended_at.is_(None), columns.host == text(platform.node())).distinct()
    return [pid for pid in connection.scalars(query) if pid not in (None, os.getpid()) and _alive(pid)]


def belongs(connection: Connection, attempt: Attempt, run_id: int) -> int | None:
    """The key of an attempt that is known already, or None.

    Raises:
        AlreadyRecorded: it is one at another run.
    """
    columns = schema.attempts.c
    known = connection.execute(select(columns.id, columns.run_id).where(columns.uid == attempt.uid)).first()
    if known is None:
        return None
    if known.run_id != run_id:
        raise AlreadyRecorded(f"attempt {attempt.uid} is one at another run")
    return int(known.id)


def add(connection: Connection, attempt: Attempt, run_id: int) -> int:
    """The key of a new attempt at the run."""
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


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return False  # there is no asking elsewhere: the signal 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
