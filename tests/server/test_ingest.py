"""Recordings over HTTP: what is stored, once, and what is refused."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import zstandard
from pydantic import SecretStr
from starlette.testclient import TestClient

from root_dash import wire
from root_dash.records import Attempt, Frame, Run
from root_dash.server.app import create_app
from root_dash.server.guard import Guard
from root_dash.server.ingest import Inbox, InboxLimits
from root_dash.settings import Settings
from root_dash.store import Store
from root_dash.wire import End
from tests.store.frames import make_layers
from tests.store.read.test_frames import same_frames, trained

READ, WRITE = "read-token", "write-token"
RUN = Run("u" * 32, "far away", 1.7e9, {"lr": 0.1}, {"masks": 3}, {"name": "ROOT"}, rank=1)
ATTEMPT = Attempt("a" * 32, 1.7e9, pid=7, host="far")
LAYERS = make_layers(6)
PATH = f"/api/v1/ingest/attempts/{ATTEMPT.uid}"
HEADERS = {"Authorization": f"Bearer {WRITE}", "Content-Type": wire.MEDIA_TYPE, "Content-Encoding": wire.ENCODING}
BEGIN = wire.pack_begin(RUN, LAYERS, ATTEMPT)


class Server:
    """A guarded server on a database of its own, which a test can restart."""

    def __init__(self, path: Path | str, limits: InboxLimits | None = None, **options: Any) -> None:
        self.path = path
        self._limits = limits
        self._settings = Settings(token=SecretStr(READ), write_token=SecretStr(WRITE), **options)
        self.start()

    def start(self) -> None:
        """Start the server."""
        self.inbox = Inbox(lambda: Store.create(self.path), self._limits)
        self.store = Store.open(self.path)
        inbox = None if self._settings.read_only else self.inbox
        guarded = Guard(create_app(self._settings, self.store, inbox=inbox), self._settings)
        self.client = TestClient(guarded, base_url="http://127.0.0.1:8050", raise_server_exceptions=False)
        self.client.__enter__()

    def stop(self) -> None:
        """Stop the server."""
        self.client.__exit__(None, None, None)
        self.inbox.close()
        self.store.close()

    def send(self, method: str, path: str, content: bytes = b"", **headers: str) -> httpx2.Response:
        """Send one message with the write token."""
        return self.client.request(method, path, content=content, headers=HEADERS | headers)

    def begin(self, content: bytes = BEGIN, path: str = PATH) -> httpx2.Response:
        """Begin the attempt."""
        return self.send("PUT", path, content)

    def append(self, frames: Sequence[Frame], path: str = PATH) -> httpx2.Response:
        """Send a batch of frames."""
        return self.send("POST", f"{path}/frames", wire.pack_batch(map(wire.pack_frame, frames)))

    def end(self, end: End, path: str = PATH) -> httpx2.Response:
        """End the attempt."""
        return self.send("POST", f"{path}/end", wire.pack_end(end))

    def frames(self, run: int = 1) -> list[Frame]:
        """Return all stored frames in order."""
        return [self.store.frame(notice.id) for notice in self.store.frames(run)]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts servers on an empty database."""
    path = tmp_path / "team.db"
    Store.create(path).close()
    made: list[Server] = []

    def make(**options: Any) -> Server:
        made.append(Server(path, **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A server that takes recordings."""
    return serve()


def problem(response: httpx2.Response, status: int) -> str:
    """Return the detail of a refusal, after a check of its status and media type."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    return str(response.json()["detail"])


def test_a_run_arrives_bit_for_bit(server: Server) -> None:
    """A run that was begun, sent in batches and ended reads as on the trainer, its rank and lost frames included."""
    frames = [trained(seq) for seq in range(5)]
    assert server.begin().json() == {"attempt": ATTEMPT.uid, "run": 1, "last_seq": None, "ended_at": None}
    assert server.append(frames[:2]).json()["last_seq"] == 1
    assert server.append(frames[2:]).json()["last_seq"] == 4
    assert server.end(End(1.8e9, 2, 4)).json()["ended_at"] == 1.8e9
    assert all(map(same_frames, server.frames(), frames))
    run = server.store.run(1)
    assert replace(run, id=0, frames=0, lost=0, last_step=None, last_time=None) == replace(RUN, ended_at=1.8e9)
    assert (run.frames, run.lost) == (5, sum(range(5)) + 2)
    assert [replace(layer, id=0) for layer in server.store.layers(1)] == LAYERS
    assert server.store.attempt(ATTEMPT.uid).host == "far"


def test_everything_may_be_sent_again(server: Server) -> None:
    """Messages that are sent twice, or after the end, change nothing and receive the same answer."""
    frames = [trained(seq) for seq in range(3)]
    for _ in range(2):
        assert server.begin().status_code == 200
        assert server.append(frames).json()["last_seq"] == 2
    for _ in range(2):
        assert server.end(End(1.8e9, 0, 2)).json()["ended_at"] == 1.8e9
        assert server.begin().json() == server.append(frames).json()
    assert server.client.get(PATH, headers=HEADERS).json()["last_seq"] == 2
    assert all(map(same_frames, server.frames(), frames))
    assert len(server.frames()) == 3
    assert "has ended" in problem(server.append([trained(3)]), 409)


def test_another_frame_or_run_under_the_same_name_is_a_conflict(server: Server) -> None:
    """The first frame or run stays, and the sender is told."""
    server.begin()
    server.append([trained(0)])
    assert "frame 0" in problem(server.append([replace(trained(0), step=99)]), 409)
    assert "another run" in problem(server.begin(wire.pack_begin(replace(RUN, uid="v" * 32), LAYERS, ATTEMPT)), 409)
    assert "shape" in problem(
        server.begin(
            wire.pack_begin(RUN, [replace(LAYERS[0], shape=(1, 2))], replace(ATTEMPT, uid="b" * 32)),
            PATH[:-32] + "b" * 32,
        ),
        422,
    )
    assert [frame.step for frame in server.frames()] == [trained(0).step]


def test_an_attempt_cannot_end_before_its_last_frame_is_here(server: Server) -> None:
    """The server asks again for frames that it lost with its power, before the trainer deletes them."""
    server.begin()
    server.append([trained(0)])
    assert "frame 1 of it has not arrived" in problem(server.end(End(1.8e9, 0, 1)), 412)
    server.append([trained(1)])
    assert server.end(End(None, 0, 1)).json()["ended_at"] is None  # nobody saw it end: it may still go on
    server.begin()
    assert server.append([trained(2)]).json()["last_seq"] == 2
    assert server.end(End(1.8e9, 0, 2)).json()["ended_at"] == 1.8e9


def test_only_the_write_token_sends_and_it_does_nothing_else(server: Server) -> None:
    """The read token, as header or cookie, is refused with 403, and no token or a wrong token with 401."""
    for method, path in (("PUT", PATH), ("POST", f"{PATH}/frames"), ("POST", f"{PATH}/end"), ("GET", PATH)):
        problem(server.send(method, path, BEGIN, Authorization=f"Bearer {READ}"), 403)
        for wrong in ("", "Bearer ", "Bearer wrong", f"Basic {WRITE}", f"Bearer {WRITE}x"):
            problem(server.send(method, path, BEGIN, Authorization=wrong), 401)
    assert server.client.get("/api/v1/runs", headers={"Authorization": f"Bearer {WRITE}"}).status_code == 401
    assert server.client.get(f"/?token={WRITE}").status_code == 401
    server.client.get(f"/?token={READ}", follow_redirects=False)  # sets the cookie
    problem(server.client.put(PATH, content=BEGIN, headers={k: v for k, v in HEADERS.items() if k[0] == "C"}), 403)
    assert server.store.runs() == []


def test_a_refused_message_is_not_read(server: Server) -> None:
    """Without the token, or if the message is too long, no byte of the body is read."""
    taken = 0

    def body() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield bytes(2**16)

    async def read(guard: Any, headers: dict[str, str]) -> int:
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": next(chunks), "more_body": True}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http",
            "method": "PUT",
            "path": PATH,
            "query_string": b"",
            "scheme": "http",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "app": None,
        }
        await guard(scope, receive, send)
        return status

    chunks = body()
    host = {"Host": "127.0.0.1:8050", "Content-Length": str(2**16)}
    assert asyncio.run(read(server.client.app, HEADERS | host | {"Authorization": "Bearer wrong"})) == 401
    assert asyncio.run(read(server.client.app, HEADERS | host | {"Content-Length": str(2**30)})) == 413
    assert taken == 0
    assert asyncio.run(read(server.client.app, HEADERS | host)) == 400  # longer than it says
    assert taken == 2


def test_a_server_that_only_shows_refuses(serve: Callable[..., Server]) -> None:
    """With `read_only` nothing is stored, and the database is never opened for writing."""
    assert "takes no recordings" in problem(serve(read_only=True).begin(), 403)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (BEGIN, {"Content-Type": "application/json"}, 415),
        (BEGIN, {"Content-Encoding": "gzip"}, 415),
        (b"", {}, 400),
        (BEGIN[:-1], {}, 400),
        (wire.pack_end(End(1.0, 0, None)), {}, 422),
        (wire.pack_begin(RUN, LAYERS, replace(ATTEMPT, uid="b" * 32)), {}, 422),
        (wire.pack_begin(RUN, [*LAYERS, replace(LAYERS[0], position=6)], ATTEMPT), {}, 422),
        (wire.pack_begin(replace(RUN, started_at=math.nan), LAYERS, ATTEMPT), {}, 422),
        (zstandard.ZstdCompressor().compress(msgspec.msgpack.encode({"extra": 1})), {}, 422),
    ],
)
def test_what_cannot_be_a_beginning_is_refused(
    server: Server, content: bytes, headers: dict[str, str], status: int
) -> None:
    """Each wrong message has its own status, is answered with a problem, and stores nothing."""
    problem(server.send("PUT", PATH, content, **headers), status)
    assert server.store.runs() == []


