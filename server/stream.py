"""The stream: server-sent events, one for each new frame in the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from root_dash.exceptions import RootDashError
from root_dash.records import Notice
from root_dash.store import Store

from .parameters import Cursor, LastEventId, RunId, StoppingDep, StoreDep
from .responses import StreamedNoticeJson, problems

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "required": ["data", "id"],
                    "properties": {
                        "data": {
                            "contentMediaType": "application/json",
                            "contentSchema": StreamedNoticeJson.model_json_schema(),
                        }
                    },
                }
            }
        }
    }
}


async def tail(
    store: Store,
    run: int,
    cursor: int,
    *,
    follow: bool,
    interval: float = 0.1,
    page: int = 1000,
    stopping: threading.Event | None = None,
) -> AsyncIterator[Notice]:
    """Yield a notice for each frame of a run beyond a cursor, in order; with `follow` also for later frames.

    PostgreSQL announces new frames. SQLite is asked every `interval` seconds: a question without an answer is a look-up
    in an index. `page` frames are read at once. `stopping` ends the tail when set.

    Raises:
        NotRecorded: the store has no such run.
    """
    with store.following(run) as follower:
        while stopping is None or not stopping.is_set():
            notices = await asyncio.to_thread(store.frames, run, cursor, page)
            for notice in notices:
                yield notice
                cursor = notice.id
            if len(notices) < page:
                if not follow:
                    return
                await follower.wait(interval)


def _known_run(store: StoreDep, run_id: RunId) -> int:
    # Before the first byte of the stream: an answer that has begun cannot become a 404.
    store.latest(run_id)
    return run_id


@router.get("/{run}/stream", response_class=EventSourceResponse, responses=_EVENTS | problems(404, 422))
async def stream(
    store: StoreDep,
    stopping: StoppingDep,
    run: Annotated[int, Depends(_known_run)],
    after: Cursor = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send a notice for every frame beyond the cursor, and for each new frame as soon as it is stored.

    The notice is not the data: read the data through the other routes. `Last-Event-ID` resumes the stream.
    """
    cursor = after if last_event_id is None else last_event_id
    try:
        async for notice in tail(store, run, cursor, follow=True, stopping=stopping):
            data = {"id": notice.id, "step": notice.step, "time": notice.time, "kinds": notice.kinds}
            yield ServerSentEvent(id=str(notice.id), data=data)
    except RootDashError:
        return  # the client resumes by itself, and a lasting error answers its next request
