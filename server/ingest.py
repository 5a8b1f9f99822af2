"""Recordings over HTTP: a trainer without the database's disk begins an attempt, sends its frames, and ends it.

Everything may be sent again: an attempt is begun once and a frame stored once, however often they arrive.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Path, Request
from starlette.requests import ClientDisconnect

from root_dash import wire
from root_dash.exceptions import AlreadyRecorded, NotRecorded, StoreBusy, StoreError
from root_dash.records import Attempt
from root_dash.store import Recording, Store

from .json_records import RecordResponse
from .parameters import StoreDep

router = APIRouter(prefix=wire.ATTEMPTS, tags=["ingest"], default_response_class=RecordResponse)

OPEN = 64
"""Attempts that are kept open; of more, the one that sent longest ago is begun anew when it sends again."""

WAITING = 16
"""Messages that wait for the store; one more is sent away for a while."""

ROOM = 2 * wire.LIMIT
"""Bytes of all messages that are on their way in or waiting; what comes on top is sent away for a while."""

BODY_SECONDS = 60.0
"""How long a message may take to arrive, beside a second for every `BODY_RATE` bytes of it."""

BODY_RATE = 2**16

_LATER = {"Retry-After": "2"}


class Inbox:
    """What trainers send, into a store that is opened for writing when the first of them does.

    One thread decodes and stores, a message at a time: SQLite has one writer, and those who look wait for none of it.
    """

    def __init__(self, create: Callable[[], Store]) -> None:
        self._create = create
        self._store: Store | None = None
        self._open: OrderedDict[str, tuple[Recording, Attempt]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "root-dash-ingest")
        self._waiting = 0
        self._bytes = 0

    async def take(self, request: Request, work: Callable[[str, bytes], Attempt], uid: str) -> Attempt:
        """Read the request's body and have the thread do that work with it."""
        expected = _checked(request)
        if self._waiting >= WAITING or self._bytes + expected > ROOM:
            raise HTTPException(503, "the server has enough to do: send it later", _LATER)
        self._waiting += 1
        self._bytes += expected
        patience = BODY_SECONDS + expected / BODY_RATE
        try:
            async with asyncio.timeout(patience):
                content = await _body(request, expected)
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work, uid, content)
        except TimeoutError:
            raise HTTPException(408, f"the message did not arrive within {patience:.0f} seconds") from None
        finally:
            self._waiting -= 1
            self._bytes -= expected

    def close(self) -> None:
        """Store what has arrived and let go of the store."""
        self._thread.shutdown(wait=True)
        self._forget()

    def begin(self, uid: str, content: bytes) -> Attempt:
        """Begin the attempt or go on with it, and say what is stored of it."""
        run, layers, attempt = wire.unpack_begin(content)
        if attempt.uid != uid:
            raise ValueError("the attempt in the message must be the one in the path")
        store = self._writing()
        with suppress(NotRecorded):
            known = store.attempt(uid)
            if store.run(known.run).uid != run.uid:
                raise AlreadyRecorded(f"attempt {uid} is one at another run")
            if known.ended_at is not None:
                return known
        self._drop(uid)
        recording = store.begin(run, layers, attempt)
        known = store.attempt(uid)
        self._open[uid] = recording, known
        if len(self._open) > OPEN:
            self._drop(next(iter(self._open)))
        return known

    def append(self, uid: str, content: bytes) -> Attempt:
        """Store the frames of a batch that are not stored yet, in the order in which they come."""
        frames = wire.unpack_batch(content)
        if uid not in self._open:
            known = self._writing().attempt(uid)
            if known.ended_at is None:
                raise HTTPException(404, "begin the attempt, again where it was begun before")
            if all(known.last_seq is not None and frame.seq <= known.last_seq for frame in frames):
                return known  # sent again, since the answer was lost
            raise AlreadyRecorded(f"attempt {uid} has ended")
        self._open.move_to_end(uid)
        recording, known = self._open[uid]
        for frame in frames:
            recording.append(frame)
            if known.last_seq is None or frame.seq > known.last_seq:
                known = replace(known, last_seq=frame.seq)
                self._open[uid] = recording, known
        return known

    def end(self, uid: str, content: bytes) -> Attempt:
        """End the attempt, provided that its last frame is here; what was acknowledged then outlives lost power."""
        end = wire.unpack_end(content)
        store = self._writing()
        known = store.attempt(uid)
        if known.ended_at is not None:
            return known
        if uid not in self._open:
            raise HTTPException(404, "begin the attempt, again where it was begun before")
        if end.last_seq is not None and (known.last_seq is None or known.last_seq < end.last_seq):
            raise HTTPException(412, f"the attempt cannot end yet: frame {end.last_seq} of it has not arrived")
        self._open[uid][0].end(end.time, end.lost)
        self._drop(uid)
        return store.attempt(uid)

    def _guarded(self, work: Callable[[str, bytes], Attempt], uid: str, content: bytes) -> Attempt:
        try:
            return work(uid, content)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except StoreBusy:
            raise
        except StoreError:
            self._forget()  # the file may be another one by now: whoever sends begins anew
            raise

    def _writing(self) -> Store:
        if self._store is None:
            self._store = self._create()
        return self._store

    def _drop(self, uid: str) -> None:
        recording, _ = self._open.pop(uid, (None, None))
        if recording is not None:
            recording.close()

    def _forget(self) -> None:
        self._open.clear()
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _checked(request: Request) -> int:
    """The bytes that the message says it has; the most that it may have, where it does not say."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wire.MEDIA_TYPE or request.headers.get("content-encoding", "").strip().lower() != wire.ENCODING:
        raise HTTPException(415, f"a message must be {wire.MEDIA_TYPE}, its encoding {wire.ENCODING}")
    length = request.headers.get("content-length")
    if length is None:
        raise HTTPException(411, "a message must say how long it is")
    if not length.isascii() or not length.isdigit():
        raise HTTPException(400, "the length of the message must be a number")
    if int(length) > wire.LIMIT:
        raise HTTPException(413, f"a message must have at most {wire.LIMIT} bytes")
    return int(length)


async def _body(request: Request, expected: int) -> bytes:
    parts: list[bytes] = []
    arrived = 0
    try:
        async for part in request.stream():
            parts.append(part)
            arrived += len(part)
            if arrived > expected:
                raise HTTPException(400, "the message is longer than it says")
    except ClientDisconnect:
        raise HTTPException(400, "the message was cut short") from None
    return b"".join(parts)


def _inbox(request: Request) -> Inbox:
    inbox = request.app.state.inbox
    if inbox is None:
        raise HTTPException(403, "this server takes no recordings")
    assert isinstance(inbox, Inbox)
    return inbox


def _answer(attempt: Attempt) -> RecordResponse:
    stored = wire.Stored(attempt.uid, attempt.run, attempt.last_seq, attempt.ended_at)
    return RecordResponse(msgspec.structs.asdict(stored))


InboxDep = Annotated[Inbox, Depends(_inbox)]
AttemptUid = Annotated[str, Path(alias="attempt", pattern="^[0-9a-f]{32}$")]

_MESSAGE: dict[str, Any] = {
    "requestBody": {"required": True, "content": {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/{attempt}")
def stored(store: StoreDep, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """What is stored of an attempt."""
    return _answer(store.attempt(uid))


@router.put("/{attempt}", openapi_extra=_MESSAGE)
async def begin(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """Begin an attempt, or go on with it; answers with the last of its frames that is stored."""
    return _answer(await inbox.take(request, inbox.begin, uid))


@router.post("/{attempt}/frames", openapi_extra=_MESSAGE)
async def append(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """Store a batch of frames; those that are stored already stay as they are."""
    return _answer(await inbox.take(request, inbox.append, uid))


@router.post("/{attempt}/end", openapi_extra=_MESSAGE)
async def end(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """End an attempt whose last frame has arrived."""
    return _answer(await inbox.take(request, inbox.end, uid))