def test_frames_that_do_not_fit_are_refused(server: Server) -> None:
    """A frame of an unknown layer, a frame before the attempt began, and a malformed name are refused."""
    problem(server.append([trained(0)]), 404)
    problem(server.send("PUT", "/api/v1/ingest/attempts/..%2Fx", BEGIN), 404)
    problem(server.send("PUT", "/api/v1/ingest/attempts/A", BEGIN), 422)
    server.begin(wire.pack_begin(RUN, LAYERS[:2], ATTEMPT))
    assert "names layer position 2" in problem(server.append([trained(0)]), 422)
    assert server.frames() == []


def test_no_message_makes_the_runs_unreadable(server: Server) -> None:
    """Counts of lost frames that would overflow a sum are refused, and steps whose bucket would overflow."""
    server.begin()
    problem(server.append([replace(trained(0), step=2**63 - 1)]), 422)
    for seq in range(2):
        problem(server.append([replace(trained(seq), lost=2**63 - 1)]), 422)
    problem(server.end(End(1.8e9, 2**63 - 1, None)), 422)
    assert [run.lost for run in server.store.runs()] == [0]


def test_attempts_beyond_what_is_kept_open_go_on(serve: Callable[..., Server]) -> None:
    """A trainer whose attempt was closed meanwhile is asked to begin it again, and loses nothing."""
    server = serve(limits=InboxLimits(open_attempts=1))
    other = replace(ATTEMPT, uid="b" * 32)
    server.begin()
    server.append([trained(0)])
    server.begin(wire.pack_begin(replace(RUN, uid="v" * 32), LAYERS, other), PATH.replace("a" * 32, other.uid))
    assert "begin the attempt" in problem(server.append([trained(1)]), 404)
    assert server.begin().json()["last_seq"] == 0
    server.append([trained(1)])
    assert [frame.seq for frame in server.frames()] == [0, 1]


@pytest.mark.heavy
def test_a_held_database_is_told_apart(server: Server) -> None:
    """While another process writes, the server answers with 503; a message that is sent later is stored."""
    server.begin()
    other = sqlite3.connect(server.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    response = server.append([trained(0)])
    problem(response, 503)
    assert response.headers["retry-after"] == "5"
    other.execute("ROLLBACK")
    other.close()
    assert server.append([trained(0)]).status_code == 200


@pytest.mark.heavy
def test_postgresql_takes_recordings(database: str) -> None:
    """PostgreSQL stores the same: bit for bit, sent again, across a restart, and ended."""
    server = Server(database)
    frames = [trained(seq) for seq in range(4)]
    server.begin()
    server.append(frames[:2])
    server.stop()
    server.start()
    problem(server.append(frames[1:]), 404)
    assert server.begin().json()["last_seq"] == 1
    server.append(frames[1:])
    assert server.end(End(1.8e9, 0, 3)).json()["ended_at"] == 1.8e9
    assert all(map(same_frames, server.frames(), frames))
    assert len(server.frames()) == 4
    server.stop()
