"""Bodies of requests to the pages: whole, in time and of a limited size before the application sees the request."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard import HEALTH, INGEST
from .problems import Problem

BODY_BYTES = 2**20
"""What a callback of the dashboard may send; they send about one KiB."""

BODY_SECONDS = 10.0
"""How long a body may take to arrive."""


class WholeBodies:
    """Reads a request's body and then calls the application; 413 when it is too large, 408 when it stalls.

    Where recordings are taken, bodies have limits of their own: `ingest.py`. It stands behind the guard and leaves
    /healthz alone, which reads no body, so that nothing is kept of what is sent without a token.
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
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, request: Request) -> bytes | None:
        """The body; None when it is too large, or says so."""
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._limit:
            return None
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._limit:
                return None
        return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What receives that body, and then whatever else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
