"""Limits on what a peer may send or withhold before the server knows who the peer is: real sockets, small limits."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np
import pytest

from root_dash.server.guard import HEAD_BYTES
from root_dash.server.limits.connections import Limits, divide_files
from root_dash.store import Store
from tests.server.served import (
    AUTHORISED,
    BODY,
    CHUNKED,
    KEPT,
    LAST,
    ROOM,
    RUN,
    SOON,
    STRANGE,
    UPGRADE,
    Served,
    answer,
    pour,
    rest,
    statuses,
)
from tests.server.test_ingest import BEGIN, HEADERS, PATH
from tests.store.frames import make_frame

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
    """Whichever part of a request never ends, the server accepts little of it and still answers other requests."""
    server = serve(rest_bytes=BODY)
    first, piece = ENDLESS[what]
    with closing(server.connect()) as peer:
        peer.sendall(first)
        assert pour(peer, piece) < ROOM
    assert statuses(server.ask(LAST)) == [200]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        # One byte beyond the limit. If a server closes with bytes unread, the client may lose the answer.
        ((b"GET / HTTP/1.1\r\n" + STRANGE + b"a: ").ljust(HEAD_BYTES + 1, b"b"), 431),
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
    """A head without an end, a body that declares its size and a chunked body are refused while they are incomplete."""
    with closing(serve().connect()) as peer:
        peer.sendall(request_)
        assert statuses(answer(peer)) == [status]


def test_a_body_up_to_the_limit_arrives(serve: Callable[..., Served]) -> None:
    """A body arrives whole up to the limit, with a declared size or in chunks."""
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
    """If the rest of a head or of a body does not arrive, the connection ends, whoever sent it and on any route."""
    server = serve(body_seconds=SOON, head_seconds=SOON, rest_seconds=SOON, keep_alive=1)
    found = statuses(server.ask(request_))
    assert found[: len(status)] == status
    assert set(found[len(status) :]) <= {408}


def test_a_peer_that_reads_nothing_is_ended(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """Answers that are not read are not kept for ever, and the log shows no error."""
    server = serve(unread_seconds=SOON)
    with closing(server.connect()) as peer:
        peer.sendall((b"GET /large HTTP/1.1\r\n" + AUTHORISED + b"\r\n") * 16)
        answer(peer)
        server.wait_until_empty()
    assert not caplog.records


def test_strangers_leave_places_for_those_with_a_token(serve: Callable[..., Served]) -> None:
    """Of many half-open connections the oldest end. A peer with a token is answered before and after."""
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
        # The request in between took the place of the oldest for a moment. The others keep their places.
        assert not select.select(half_open[-7:], [], [], 0)[0]


def test_a_check_of_health_shows_no_token(serve: Callable[..., Served]) -> None:
    """A connection stays a stranger's after `/healthz`, and after a wrong token."""
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


def test_a_slow_recording_arrives(serve: Callable[..., Served]) -> None:
    """The message of a trainer may be slower and longer than a request of a page: other limits hold for it."""
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
        assert statuses(answer(peer)) == [400]  # the body is no message, but the server has read it


def outlived(server: Served) -> None:
    """Wait until a connection that is opened now reaches its deadline."""
    assert statuses(server.ask(b"")) == [408]


def test_a_stream_and_a_websocket_have_no_deadline(serve: Callable[..., Served]) -> None:
    """A stream and a WebSocket go on after connections that were opened later have reached their deadlines."""
    server = serve(body_seconds=SOON, head_seconds=SOON, rest_seconds=SOON, unread_seconds=SOON)
    with closing(server.connect()) as stream, closing(server.connect()) as websocket:
        stream.sendall(b"GET /api/v1/runs/1/stream HTTP/1.1\r\n" + AUTHORISED + b"\r\n")
        websocket.sendall(b"GET /ws HTTP/1.1\r\n" + AUTHORISED + UPGRADE + b"==\r\n\r\n")
        assert websocket.recv(2**16).startswith(b"HTTP/1.1 101 ")
        received = stream.recv(2**16)
        outlived(server)
        outlived(server)
        with Store.create(server.path) as store:
            recording = store.begin(RUN, [])
            recording.append(make_frame(0, 7, [], np.random.default_rng(0), ["scalars"]))
            while b'"step": 7' not in received:
                received += (part := stream.recv(2**16))
                assert part
        websocket.sendall(b"\x81\x82\x00\x00\x00\x00hi")  # masked with zeros
        assert websocket.recv(2**16) == b"\x81\x02hi"


def test_connections_leave_files_for_the_database() -> None:
    """However many files the process may open, strangers and other connections both have places within that number."""
    for files in (10, 256, 1024, 4096, 2**20, 2**63):
        strangers, others = divide_files(files)
        assert 0 < strangers <= others
        assert strangers <= Limits.strangers
        assert strangers + others <= max(files - 100, 32)
        assert strangers + others <= 2048
