"""What a peer may send or withhold before anyone knows who it is: over real sockets, with small limits."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import Request, WebSocket
from pydantic import SecretStr

from root_dash.records import Run
from root_dash.server.app import create_app
from root_dash.server.bodies import WholeBodies
from root_dash.server.connections import Limits, Sparing, limited, shares
from root_dash.server.guard import Guard
from root_dash.server.ingest import Inbox
from root_dash.settings import Settings
from root_dash.store import Store
from tests.server.test_ingest import BEGIN, HEADERS, PATH, READ, WRITE
from tests.store.frames import make_frame

LONG = 30.0
"""Seconds after which what we wait for counts as never; nothing is asked of how quick it is."""

SOON = 0.5
"""Seconds that a server in a test allows, where it is to run out of patience."""

BODY = 2**16
ROOM = 2**21
"""Bytes that a server with the least limits may have accepted: the kernel's buffers hold most of them."""

AUTHORISED = f"Host: 127.0.0.1\r\nAuthorization: Bearer {READ}\r\n".encode()
STRANGE = b"Host: 127.0.0.1\r\n"


class Served:
    """A server of uvicorn's in a thread: the guarded API, with a route that takes a body and a WebSocket."""

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
                http=limited(limits),
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
        """A connection that waits long, with small buffers."""
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        peer.settimeout(LONG)
        peer.connect(("127.0.0.1", self.port))
        return peer

    def ask(self, request: bytes) -> bytes:
        """All that comes back until the server closes the connection."""
        with closing(self.connect()) as peer:
            peer.sendall(request)
            return rest(peer)

    def wait_until_empty(self) -> None:
        """Wait until the server has no connection any more."""
        waited = threading.Event()
        for _ in range(int(LONG / 0.01)):
            if not self._server.server_state.connections:
                return
            waited.wait(0.01)
        raise AssertionError(self._server.server_state.connections)

    def stop(self) -> None:
        """End."""
        self.stopping.set()
        self._server.should_exit = True
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        self.inbox.close()
        self.store.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes servers with limits of the test's choice."""
    path = tmp_path / "x.db"
    with Store.create(path) as store:
        store.begin(RUN, [])
    made: list[Served] = []

    def make(body_seconds: float = LONG, keep_alive: int = int(LONG), **limits: Any) -> Served:
        chosen = Limits(**({"head_seconds": LONG, "rest_seconds": LONG, "unread_seconds": LONG} | limits))
        made.append(Served(path, chosen, body_seconds, keep_alive))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def rest(peer: socket.socket) -> bytes:
    """All that the peer sends before it ends the connection, by the end or by a reset."""
    parts = []
    try:
        while part := peer.recv(2**16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answer(peer: socket.socket) -> bytes:
    """One answer, which says how long it is: its head and body."""
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


def statuses(said: bytes) -> list[int]:
    """The statuses of the answers."""
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]]


def pour(peer: socket.socket, piece: bytes, most: int = 4 * ROOM) -> int:
    """Bytes that the peer accepts before it ends the connection; `most` where it does not."""
    sent = 0
    try:
        while sent < most:
            sent += peer.send(piece)
    except ConnectionError:
        pass
    return sent


