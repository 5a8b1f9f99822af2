"""Real servers for the tests of trainers far away: sockets, threads, and answers that can be held back."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from root_dash.server.app import create_app
from root_dash.server.guard import Guard
from root_dash.server.ingest import Inbox
from root_dash.settings import Settings
from root_dash.store import Judge, Store
from tests.waiting import until

WRITE = "write-token"


def free_port() -> int:
    """A port that nobody listens on yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Held:
    """An application that lets requests in only while `gate` is set, and counts them."""

    def __init__(self, app: ASGIApp, gate: threading.Event) -> None:
        self._app = app
        self._gate = gate
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests += 1
            while not self._gate.is_set():  # noqa: ASYNC110 (another thread sets it)
                await asyncio.sleep(0.01)
        await self._app(scope, receive, send)


@contextmanager
def serving(
    path: Path, port: int | None = None, *, held: bool = False, judge: Judge | None = None
) -> Iterator[tuple[str, threading.Event, Held]]:
    """Run a server on a database; yield its address, the gate, and the application that counts requests."""
    port = free_port() if port is None else port
    gate = threading.Event()
    if not held:
        gate.set()
    Store.create(path).close()
    with Store.open(path) as store:
        inbox = Inbox(lambda: Store.create(path, judge=judge))
        settings = Settings(write_token=SecretStr(WRITE), port=port)
        app = Held(Guard(create_app(settings, store, inbox=inbox), settings), gate)
        config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server.started, "the server's start")
        try:
            yield f"http://127.0.0.1:{port}", gate, app
        finally:
            gate.set()
            server.should_exit = True
            thread.join()
            inbox.close()
