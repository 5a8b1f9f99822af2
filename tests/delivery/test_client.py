"""The client of a server: what the server's answers mean, and which addresses and tokens are refused."""

from __future__ import annotations

import http.server
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import root_dash
from root_dash.delivery import sender
from root_dash.delivery.client import IngestClient, Refused, Unreachable
from root_dash.delivery.limits import DeliveryLimits
from tests.delivery.servers import WRITE
from tests.monitor.training import Model, sgd


@contextmanager
def answering(status: int, content: bytes = b"", **headers: str) -> Iterator[str]:
    """A server of somebody else's that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "content", "headers", "error", "says"),
    [
        (503, b'{"detail": "busy"}', {"Retry_After": "7"}, Unreachable, "cannot take frames now .503: busy"),
        (507, b"", {"Retry_After": "soon"}, Unreachable, "507"),
        (429, b"[]", {"Retry_After": "99999"}, Unreachable, "429"),
        (200, b"<html>", {}, Unreachable, "answers as no root-dash does"),
        (200, b'{"attempt": "a"}', {}, Unreachable, "answers as no root-dash does"),
        (404, b"", {}, Refused, "no root-dash of this version"),
        (302, b"", {"Location": "http://127.0.0.1:1/"}, Refused, "302"),
        (401, b'{"detail": "the write token is required"}', {}, Refused, "401: the write token is required"),
        (409, b"", {}, Refused, "409"),
        (413, b"", {}, Refused, "413"),
        (422, b"\xff", {}, Refused, "422"),
    ],
)
def test_what_an_answer_means(
    status: int, content: bytes, headers: dict[str, str], error: type[Exception], says: str
) -> None:
    """A busy or full server is tried again when it says so. A server that refuses is asked less often."""
    with answering(status, content, **headers) as server:
        client = IngestClient(server, WRITE)
        with pytest.raises(error, match=says) as raised:
            client.begin(b"x", "a" * 32)
        client.close()
    asked = {"7": 7.0, "99999": 300.0}.get(headers.get("Retry_After", ""), 0.0)
    assert getattr(raised.value, "retry_after", 0.0) == asked
    assert sender._pause(0, raised.value, DeliveryLimits()) >= min(asked, 0.01)


def test_pauses_leave_the_random_numbers_of_the_training_alone() -> None:
    """They are drawn beside it, in a thread of ours: from the same generator a training would go another way."""
    before = random.getstate()
    pauses = {sender._pause(0, Unreachable("away"), DeliveryLimits()) for _ in range(3)}
    assert len(pauses) == 3
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"server": "far:8050"}, "which begins with http:// or https://, got 'far:8050'"),
        ({"server": "far"}, "which begins with http:// or https://, got 'far'"),
        ({"server": "ftp://far"}, "which begins with http:// or https://, got 'ftp://far'"),
        ({"server": "http://:8050"}, "which names a host, got 'http://:8050'"),
        ({"server": "http://far :8050"}, "got 'http://far :8050'"),
        ({"server": "http://far:99999"}, "its port from 1 to 65535, got 'http://far:99999'"),
        ({"server": "http://far:-1"}, "its port from 1 to 65535, got 'http://far:-1'"),
        ({"server": "http://far:port"}, "got 'http://far:port'"),
        ({"server": "http://far:8050/api/v1"}, "without a path, got 'http://far:8050/api/v1'"),
        ({"server": "http://user:secret@far:8050"}, "without a user and password, got one that may hold a secret"),
        ({"server": "user:secret@far:8050"}, "which begins with http:// or https://, got one that may hold a secret"),
        ({"server": "http://user:secret@far:port"}, "got one that may hold a secret"),
        ({"server": "http://far:8050/?token=secret"}, "without a query or fragment: the token is an argument"),
        ({"server": "http://far:8050#secret"}, "without a query or fragment"),
        ({"server": "http://far:8050", "token": "a\nb"}, "token must be the write token"),
        ({"server": "http://far:8050", "token": None}, "server needs the write token"),
        ({"server": "http://far:8050", "db": "x.db"}, "give db or server, not both"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, str], says: str, tmp_path: Path) -> None:
    """A text that is not an address, an address that says more than where the server is, and a missing token."""
    model = Model()
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        root_dash.watch(model, sgd(model), **{"token": WRITE, "spool": tmp_path / "spool", **arguments})  # type: ignore[arg-type]
    assert "secret" not in str(raised.value).replace("may hold a secret", "")
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "server", ["http://far:8050/", "http://far", "https://far", "http://[::1]:8050", "HTTP://Far:1"]
)
def test_a_plain_address_is_taken(server: str) -> None:
    """The address may end in a slash, have a name or a number, and a port or no port."""
    client = IngestClient(server, WRITE)
    assert client.server == server.rstrip("/")
    client.close()