KEPT = b"GET /api/v1/runs HTTP/1.1\r\n" + AUTHORISED + b"\r\n"
LAST = b"GET /api/v1/runs HTTP/1.1\r\nConnection: close\r\n" + AUTHORISED + b"\r\n"
RUN = Run("u", "", 1.0)
CHUNKED = b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22
ENDLESS = {
    "many headers": (b"GET / HTTP/1.1\r\n", b"a:b\r\n" * 1000),
    "long headers": (b"GET / HTTP/1.1\r\n", (b"a: " + b"b" * 997 + b"\r\n") * 5),
    "a header's value": (b"GET / HTTP/1.1\r\na: ", b"b" * 5000),
    "a header's name": (b"GET / HTTP/1.1\r\n", b"a" * 5000),
    "an address": (b"GET /", b"a" * 5000),
    "blank lines": (b"", b"\r\n" * 2500),
    "a head of a WebSocket": (b"GET /ws HTTP/1.1\r\n" + UPGRADE + b"==\r\na: ", b"b" * 5000),
    "a head with the token": (b"GET / HTTP/1.1\r\n" + AUTHORISED + b"a: ", b"b" * 5000),
    "a second head": (b"GET /healthz HTTP/1.1\r\n" + STRANGE + b"\r\nGET / HTTP/1.1\r\na: ", b"b" * 5000),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"a:b\r\n" * 1000),
    "a trailer's value": (CHUNKED + b"1\r\na\r\n0\r\na: ", b"b" * 5000),
    "a chunk's extension": (CHUNKED + b"1;a=", b"b" * 5000),
    "a body in chunks": (CHUNKED, b"3e8\r\n" + b"a" * 1000 + b"\r\n"),
    "a body in tiny chunks": (CHUNKED, b"1\r\na\r\n" * 1000),
    "a stranger's body": (b"POST /length HTTP/1.1\r\n" + STRANGE + b"Content-Length: 999999999\r\n\r\n", b"a" * 5000),
    "a body that is too long": (
        b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 999999999\r\n\r\n",
        b"a" * 5000,
    ),
    "requests": (b"", (b"GET / HTTP/1.1\r\n" + STRANGE + b"\r\n") * 100),
    "requests behind a stream": (
        b"GET /api/v1/runs/1/stream HTTP/1.1\r\n" + AUTHORISED + b"\r\n",
        (b"GET / HTTP/1.1\r\n" + STRANGE + b"\r\n") * 100,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_is_cut_off(what: str, serve: Callable[..., Served]) -> None:
    """Whatever part of a request goes on for ever, the server accepts little of it, and goes on itself."""
    server = serve(rest_bytes=BODY)
    first, piece = ENDLESS[what]
    with closing(server.connect()) as peer:
        peer.sendall(first)
        assert pour(peer, piece) < ROOM
    assert statuses(server.ask(LAST)) == [200]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + STRANGE + b"a: " + b"b" * 2**16, 431),
        (b"GET / HTTP/1.1\r\n" + STRANGE + b"a: b\r\n" * 500, 431),
        (b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 65537\r\n\r\n", 413),
        (b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 99999999999999999\r\n\r\n", 413),
        (CHUNKED + b"8000\r\n" + b"a" * 2**15 + b"\r\n8001\r\n" + b"a" * (2**15 + 1) + b"\r\n", 413),
        (b"POST /length HTTP/1.1\r\n" + STRANGE + b"Content-Length: 65537\r\n\r\n", 401),
    ],
)
def test_what_is_too_large_is_told_so_before_it_is_there(
    request_: bytes, status: int, serve: Callable[..., Served]
) -> None:
    """A head that does not end, a body that says how long it is, and one in chunks, are answered while incomplete."""
    with closing(serve().connect()) as peer:
        peer.sendall(request_)
        assert statuses(answer(peer)) == [status]


def test_a_body_up_to_the_limit_arrives(serve: Callable[..., Served]) -> None:
    """With its length or in chunks, byte for byte up to the limit."""
    server, body = serve(), b"a" * BODY
    length = b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 65536\r\n\r\n" + body
    chunked = CHUNKED + b"10000\r\n" + body + b"\r\n0\r\n\r\n"
    with closing(server.connect()) as peer:
        for request in (length, chunked, length):
            peer.sendall(request)
            assert answer(peer).endswith(b"\r\n\r\n65536")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"", [408]),
        (b"GET / HT", [408]),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", [408]),
        (b"\r\n", [408]),
        (b"GET /healthz HTTP/1.1\r\n" + STRANGE + b"\r\nGET / HT", [200]),
        (b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 10\r\n\r\n12345", [408]),
        (CHUNKED + b"5\r\n12345\r\n", [408]),
        (CHUNKED + b"5\r\n12345\r\n0\r\na: b\r\n", [408]),
        (b"POST /length HTTP/1.1\r\n" + STRANGE + b"Content-Length: 10\r\n\r\n12345", [401]),
        (b"POST /healthz HTTP/1.1\r\n" + STRANGE + b"Content-Length: 10\r\n\r\n12345", [405]),
        (f"POST {PATH}/frames HTTP/1.1\r\nContent-Length: 10\r\n".encode() + STRANGE + b"\r\n12345", [401]),
        (b"GET /ws HTTP/1.1\r\n" + STRANGE + UPGRADE, [408]),
        (b"GET /ws HTTP/1.1\r\n" + STRANGE + UPGRADE + b"==\r\nContent-Length: 10\r\n\r\n12345", []),
        (b"GET /ws HTTP/1.1\r\n" + AUTHORISED + UPGRADE + b"==\r\n" + b"a: " + b"b" * 9000 + b"\r\n\r\n", []),
        (b"GET /ws HTTP/1.1\r\n" + STRANGE + UPGRADE + b"==\r\n\r\n", [401]),
    ],
)
def test_what_stalls_is_ended(request_: bytes, status: list[int], serve: Callable[..., Served]) -> None:
    """A head or a body of which the rest does not come is given up, whoever asks and whatever the route."""
    server = serve(body_seconds=SOON, head_seconds=SOON, rest_seconds=SOON, keep_alive=1)
    said = statuses(server.ask(request_))
    assert said[: len(status)] == status
    assert set(said[len(status) :]) <= {408}


