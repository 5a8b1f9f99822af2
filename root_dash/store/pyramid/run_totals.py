"""The total of a run: its number of frames and its last step, so that a list of runs counts nothing.

A total is a row of the pyramid's table. It can be made anew from the frames at any time. It changes in
the transaction that adds or removes frames; nobody else writes to the run meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import BigInteger, Connection, bindparam, cast, delete, func, insert, select, update

from root_dash.records import Frame
from root_dash.store.backends.backend import backend_of
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode, encode

_KIND = -1  # stands in the place of a kind
_columns = schema.pyramid.c

_addition = (
    update(schema.pyramid)
    .where(_columns.run_id == bindparam("run"), _columns.kind == _KIND)
    .values(
        frames=_columns.frames + 1,
        steps=_columns.steps + bindparam("lost"),
        last_step=bindparam("step"),
        content=bindparam("time"),
    )
)


@dataclass(frozen=True, slots=True)
class Total:
    """The number of a run's frames, the number of lost frames, and the step and time of the newest frame."""

    frames: int = 0
    lost: int = 0
    last_step: int | None = None
    last_time: float | None = None


def stored(connection: Connection, run_id: int | None = None) -> dict[int, Total]:
    """Return the totals by the run's id, of all runs with a total, or of a single run."""
    query = select(schema.runs.c.id, _columns.frames, _columns.steps, _columns.last_step, _columns.content)
    query = query.join_from(
        schema.runs, schema.pyramid, (_columns.run_id == schema.runs.c.id) & (_columns.kind == _KIND)
    )
    if run_id is not None:
        query = query.where(schema.runs.c.id == run_id)
    return {
        run: Total(frames, lost, step, float(decode(time, "<f8", 1)[0]))
        for run, frames, lost, step, time in connection.execute(query)
    }


def add(connection: Connection, run_id: int, frame: Frame) -> None:
    """Count a new frame."""
    row = {"run": run_id, "lost": frame.lost, "step": frame.step, "time": _encoded(frame.time)}
    if not backend_of(connection).execute(connection, _addition, row).rowcount:
        recount(connection, run_id)


def recount(connection: Connection, run_id: int) -> None:
    """Count all frames of a run anew, if some were removed or the run has no total yet."""
    connection.execute(delete(schema.pyramid).where(_columns.run_id == run_id, _columns.kind == _KIND))
    total = counted(connection, run_id)
    if total.last_step is None or total.last_time is None:
        return
    key = {"run_id": run_id, "kind": _KIND, "level": 0, "bucket": 0, "first_step": 0, "layers": 0}
    content = {"frames": total.frames, "steps": total.lost, "last_step": total.last_step}
    connection.execute(insert(schema.pyramid), key | content | {"content": _encoded(total.last_time)})


def counted(connection: Connection, run_id: int) -> Total:
    """Return the total, counted from the run's frames."""
    frames = schema.frames.c
    lost = cast(func.coalesce(func.sum(frames.lost), 0), BigInteger)  # PostgreSQL sums to decimals
    found = connection.execute(select(func.count(), lost, func.max(frames.id)).where(frames.run_id == run_id)).one()
    newest = connection.execute(select(frames.step, frames.time).where(frames.id == found[2])).first()
    return Total() if newest is None else Total(found[0], found[1], newest.step, newest.time)


def _encoded(time: float) -> bytes:
    return encode(np.array([time]), "<f8")
