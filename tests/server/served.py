"""A server over real sockets with small limits, and what a peer sends to it by hand."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from pathlib import Path

import uvicorn
from fastapi import Request, WebSocket
from pydantic import SecretStr

from root_dash.records import Run
from root_dash.server.app import create_app
from root_dash.server.guard import Guard
from root_dash.server.ingest import Inbox
from root_dash.server.limits.bodies import WholeBodies
from root_dash.server.limits.connections import Limits, protocol
from root_dash.settings import Settings
from root_dash.store import Store

READ, WRITE = "read-token", "write-token"

LONG = 30.0
"""Seconds after which a test gives up. No test asks how quick the server is."""

SOON = 0.5
"""Seconds that a server allows in a test of its deadlines."""

BODY = 2**16
ROOM = 2**21
"""Bytes that a server with the smallest limits may accept. The buffers of the kernel hold most of them."""

AUTHORISED = f"Host: 127.0.0.1\r\nAuthorization: Bearer {READ}\r\n".encode()
STRANGE = b"Host: 127.0.0.1\r\n"
KEPT = b"GET /api/v1/runs HTTP/1.1\r\n" + AUTHORISED + b"\r\n"
LAST = b"GET /api/v1/runs HTTP/1.1\r\nConnection: close\r\n" + AUTHORISED + b"\r\n"
RUN = Run("u", "", 1.0)
CHUNKED = b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22


class Served:
    """A uvicorn server in a thread: the guarded API, a route that reads a body, and a WebSocket."""

    def __init__(self, path: Path, limits: Limits, body_seconds: float, keep_alive: int) -> None:
        settings = Settings(token=SecretStr(READ), write_token=SecretStr(WRITE))
        self.path = path
        self.stopping = threading.Event()
        self.inbox = Inbox(lambda: Store.create(path))
        self.store = Store.open(path)
        api = create_app(settings, self.store, self.stopping, self.inbox)

        @api.post("/length")
        async def length(request: Request) -> int:
            return len(await request.body())

        @api.get("/large")
        def large() -> str:
            return "a" * 2**20

        @api.websocket("/ws")
        async def echo(websocket: WebSocket) -> None:
            await websocket.accept()
            while True:
                await websocket.send_text(await websocket.receive_text())

        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(WholeBodies(api, BODY, body_seconds), settings),
                http=protocol(limits),
                access_log=False,
                log_config=None,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=keep_alive,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        """Return a connection with small buffers, which waits long for an answer."""
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        peer.settimeout(LONG)
        peer.connect(("127.0.0.1", self.port))
        return peer

    def ask(self, request: bytes) -> bytes:
        """Send a request, and return everything that comes back until the server closes the connection."""
        with closing(self.connect()) as peer:
            peer.sendall(request)
            return rest(peer)

    def wait_until_empty(self) -> None:
        """Wait until the server has no connection left."""
        waited = threading.Event()
        for _ in range(int(LONG / 0.01)):
            if not self._server.server_state.connections:
                return
            waited.wait(0.01)
        raise AssertionError(self._server.server_state.connections)

    def stop(self) -> None:
        """Shut the server down."""
        self.stopping.set()
        self._server.should_exit = True
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        self.inbox.close()
        self.store.close()


def rest(peer: socket.socket) -> bytes:
    """Return everything that the peer sends before it closes or resets the connection."""
    parts = []
    try:
        while part := peer.recv(2**16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answer(peer: socket.socket) -> bytes:
    """Return one answer, its head and its body, whose size the head declares."""
    read = peer.makefile("rb", buffering=0)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = read.read(1)
        assert part, head
        head += part
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += read.read(length - len(body)) or b""
    return head + body


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the answers in a text."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def pour(peer: socket.socket, piece: bytes, most: int = 4 * ROOM) -> int:
    """Send a piece again and again, and return the bytes sent before the peer ends the connection, or `most`."""
    sent = 0
    try:
        while sent < most:
            sent += peer.send(piece)
    except ConnectionError:
        pass
    return sent
