"""The stream: that the database has grown, as server-sent events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from root_dash.exceptions import RootDashError
from root_dash.records import Notice
from root_dash.store import Store

from .parameters import Cursor, RunId, StoppingDep, StoreDep

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

_PAGE = 1000


async def tail(
    store: Store,
    run: int,
    cursor: int,
    *,
    follow: bool,
    interval: float = 0.1,
    stopping: threading.Event | None = None,
) -> AsyncIterator[Notice]:
    """The run's frames beyond the cursor, in order; with `follow`, those to come as well, until `stopping` is set.

    PostgreSQL says when there are new ones. SQLite is asked each `interval` seconds: an idle question is one look-up in
    an index, and needs no broker.
    """
    with store.following(run) as follower:
        while stopping is None or not stopping.is_set():
            notices = await asyncio.to_thread(store.frames, run, cursor, _PAGE)
            for notice in notices:
                yield notice
                cursor = notice.id
            if len(notices) < _PAGE:
                if not follow:
                    return
                await follower.wait(interval)


def _known_run(store: StoreDep, run_id: RunId) -> int:
    # Before the first byte: afterwards it is too late for a 404.
    store.latest(run_id)
    return run_id


@router.get("/{run}/stream", response_class=EventSourceResponse)
async def stream(
    store: StoreDep,
    stopping: StoppingDep,
    run: Annotated[int, Depends(_known_run)],
    after: Cursor = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**63 - 1)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """A notice for every frame beyond the cursor, now and as they are stored; `Last-Event-ID` resumes."""
    cursor = after if last_event_id is None else last_event_id
    try:
        async for notice in tail(store, run, cursor, follow=True, stopping=stopping):
            data = {"id": notice.id, "step": notice.step, "time": notice.time, "kinds": notice.kinds}
            yield ServerSentEvent(id=str(notice.id), data=data)
    except RootDashError:
        return  # the client comes back and resumes, or is then told what is wrong
