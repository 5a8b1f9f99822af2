"""The stream: server-sent events, one for each new frame in the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from root_dash.exceptions import RootDashError
from root_dash.records import Notice
from root_dash.records.plain import plain, strict
from root_dash.records.verdict import Verdict
from root_dash.store import Store

from .judging import as_json
from .parameters import Cursor, LastEventId, RunId, StoppingDep, StoreDep
from .responses import StreamedNoticeJson, VerdictJson, problems

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])


def _event(model: type[BaseModel], **fields: dict[str, str]) -> dict[str, Any]:
    """Return the schema of an event of the stream, given the model of its data and its other fields."""
    data = {"contentMediaType": "application/json", "contentSchema": model.model_json_schema()}
    return {"required": ["data", *fields], "properties": {"data": data, **fields}}


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "oneOf": [
                        _event(StreamedNoticeJson, id={"type": "string"}),
                        _event(VerdictJson, event={"const": "verdict"}),
                    ]
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
) -> AsyncIterator[Notice | Verdict]:
    """Yield a notice for each frame of a run beyond a cursor, in order, and before it the verdicts that it changed.

    So whoever resumes after the last notice misses no verdict. A verdict comes in its present form, with the frame that
    changed it last.

    PostgreSQL announces new frames. SQLite is asked every `interval` seconds: a question without an answer is a look-up
    in an index. `page` frames are read at once. `stopping` ends the tail when set.

    Raises:
        NotRecorded: the store has no such run.
    """
    with store.following(run) as follower:
        while stopping is None or not stopping.is_set():
            notices = await asyncio.to_thread(store.frames, run, cursor, page)
            changed: list[Verdict] = []
            if notices:
                changed = await asyncio.to_thread(store.changed_verdicts, run, cursor, notices[-1].id)
            for notice in notices:
                while changed and changed[0].cursor <= notice.id:
                    yield changed.pop(0)
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

    The notice is not the data: read the data through the other routes. `Last-Event-ID` resumes the stream. A verdict is
    an event of type `verdict`, in its present form, and comes before the notice of the frame that changed it.
    """
    cursor = after if last_event_id is None else last_event_id
    try:
        async for one in tail(store, run, cursor, follow=True, stopping=stopping):
            if isinstance(one, Verdict):
                (told,) = as_json([one], await asyncio.to_thread(store.layers, run))
                # Without an id of its own: whoever resumes gets it again, unless its frame was seen too.
                yield ServerSentEvent(event="verdict", data=plain(told, strict))
            else:
                data = {"id": one.id, "step": one.step, "time": one.time, "kinds": one.kinds}
                yield ServerSentEvent(id=str(one.id), data=data)
    except RootDashError:
        return  # the client resumes by itself, and a lasting error answers its next request
