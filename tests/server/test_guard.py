"""Who may send requests, and from where."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send

from root_dash.server.app import create_app
from root_dash.server.guard import INGEST, Guard
from root_dash.settings import Settings
from root_dash.store import Store

TOKEN = "s3cret&+token"  # noqa: S105 (the tests' own)
HOST = "127.0.0.1:8050"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
EVERYWHERE = "0.0.0.0"  # noqa: S104 (nothing is bound)


def build(store: Store, **settings: Any) -> Guard:
    """Return the guarded API with a page and a WebSocket beside it, as the dashboard has them."""
    chosen = Settings(**{"token": TOKEN, **settings})
    api = create_app(chosen, store)

    @api.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    @api.post("/change")
    @api.get("/{path:path}")
    def page() -> str:
        return "a page"

    return Guard(api, chosen)


@pytest.fixture
def guard(store: Store) -> Guard:
    """The guarded API that asks for a token."""
    return build(store)


@pytest.fixture
def browser(guard: Guard) -> Iterator[TestClient]:
    """A client that follows no redirects."""
    with TestClient(guard, base_url=f"http://{HOST}", follow_redirects=False) as client:
        yield client


def routes(api: FastAPI) -> list[tuple[str, str]]:
    """Return every method and path that the API documents, and the paths of the documentation itself."""
    found = [(method.upper(), path) for path, methods in api.openapi()["paths"].items() for method in methods]
    return [(method, re.sub(r"{\w+}", "1", path)) for method, path in found] + [("GET", "/api/openapi.json")]


def test_every_route_asks_for_the_token(api: FastAPI, browser: TestClient) -> None:
    """Without a token, or with a wrong one, every path but /healthz answers 401, also a path that does not exist."""
    paths = [*routes(api), ("GET", "/api/nope"), ("POST", "/api/v1/runs"), ("GET", "/"), ("POST", "/change")]
    assert len(paths) > 18
    bad: list[dict[str, Any]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic " + "x" * 20},
        {"Cookie": "root_dash_8050=wrong"},
        {"Cookie": "root_dash_8050="},
        {"Cookie": f"root_dash_8050={TOKEN}"},
    ]
    for method, path in paths:
        for headers in bad:
            response = browser.request(method, path, headers=headers)
            assert response.status_code == (200 if path == "/healthz" else 401), path
            if path != "/healthz":
                kind = "application/problem+json" if path.startswith("/api") else "text/html; charset=utf-8"
                assert response.headers["content-type"] == kind
                assert response.headers["www-authenticate"] == "Bearer"
    assert "Open the URL that root-dash serve printed" in browser.get("/").text


def test_every_route_answers_with_the_token(api: FastAPI, browser: TestClient) -> None:
    """With the token no route answers 401 or 403, except the routes for recordings, which need the write token."""
    for method, path in routes(api):
        if path.startswith(INGEST):
            assert browser.request(method, path, headers=BEARER).status_code == 403, path
        elif not path.endswith("/stream"):
            assert browser.request(method, path, headers=BEARER).status_code in (200, 422), path


def test_the_token_of_a_page_becomes_a_cookie(browser: TestClient) -> None:
    """`?token=` of a page sets a cookie that scripts and other sites cannot read, and leaves the address bar."""
    response = browser.get("/layer/3", params={"token": TOKEN, "step": "5", "q": "a b&c"})
    assert response.status_code == 303
    assert response.headers["location"] == "/layer/3?step=5&q=a+b%26c"
    proof, *attributes = response.headers["set-cookie"].lower().split("; ")
    assert re.fullmatch(r"root_dash_8050=[0-9a-f]{64}", proof)
    assert sorted(attributes) == ["httponly", "path=/", "samesite=strict"]
    assert browser.get(response.headers["location"]).text == '"a page"'
    assert browser.get("/api/v1/runs").status_code == 200
    assert browser.get("/").headers["referrer-policy"] == "no-referrer"


def test_a_request_with_a_long_head_is_refused(browser: TestClient) -> None:
    """More than 32 KiB in one header, in many headers or in the address are refused, whoever asks."""
    long = {f"x-{index}": "a" * 330 for index in range(100)}
    for headers, path in (({"x": "a" * 2**15}, "/"), (long, "/api/v1/runs"), ({}, "/?" + "a" * 2**15)):
        answer = browser.get(path, headers=BEARER | headers)
        assert (answer.status_code, answer.headers["cache-control"]) == (431, "no-store")
        assert "at most 32 KiB" in answer.text
    assert browser.get("/api/v1/runs", headers=BEARER | {"x": "a" * 2**14}).status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example", "/%0d%0aX: y"])
def test_the_redirect_stays_here(path: str, guard: Guard) -> None:
    """However the path is written, the redirect after `?token=` names no other host and adds no header."""
    sent: list[Message] = []

    async def ask() -> None:
        scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"token=s3cret%26%2Btoken",
            "headers": [(b"host", HOST.encode())],
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await guard(scope, receive, send)

    asyncio.run(ask())
    location = dict(sent[0]["headers"])[b"location"]
    assert sent[0]["status"] == 303
    assert re.match(rb"/[^/\\]", location)
    assert b"\r" not in location


def test_a_token_in_the_query_is_for_pages_alone(browser: TestClient) -> None:
    """The API and unsafe methods take no token from the URL, which logs and histories keep."""
    assert browser.get("/api/v1/runs", params={"token": TOKEN}).status_code == 401
    assert browser.post("/change", params={"token": TOKEN}).status_code == 401
    assert browser.get("/", params={"token": "wrong"}).status_code == 401
    assert browser.get("/?token=s3cret%26%2Btoken&token=s3cret%26%2Btoken").status_code == 401


def test_two_credentials_are_not_one(browser: TestClient) -> None:
    """Two Authorization headers are refused, also if both hold the token."""
    headers = [("Authorization", BEARER["Authorization"]), ("Authorization", BEARER["Authorization"])]
    assert browser.get("/api/v1/runs", headers=headers).status_code == 401


HOSTS: list[tuple[list[str], dict[str, Any], int]] = [
    ([HOST], {}, 200),
    (["localhost:8050"], {}, 200),
    (["LOCALHOST"], {}, 200),
    (["[::1]:8050"], {}, 200),
    (["127.0.0.1:1234"], {}, 200),
    (["evil.example"], {}, 421),
    (["evil.example:8050"], {}, 421),
    (["127.0.0.1.evil.example"], {}, 421),
    (["localhost.evil.example"], {}, 421),
    (["127.0.0.1@evil.example"], {}, 421),
    (["127.0.0.1:8050@evil.example"], {}, 421),
    (["[::1]evil.example"], {}, 421),
    (["192.168.1.5:8050"], {}, 421),
    ([""], {}, 421),
    ([], {}, 400),
    ([HOST, HOST], {}, 400),
    ([HOST, "evil.example"], {}, 400),
    (["192.168.1.5:8050"], {"host": EVERYWHERE}, 200),
    (["[2001:db8::1]:8050"], {"host": "::"}, 200),
    (["evil.example"], {"host": EVERYWHERE}, 421),
    (["192.168.1.5:8050"], {"host": "192.168.1.5"}, 200),
    (["dash.lab"], {"allowed_hosts": "dash.lab, other"}, 200),
    (["other:80"], {"allowed_hosts": "dash.lab, other"}, 200),
    (["sub.dash.lab"], {"allowed_hosts": "dash.lab"}, 421),
]


@pytest.mark.parametrize(("hosts", "settings", "status"), HOSTS)
@pytest.mark.parametrize("path", ["/api/v1/runs", "/healthz"])
def test_the_host_must_be_ours(
    hosts: list[str], settings: dict[str, Any], status: int, path: str, store: Store
) -> None:
    """A request needs exactly one Host header, with a name of this server."""
    sent: list[Message] = []

    async def ask() -> None:
        headers = [(b"host", host.encode()) for host in hosts] + [(b"authorization", BEARER["Authorization"].encode())]
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await build(store, **settings)(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == status


ORIGINS = [
    ("http://127.0.0.1:8050", True),
    ("https://127.0.0.1:8050", True),
    (None, True),
    ("http://127.0.0.1:8051", False),
    ("http://localhost:8050", False),
    ("http://127.0.0.1:8050.evil.example", False),
    ("http://evil.example", False),
    ("null", False),
    ("", False),
]


@pytest.mark.parametrize(("origin", "ours"), ORIGINS)
def test_the_origin_must_be_ours(origin: str | None, ours: bool, browser: TestClient) -> None:
    """A WebSocket or an unsafe method from another site's page is a 403, even with the token; reading is allowed."""
    headers: dict[str, Any] = {**BEARER, "Host": HOST} | ({} if origin is None else {"Origin": origin})
    assert browser.post("/change", headers=headers).status_code == (200 if ours else 403)
    assert browser.get("/api/v1/runs", headers=headers).status_code == 200
    if ours:
        with browser.websocket_connect("/ws", headers=headers) as websocket:
            assert websocket.receive_text() == "hello"
    else:
        with pytest.raises(WebSocketDenialResponse) as denied, browser.websocket_connect("/ws", headers=headers):
            pass
        assert denied.value.status_code == 403


