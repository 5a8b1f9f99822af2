"""Request bodies for the pages: read whole, in time and up to a limit, before the application sees the request."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..guard import HEALTH, INGEST
from ..problems import Problem

BODY_BYTES = 2**20
"""Largest size in bytes of a request body. A callback of the dashboard sends about 1 KiB."""

BODY_SECONDS = 10.0
"""Longest time in seconds for a body to arrive."""


class WholeBodies:
    """An ASGI application behind the guard that reads a request's body and then calls the application inside.

    A body that is too large is answered with 413, a body that stalls with 408. Two paths pass unread: `/healthz`, so
    that no body is kept of a request without a token; and recordings, whose bodies have the limits in `ingest.py`.
    """

    def __init__(self, app: ASGIApp, limit: int = BODY_BYTES, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == HEALTH or scope["path"].startswith(INGEST):
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(Request(scope, receive))
        except ClientDisconnect:
            return None
        except TimeoutError:
            detail = f"the request's body did not arrive within {self._seconds:g} seconds"
            return await Problem(408, detail, {"Connection": "close"})(scope, receive, send)
        if body is None:
            return await Problem(413, f"a request's body has at most {self._limit} bytes")(scope, receive, send)
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, request: Request) -> bytes | None:
        """Return the body, or None if the body is too large or its header says so."""
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._limit:
            return None
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._limit:
                return None
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first and then the further messages."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
