"""Recordings over HTTP: a trainer without the database's disk begins an attempt, sends its frames, and ends it.

A trainer may send every message again: an attempt is begun once, and each frame is stored once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.requests import ClientDisconnect

from root_dash import wire
from root_dash.exceptions import AlreadyRecorded, NotRecorded, StoreBusy, StoreError
from root_dash.records import Attempt
from root_dash.store import Recording, Store

from .json_records import RecordResponse
from .parameters import AttemptUid, StoreDep
from .responses import StoredAttemptJson, problems

_RETRY_SOON = {"Retry-After": "2"}


@dataclass(frozen=True)
class InboxLimits:
    """The limits of what an inbox keeps open and takes in."""

    open_attempts: int = 64
    """Largest number of open attempts. A further attempt closes the attempt that has been silent longest, whose trainer
    has to begin the attempt again."""

    waiting_messages: int = 16
    """Largest number of messages that wait for the store. A further message is answered with 503."""

    buffered_bytes: int = 2 * wire.LIMIT
    """Largest size in bytes of all messages that arrive or wait. A message beyond this size is answered with 503."""

    body_seconds: float = 60.0
    """Time in seconds for a message to arrive, besides a second for every `body_rate` bytes."""

    body_rate: int = 2**16
    """Slowest rate, in bytes a second, at which a message may arrive."""


class Inbox:
    """The messages that trainers send, and the thread that stores them.

    The store is opened for writing when the first message arrives. A single thread decodes and stores the messages in
    turn, because SQLite has one writer. The dashboard does not wait for the thread.
    """

    def __init__(self, create: Callable[[], Store], limits: InboxLimits | None = None) -> None:
        self._create = create
        self._limits = InboxLimits() if limits is None else limits
        self._store: Store | None = None
        self._open: OrderedDict[str, tuple[Recording, Attempt]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "root-dash-ingest")
        self._waiting = 0
        self._bytes = 0

    async def take(self, request: Request, work: Callable[[str, bytes], Attempt], uid: str) -> Attempt:
        """Read the request's body, let the thread do the work, and return what is then stored of the attempt.

        Raises:
            HTTPException: the message is refused, and no part is stored.
        """
        expected = _declared_size(request)
        limits = self._limits
        if self._waiting >= limits.waiting_messages or self._bytes + expected > limits.buffered_bytes:
            raise HTTPException(503, "the server has enough to do: send it later", _RETRY_SOON)
        self._waiting += 1
        self._bytes += expected
        seconds = limits.body_seconds + expected / limits.body_rate
        try:
            async with asyncio.timeout(seconds):
                content = await _read_body(request, expected)
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, uid, content)
        except TimeoutError:
            raise HTTPException(408, f"the message did not arrive within {seconds:.0f} seconds") from None
        finally:
            self._waiting -= 1
            self._bytes -= expected

    def close(self) -> None:
        """Store what has arrived, and close the store."""
        self._thread.shutdown(wait=True)
        self._close_store()

    def begin(self, uid: str, content: bytes) -> Attempt:
        """Begin or continue an attempt, and return what is stored of the attempt."""
        run, layers, attempt = wire.unpack_begin(content)
        if attempt.uid != uid:
            raise ValueError("the attempt in the message must be the one in the path")
        store = self._writing_store()
        with suppress(NotRecorded):
            known = store.attempt(uid)
            if store.run(known.run).uid != run.uid:
                raise AlreadyRecorded(f"attempt {uid} is one at another run")
            if known.ended_at is not None:
                return known
        self._close_attempt(uid)
        recording = store.begin(run, layers, attempt)
        known = store.attempt(uid)
        self._open[uid] = recording, known
        if len(self._open) > self._limits.open_attempts:
            self._close_attempt(next(iter(self._open)))
        return known

    def append(self, uid: str, content: bytes) -> Attempt:
        """Store the frames of a batch that are not stored yet, in the order in which they come."""
        frames = wire.unpack_batch(content)
        if uid not in self._open:
            known = self._writing_store().attempt(uid)
            if known.ended_at is None:
                raise HTTPException(404, "begin the attempt, again if it was begun before")
            if all(known.last_seq is not None and frame.seq <= known.last_seq for frame in frames):
                return known  # the trainer sent the batch again, because the answer was lost
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
        """End an attempt whose last frame has arrived. What was acknowledged then survives a loss of power."""
        end = wire.unpack_end(content)
        store = self._writing_store()
        known = store.attempt(uid)
        if known.ended_at is not None:
            return known
        if uid not in self._open:
            raise HTTPException(404, "begin the attempt, again if it was begun before")
        if end.last_seq is not None and (known.last_seq is None or known.last_seq < end.last_seq):
            raise HTTPException(412, f"the attempt cannot end yet: frame {end.last_seq} of it has not arrived")
        self._open[uid][0].end(end.time, end.lost)
        self._close_attempt(uid)
        return store.attempt(uid)

    def _run(self, work: Callable[[str, bytes], Attempt], uid: str, content: bytes) -> Attempt:
        """Do the work in the thread. After a lasting error of the store, the next message opens the store again."""
        try:
            return work(uid, content)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except StoreBusy:
            raise
        except StoreError:
            self._close_store()  # another file may be at the path by now, in which the trainers begin anew
            raise

    def _writing_store(self) -> Store:
        if self._store is None:
            self._store = self._create()
        return self._store

    def _close_attempt(self, uid: str) -> None:
        recording, _ = self._open.pop(uid, (None, None))
        if recording is not None:
            recording.close()

    def _close_store(self) -> None:
        self._open.clear()
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _declared_size(request: Request) -> int:
    """Return the size in bytes that a message declares.

    Raises:
        HTTPException: the headers of the message break a rule.
    """
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


async def _read_body(request: Request, expected: int) -> bytes:
    """Return the body of a message of the expected size.

    Raises:
        HTTPException: the body is longer, or the trainer went away.
    """
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

router = APIRouter(
    prefix=wire.ATTEMPTS,
    tags=["ingest"],
    default_response_class=RecordResponse,
    responses=problems(403, 404, 422),
)

_MESSAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"MessagePack, compressed with {wire.ENCODING}, which the header Content-Encoding has to say.",
        "content": {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_REFUSALS = problems(408, 409, 411, 413, 415, 507)


@router.get("/{attempt}", response_model=StoredAttemptJson)
def stored(store: StoreDep, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """Return what is stored of an attempt."""
    return _answer(store.attempt(uid))


@router.put("/{attempt}", response_model=StoredAttemptJson, openapi_extra=_MESSAGE, responses=_REFUSALS)
async def begin(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """Begin or continue an attempt. The answer names the last stored frame."""
    return _answer(await inbox.take(request, inbox.begin, uid))


@router.post("/{attempt}/frames", response_model=StoredAttemptJson, openapi_extra=_MESSAGE, responses=_REFUSALS)
async def append(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """Store a batch of frames. A frame that is already stored does not change."""
    return _answer(await inbox.take(request, inbox.append, uid))


@router.post(
    "/{attempt}/end",
    response_model=StoredAttemptJson,
    openapi_extra=_MESSAGE,
    responses=_REFUSALS | problems(412),
)
async def end(request: Request, inbox: InboxDep, uid: AttemptUid) -> RecordResponse:
    """End an attempt whose last frame has arrived."""
    return _answer(await inbox.take(request, inbox.end, uid))