def test_a_websocket_needs_the_token(browser: TestClient) -> None:
    """A WebSocket without the token is refused before it is accepted, also with the token in its URL."""
    for url in ("/ws", "/ws?token=s3cret%26%2Btoken"):
        with pytest.raises(WebSocketDenialResponse) as denied, browser.websocket_connect(url, headers={"Host": HOST}):
            pass
        assert denied.value.status_code == 401


def test_every_response_carries_the_headers(browser: TestClient) -> None:
    """Every answer forbids sniffing, referrers and framing. No cache keeps data or a page."""
    for path, headers in (
        ("/", BEARER),
        ("/", {}),
        ("/api/v1/runs", BEARER),
        ("/api/v1/runs", {}),
        ("/api/nope", BEARER),
        ("/healthz", {}),
    ):
        response = browser.get(path, headers=headers)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert response.headers.get("cache-control") == "no-store"


def test_without_a_token_the_host_still_counts(store: Store) -> None:
    """On loopback the token may be switched off. A foreign name that points here is still refused."""
    client = TestClient(build(store, token=None), base_url=f"http://{HOST}")
    assert client.get("/api/v1/runs").status_code == 200
    assert client.get("/api/v1/runs", headers={"Host": "evil.example"}).status_code == 421


def test_a_stream_is_not_held_back(store: Store) -> None:
    """Each piece of a response is passed on before the next is made."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"two"):
            log.append(f"made {piece.decode()}")
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def ask() -> None:
        async def receive() -> Message:
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                log.append(f"sent {message['body'].decode()}")

        scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", HOST.encode())]}
        await Guard(app, Settings(token=None))(scope, receive, send)

    asyncio.run(ask())
    assert log == ["made one", "sent one", "made two", "sent two"]


def test_settings_are_safe_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is made unless one is given. It is never shown and never empty, and only loopback can do without."""
    first, second = Settings().token, Settings().token
    assert first is not None
    assert second is not None
    assert first.get_secret_value() != second.get_secret_value()
    assert len(first.get_secret_value()) >= 43
    assert first.get_secret_value() not in repr(Settings(token=first))
    for host in (EVERYWHERE, "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(ValueError, match="needs a token"):
            Settings(token=None, host=host)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Settings(token=None, host=host).token is None
    monkeypatch.setenv("ROOT_DASH_TOKEN", " ")
    with pytest.raises(ValueError, match="must not be empty"):
        Settings()
