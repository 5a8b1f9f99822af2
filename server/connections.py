"""Limits on what a peer may send or withhold before anyone knows who it is: bytes, seconds and connections.

uvicorn's own protocol, on httptools, parses and answers. It has no limit for a request that never ends, so that the
subclass here counts bytes and holds deadlines; it parses nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .guard import ADMIT, HEAD_BYTES

_MOST = 2048
"""Connections at most, however many files the process may open."""

_OTHER_FILES = 128
"""Files that the process keeps open beside its connections: the database, once for each thread that reads."""


@dataclass(frozen=True)
class Limits:
    """What a connection may take.

    A stranger is a connection that has not yet sent a complete request with a token. It costs at most about 320 KiB:
    what uvicorn reads at once, and a head.
    """

    head_bytes: int = HEAD_BYTES
    """Bytes in a row that are no content: a head, or the framing or the trailers of a chunked body. A head that is not
    a connection's first may take half as much again, since it is counted in pieces."""

    headers: int = 128
    """Header lines of a request; a browser sends about 15."""

    head_seconds: float = 10.0
    """From the connection's opening, or a request's first byte, to the end of the head."""

    rest_bytes: int = 2**20
    """What may still arrive of a request that is answered already, as a refused one is."""

    rest_seconds: float = 10.0
    """How long it may still arrive."""

    unread_seconds: float = 60.0
    """How long a peer may leave what it is sent unread, once the buffers are full."""

    pipelined: int = 16
    """Requests that may wait for the answer to the one before them."""

    strangers: int = 128
    """Connections of strangers: of more, the oldest is ended."""


def shares(files: int) -> tuple[int, int]:
    """How many strangers, and how many connections before new requests are 503, fit into that many open files."""
    places = max(min(files - _OTHER_FILES, _MOST), 32)
    strangers = min(Limits.strangers, places // 4)
    return strangers, places - strangers


def limited(limits: Limits) -> type[Connection]:
    """The protocol of one server, for uvicorn's `http`: its connections share a count of strangers."""
    return type("Connection", (Connection,), {"limits": limits, "strangers": {}})


class _Refused(Exception):
    """Stops the parser."""


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's that is ended when it takes more than its limits.

    What limits it: the bytes and the lines of a head, the time until the head is complete, the bytes and the time that
    the rest of an answered request takes, the requests that wait, the time for which answers are left unread, and the
    number of strangers. `scope["state"][ADMIT]` makes it no stranger any more; the guard calls it.

    The bodies that an application reads have their limits where they are read: `bodies.py` and `ingest.py`.
    """

    limits: ClassVar[Limits]
    strangers: ClassVar[dict[Connection, None]]  # oldest first

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owed: asyncio.TimerHandle | None = None  # a head, or the rest of a body
        self._unread: asyncio.TimerHandle | None = None
        self._refusal: tuple[int, str] | None = None
        self._running: RequestResponseCycle | None = None
        self._in_message = False  # between the end of a head and the end of its body
        self._upgraded = False
        self._advanced = False  # content, or the end of a head or a message, was in the piece
        self._framing = 0  # bytes since then
        self._rest = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._expect(self.limits.head_seconds)
        self.strangers[self] = None
        if len(self.strangers) > self.limits.strangers:
            next(iter(self.strangers))._end(503, "too many connections wait to be told apart")

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        if self._running is not None:
            self._running.disconnected = True  # uvicorn tells the request that came last, which may be another
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_message and self._owed is None:
            self._expect(self.limits.head_seconds)
        size = max(self.limits.head_bytes // 2, 1)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._advanced = False
            super().data_received(piece)
            if self._upgraded or self.transport.is_closing():
                return
            self._framing = 0 if self._advanced else self._framing + len(piece)
            self._rest = self._rest + len(piece) if self._in_message and self._answered else 0
            if self._framing > self.limits.head_bytes:
                return self._end(431, "its headers and address are too long")
            if self._rest > self.limits.rest_bytes:
                return self._end(413, "it went on after it was answered")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][ADMIT] = self._admit

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self.limits.headers:
            self._stop(431, f"a request has at most {self.limits.headers} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            self._stop(429, "too many requests wait for an answer")
        self._in_message = self._advanced = True
        if not (self.parser.should_upgrade() and self._should_upgrade()):  # else no application awaits the body
            self._expect(None)
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message, self._advanced = False, True
        self._expect(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()
        elif self.pipeline:
            self.flow.pause_reading()  # uvicorn reads on, so that more would come to wait with every answer
        elif self.cycle.response_complete:
            self.cycle.body.clear()
            if self._in_message:
                self._expect(self.limits.rest_seconds)

    def handle_websocket_upgrade(self) -> None:
        if not self._answered:
            return self._end(400, "it asks for a WebSocket in the middle of an answer")
        # A stranger still: not every head that is good enough for HTTP is one for the protocol that takes over.
        self._upgraded = True
        self._expect(self.limits.head_seconds)
        self.app_state = {**self.app_state, ADMIT: self._admit}
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses, and what it was stopped at."""
        self._close(*(self._refusal or (400, msg)))

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _admit(self) -> None:
        self.strangers.pop(self, None)
        if self._upgraded:
            self._expect(None)

    def _let_go(self) -> None:
        self.strangers.pop(self, None)
        self._expect(None)
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect(self, seconds: float | None) -> None:
        """Allow the peer that long for what it owes; None: it owes nothing."""
        if self._owed is not None:
            self._owed.cancel()
        self._owed = None if seconds is None else self.loop.call_later(seconds, self._overdue, seconds)

    def _overdue(self, seconds: float) -> None:
        if self.flow.read_paused:
            self._expect(seconds)  # the rest may be here, unread by us
        else:
            self._end(408, "it did not arrive in time")

    def _await_reader(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def _stop(self, status: int, reason: str) -> None:
        self._refusal = status, reason
        raise _Refused

    def _end(self, status: int, reason: str) -> None:
        self.logger.warning("A request was cut off: %s.", reason)
        self._close(status, reason)

    def _close(self, status: int, reason: str) -> None:
        """End the connection, with that answer unless it is in the middle of another."""
        self._let_go()
        if self._answered and not self._upgraded and not self.transport.is_closing():
            content = reason.encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            head += f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + content)
        if self._upgraded or self.transport.get_write_buffer_size():
            self.transport.abort()  # closing waits for a peer that reads nothing
        else:
            self.transport.close()
