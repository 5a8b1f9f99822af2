"""Limits on what an unknown peer may send or withhold: bytes, seconds and connections.

uvicorn's own protocol, on httptools, parses requests and sends answers, but has no limit for a request without an end.
The subclass in this module counts bytes and sets deadlines. It parses nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..guard import ADMIT, HEAD_BYTES

_MOST_CONNECTIONS = 2048
"""Largest number of connections, however many files the process may open."""

_OTHER_FILES = 128
"""Files that the process keeps open besides its connections: the database, once for each reading thread."""


@dataclass(frozen=True)
class Limits:
    """The limits of a connection.

    A stranger is a connection that has not yet sent a complete request with a token. A stranger costs at most about
    320 KiB: the bytes that uvicorn reads at once, and a head.
    """

    head_bytes: int = HEAD_BYTES
    """Largest number of consecutive bytes that are not content: a head, or the framing or the trailers of a chunked
    body. The second head of a connection, and each later head, may take half as much again, because bytes are counted
    in pieces."""

    headers: int = 128
    """Largest number of header lines of a request. A browser sends about 15."""

    head_seconds: float = 10.0
    """Longest time from the opening of the connection, or from the first byte of a request, to the end of the head."""

    rest_bytes: int = 2**20
    """Largest number of bytes that may still arrive of a request after its answer, for example after a refusal."""

    rest_seconds: float = 10.0
    """Longest time for these bytes to arrive."""

    unread_seconds: float = 60.0
    """Longest time for which a peer may leave an answer unread once the buffers are full."""

    pipelined: int = 16
    """Largest number of requests that may wait for the answer to the request before them."""

    strangers: int = 128
    """Largest number of strangers. A further stranger ends the oldest."""


def divide_files(files: int) -> tuple[int, int]:
    """Divide the files that a process may open between strangers and other connections.

    Returns:
        The number of strangers, and the number of connections beyond which new requests are answered with 503.
    """
    connections = max(min(files - _OTHER_FILES, _MOST_CONNECTIONS), 32)
    strangers = min(Limits.strangers, connections // 4)
    return strangers, connections - strangers


def protocol(limits: Limits) -> type[Connection]:
    """Return the protocol class of a server, for uvicorn's `http`. Its connections share a count of strangers."""
    return type("Connection", (Connection,), {"limits": limits, "strangers": {}})


class _Refused(Exception):
    """An error that stops the parser."""


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's that ends when a limit is exceeded.

    The limits concern the bytes and the lines of a head, the time until the head is complete, the bytes and the time of
    the rest of an answered request, the requests that wait, the time for which answers stay unread, and the number of
    strangers. When a request has shown a token, the guard calls `scope["state"][ADMIT]`, and the connection is no
    stranger any more.

    The bodies that an application reads have limits of their own, in `bodies.py` and `ingest.py`.
    """

    limits: ClassVar[Limits]
    strangers: ClassVar[dict[Connection, None]]  # oldest first

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._arrival: asyncio.TimerHandle | None = None  # deadline for a head, or for the rest of a body
        self._reading: asyncio.TimerHandle | None = None  # deadline for the peer to read an answer
        self._refusal: tuple[int, str] | None = None
        self._running: RequestResponseCycle | None = None
        self._in_message = False  # whether the head is complete and the body is not
        self._upgraded = False
        self._advanced = False  # whether the piece held content, or the end of a head or of a message
        self._framing = 0  # bytes since the last content, end of a head or end of a message
        self._rest = 0  # bytes since the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._expect_arrival(self.limits.head_seconds)
        self.strangers[self] = None
        if len(self.strangers) > self.limits.strangers:
            next(iter(self.strangers))._end(503, "too many connections have not shown a token")

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        if self._running is not None:
            self._running.disconnected = True  # uvicorn notifies only the last request
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_message and self._arrival is None:
            self._expect_arrival(self.limits.head_seconds)
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
        if not (self.parser.should_upgrade() and self._should_upgrade()):  # no application reads an upgrade's body
            self._expect_arrival(None)
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message, self._advanced = False, True
        self._expect_arrival(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()
        elif self.pipeline:
            self.flow.pause_reading()  # uvicorn resumes after every answer, and more requests would come to wait
        elif self.cycle.response_complete:
            self.cycle.body.clear()
            if self._in_message:
                self._expect_arrival(self.limits.rest_seconds)

    def handle_websocket_upgrade(self) -> None:
        if not self._answered:
            return self._end(400, "it asks for a WebSocket in the middle of an answer")
        # The connection is still a stranger: the WebSocket protocol refuses some heads that HTTP accepts.
        self._upgraded = True
        self._expect_arrival(self.limits.head_seconds)
        self.app_state = {**self.app_state, ADMIT: self._admit}
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refuses, or at which a limit stopped the parser."""
        self._close(*(self._refusal or (400, msg)))

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None and not self.transport.is_closing():
            self._reading.cancel()
            self._reading = None

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _admit(self) -> None:
        self.strangers.pop(self, None)
        if self._upgraded:
            self._expect_arrival(None)

    def _release(self) -> None:
        """Give up the place among the strangers, and cancel the deadlines."""
        self.strangers.pop(self, None)
        self._expect_arrival(None)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect_arrival(self, seconds: float | None) -> None:
        """End the connection unless the peer sends the rest within so many seconds; None: nothing has to arrive."""
        if self._arrival is not None:
            self._arrival.cancel()
        self._arrival = None if seconds is None else self.loop.call_later(seconds, self._arrival_is_late, seconds)

    def _arrival_is_late(self, seconds: float) -> None:
        if self.flow.read_paused:
            self._expect_arrival(seconds)  # the bytes may have arrived: this server has paused reading
        else:
            self._end(408, "it did not arrive in time")

    def _expect_reading(self) -> None:
        """Abort the connection if the peer does not read in time."""
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def _stop(self, status: int, reason: str) -> None:
        """Stop the parser, which then answers with `send_400_response`."""
        self._refusal = status, reason
        raise _Refused

    def _end(self, status: int, reason: str) -> None:
        """Close the connection and log why."""
        self.logger.warning("A request was cut off: %s.", reason)
        self._close(status, reason)

    def _close(self, status: int, reason: str) -> None:
        """Close the connection. Send the answer first, unless another answer is being sent."""
        self._release()
        if self._answered and not self._upgraded and not self.transport.is_closing():
            content = reason.encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            head += f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + content)
        if self._upgraded or self.transport.get_write_buffer_size():
            self.transport.abort()  # a plain close waits for a peer that may read nothing
        else:
            self.transport.close()