def test_a_peer_that_reads_nothing_is_ended(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """Answers that are not read are not kept for ever, and that is no error of the server's."""
    server = serve(unread_seconds=SOON)
    with closing(server.connect()) as peer:
        peer.sendall((b"GET /large HTTP/1.1\r\n" + AUTHORISED + b"\r\n") * 16)
        answer(peer)
        server.wait_until_empty()
    assert not caplog.records


def test_strangers_leave_places_for_those_with_a_token(serve: Callable[..., Served]) -> None:
    """Many half-open connections: the oldest go, and who has shown a token is answered, before and after."""
    server = serve(strangers=8)
    with ExitStack() as stack:
        known = stack.enter_context(closing(server.connect()))
        known.sendall(KEPT)
        assert statuses(answer(known)) == [200]
        half_open = []
        for _ in range(100):
            half_open.append(stack.enter_context(closing(server.connect())))
            half_open[-1].sendall(b"GET / HTTP/1.1\r\nHost")
        for peer in half_open[:-8]:
            assert statuses(rest(peer)) in ([503], [])
        assert statuses(server.ask(LAST)) == [200]
        known.sendall(KEPT)
        assert statuses(answer(known)) == [200]
        # Who asked in between took the place of the oldest for a moment; the others keep theirs.
        assert not select.select(half_open[-7:], [], [], 0)[0]


def test_a_check_of_health_shows_no_token(serve: Callable[..., Served]) -> None:
    """A connection on which /healthz or a wrong token was answered is still a stranger's."""
    server = serve(strangers=1)
    for request, status in (
        (b"GET /healthz HTTP/1.1\r\n" + STRANGE + b"\r\n", 200),
        (b"GET /api/v1/runs HTTP/1.1\r\nAuthorization: Bearer wrong\r\n" + STRANGE + b"\r\n", 401),
    ):
        with closing(server.connect()) as peer:
            peer.sendall(request)
            assert statuses(answer(peer)) == [status]
            with closing(server.connect()):
                assert statuses(rest(peer)) == [503]


def test_pipelined_requests_are_answered_in_order(serve: Callable[..., Served]) -> None:
    """Up to the limit; each shows its own token, and what follows a good one is no better for it."""
    bare = b"GET /api/v1/runs HTTP/1.1\r\n" + STRANGE + b"\r\n"
    body = b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 3\r\n\r\nabc"
    assert statuses(serve().ask(KEPT + bare + body + KEPT + LAST)) == [200, 401, 200, 200, 200]


def test_a_connection_is_used_again(serve: Callable[..., Served]) -> None:
    """What is counted of a head, and its deadline, begin anew with every request."""
    server = serve(head_bytes=1000, headers=4)
    long = KEPT.replace(b"\r\n\r\n", b"\r\na: " + b"b" * 700 + b"\r\n\r\n")
    with closing(server.connect()) as peer:
        for _ in range(20):
            peer.sendall(long)
            assert statuses(answer(peer)) == [200]


def test_a_slow_recording_arrives(serve: Callable[..., Served]) -> None:
    """A trainer's message may take longer, and be longer, than what a page is sent: it has limits of its own."""
    server = serve(body_seconds=SOON, head_seconds=SOON, rest_seconds=SOON, rest_bytes=1, unread_seconds=SOON)
    head = "Host: 127.0.0.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with closing(server.connect()) as peer:
        peer.sendall(f"PUT {PATH} HTTP/1.1\r\n{head}Content-Length: {len(BEGIN)}\r\n\r\n".encode())
        for start in range(0, len(BEGIN), len(BEGIN) // 2):
            outlived(server)
            peer.sendall(BEGIN[start : start + len(BEGIN) // 2])
        assert statuses(answer(peer)) == [200]
        peer.sendall(f"POST {PATH}/frames HTTP/1.1\r\n{head}Content-Length: {2 * BODY}\r\n\r\n".encode())
        peer.sendall(b"a" * 2 * BODY)
        assert statuses(answer(peer)) == [400]  # it is no message, but it was read


def outlived(server: Served) -> None:
    """Waits until a connection that was opened now has run into its deadline."""
    assert statuses(server.ask(b"")) == [408]


def test_a_stream_and_a_websocket_have_no_deadline(serve: Callable[..., Served]) -> None:
    """They go on when connections that were opened later have run into theirs."""
    server = serve(body_seconds=SOON, head_seconds=SOON, rest_seconds=SOON, unread_seconds=SOON)
    with closing(server.connect()) as stream, closing(server.connect()) as websocket:
        stream.sendall(b"GET /api/v1/runs/1/stream HTTP/1.1\r\n" + AUTHORISED + b"\r\n")
        websocket.sendall(b"GET /ws HTTP/1.1\r\n" + AUTHORISED + UPGRADE + b"==\r\n\r\n")
        assert websocket.recv(2**16).startswith(b"HTTP/1.1 101 ")
        said = stream.recv(2**16)
        outlived(server)
        outlived(server)
        with Store.create(server.path) as store:
            recording = store.begin(RUN, [])
            recording.append(make_frame(0, 7, [], np.random.default_rng(0), ["scalars"]))
            while b'"step": 7' not in said:
                said += (part := stream.recv(2**16))
                assert part
        websocket.sendall(b"\x81\x82\x00\x00\x00\x00hi")  # masked with zeros
        assert websocket.recv(2**16) == b"\x81\x02hi"


MALFORMED = [
    b"POST /length HTTP/1.1\r\nContent-Length: -1\r\n",
    b"POST /length HTTP/1.1\r\nContent-Length: x\r\n",
    b"POST /length HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
    b"POST /length HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n",
    b"POST /length HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"POST /length HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n",
    b"GET / HTTP/1.1\r\na: b\r\n c\r\n",
    b"GET / HTTP/1.1\r\na : b\r\n",
    b"GET / HTTP/1.1\r\na\r\n",
    b"GET / HTTP/1.1\r\na: b\x00c\r\n",
    b"GET / HTTP/1.1\na: b\n",
    b"GET / HTTP/9.9\r\n",
    b"GET / HTTP/1.1 x\r\n",
    b"GET  HTTP/1.1\r\n",
    b"get / HTTP/1.1\r\n",
    b"NONSENSE / HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED)
def test_a_malformed_request_is_refused(request_: bytes, serve: Callable[..., Served]) -> None:
    """What a lenient parser lets pass is a 400 and the end, at once or after a good request, and with the token."""
    server = serve()
    assert statuses(server.ask(request_ + AUTHORISED + b"\r\n")) == [400]
    with closing(server.connect()) as peer:
        peer.sendall(KEPT)
        assert statuses(answer(peer)) == [200]
        peer.sendall(request_ + AUTHORISED + b"\r\n")
        assert statuses(rest(peer)) == [400]


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"fffffffffffffffff\r\n"])
def test_a_malformed_chunk_is_refused(chunk: bytes, serve: Callable[..., Served]) -> None:
    """A body whose chunks make no sense ends the connection."""
    assert statuses(serve().ask(CHUNKED + chunk)) in ([400], [])


def test_refusals_do_not_flood_the_log(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """Of many requests of one kind that are cut off or refused, one line is logged."""
    server = serve()
    sparing, logger = Sparing(), logging.getLogger("uvicorn.error")
    logger.addFilter(sparing)
    try:
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            for _ in range(20):
                server.ask(b"NONSENSE / HTTP/1.1\r\n\r\n")
                with closing(server.connect()) as peer:
                    pour(peer, b"GET / HTTP/1.1\r\na: " + b"a" * 2**16)
                server.ask(b"GET / HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n" + STRANGE + b"\r\n")
    finally:
        logger.removeFilter(sparing)
    said = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert 2 <= len(said) == len(set(said)), said


def test_a_sparing_log_tells_how_much_it_left_out() -> None:
    """After the minute the next line says how many there were; errors with a traceback are all logged."""
    sparing = Sparing(60.0)

    def said(created: float, line: int = 1, error: bool = False) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "x.py", line, "cut %s", ("off",), None)
        record.created = created
        if error:
            record.exc_info = ValueError, ValueError(), None
        return record.getMessage() if sparing.filter(record) else None

    assert [said(0.0), said(1.0), said(59.0), said(2.0, line=2)] == ["cut off", None, None, "cut off"]
    assert [said(3.0, error=True), said(3.0, error=True)] == ["cut off"] * 2
    assert [said(60.0), said(61.0)] == ["cut off (2 more like it since the last)", None]


def test_connections_leave_files_for_the_database() -> None:
    """However many files the process may open, strangers and the rest fit in, and both have places."""
    for files in (10, 256, 1024, 4096, 2**20, 2**63):
        strangers, others = shares(files)
        assert 0 < strangers <= others
        assert strangers <= Limits.strangers
        assert strangers + others <= max(files - 100, 32)
        assert strangers + others <= 2048
