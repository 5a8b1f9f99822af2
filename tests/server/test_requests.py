"""The requests that a connection accepts: one after another, and none that is malformed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from tests.server.served import AUTHORISED, CHUNKED, KEPT, LAST, STRANGE, Served, answer, rest, statuses


def test_pipelined_requests_are_answered_in_order(serve: Callable[..., Served]) -> None:
    """Each pipelined request needs its own token, and a request after a good request gains nothing from it."""
    bare = b"GET /api/v1/runs HTTP/1.1\r\n" + STRANGE + b"\r\n"
    body = b"POST /length HTTP/1.1\r\n" + AUTHORISED + b"Content-Length: 3\r\n\r\nabc"
    assert statuses(serve().ask(KEPT + bare + body + KEPT + LAST)) == [200, 401, 200, 200, 200]


def test_a_connection_is_used_again(serve: Callable[..., Served]) -> None:
    """The count of a head's bytes, and its deadline, start again with every request."""
    server = serve(head_bytes=1000, headers=4)
    long = KEPT.replace(b"\r\n\r\n", b"\r\na: " + b"b" * 700 + b"\r\n\r\n")
    with closing(server.connect()) as peer:
        for _ in range(20):
            peer.sendall(long)
            assert statuses(answer(peer)) == [200]


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
    """A request that a lenient parser would accept is answered with 400 and ends the connection, also with a token."""
    server = serve()
    assert statuses(server.ask(request_ + AUTHORISED + b"\r\n")) == [400]
    with closing(server.connect()) as peer:
        peer.sendall(KEPT)
        assert statuses(answer(peer)) == [200]
        peer.sendall(request_ + AUTHORISED + b"\r\n")
        assert statuses(rest(peer)) == [400]


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"fffffffffffffffff\r\n"])
def test_a_malformed_chunk_is_refused(chunk: bytes, serve: Callable[..., Served]) -> None:
    """A malformed chunk of a body ends the connection."""
    assert statuses(serve().ask(CHUNKED + chunk)) in ([400], [])
