"""The documentation of the API against the answers of real servers, so that it cannot say what is not so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.testclient import TestClient

from root_dash.records import Event, Run
from root_dash.server import ingest, layers, liveness, runs
from root_dash.server.app import DOCS, create_app
from root_dash.server.responses import LayerJson, ProblemJson, StreamedNoticeJson
from root_dash.server.stream import tail
from root_dash.settings import Settings
from root_dash.store import Store
from root_dash.wire import End
from tests.server.test_ingest import BEGIN, HEADERS, PATH, READ, Server
from tests.store.frames import make_frame, make_layers, record
from tests.store.read.test_frames import trained

RUNS, LAYERS, ATTEMPTS = "/api/v1/runs", "/api/v1/layers", "/api/v1/ingest/attempts"

ANSWERS = {
    "/healthz": [""],
    RUNS: [""],
    f"{RUNS}/{{run}}": [""],
    f"{RUNS}/{{run}}/layers": [""],
    f"{RUNS}/{{run}}/frames": ["", "?after=40&limit=3"],
    f"{RUNS}/{{run}}/events": [""],
    f"{RUNS}/{{run}}/verdicts": ["", "?after=1&limit=1"],
    f"{RUNS}/{{run}}/grid": ["?statistic=grad_norm&buckets=10", "?statistic=polar_error"],
    f"{RUNS}/{{run}}/scalars": ["", "?name=loss"],
    f"{LAYERS}/{{layer}}": [""],
    f"{LAYERS}/{{layer}}/history": ["?statistic=grad_norm", "?statistic=sigma_max"],
    f"{LAYERS}/{{layer}}/statistics": ["", "?step=12"],
    f"{LAYERS}/{{layer}}/histogram": ["", "?tensor=momentum&step=12"],
    f"{LAYERS}/{{layer}}/quantiles": ["", "?tensor=momentum&step=12"],
    f"{LAYERS}/{{layer}}/spectrum": [""],
    f"{LAYERS}/{{layer}}/mask": ["", "?step=12"],
}
"""The routes that are read, and queries for each of them."""

STREAM = f"{RUNS}/{{run}}/stream"
SENT = {
    ("GET", f"{ATTEMPTS}/{{attempt}}"),
    ("PUT", f"{ATTEMPTS}/{{attempt}}"),
    ("POST", f"{ATTEMPTS}/{{attempt}}/frames"),
    ("POST", f"{ATTEMPTS}/{{attempt}}/end"),
}


def check(response: httpx2.Response, api: FastAPI, method: str, path: str) -> None:
    """Hold an answer against what the documentation says of the route, the status and the media type."""
    described = api.openapi()["paths"][path][method.lower()]["responses"]
    status = str(response.status_code)
    assert status in described, (method, path, response.text)
    (media_type,) = described[status]["content"]
    assert response.headers["content-type"] == media_type, (method, path, status)
    model = ProblemJson if response.status_code >= 400 else models()[method, path]
    TypeAdapter(model).validate_python(response.json(), strict=True)


def models() -> dict[tuple[str, str], Any]:
    """Return the declared model of the answer of each route, by method and path."""
    routes = [route for module in (ingest, layers, liveness, runs) for route in module.router.routes]
    return {
        (method, route.path): route.response_model
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


def odd(path: Path) -> Path:
    """Record a run with an event, and with values that JSON has no number for."""
    with Store.create(path) as store:
        config = {"nan": math.nan, "inf": math.inf, "text": "\ud800<script>", "deep": [{"x": -math.inf}, None, True]}
        recording = store.begin(Run("u", "ü<b>", 1.0, config), make_layers(1))
        frame = make_frame(0, 12, recording.layers, np.random.default_rng(0))
        frame.statistics[0, :3] = [math.nan, math.inf, -math.inf]
        object.__setattr__(frame, "events", (Event("kind", "text", 12, 1.0),))
        recording.append(frame)
    return path


def test_every_route_has_a_model(api: FastAPI) -> None:
    """The documentation describes the body of every answer, and the tests below ask for every answer."""
    described = {(method.upper(), path) for path, methods in api.openapi()["paths"].items() for method in methods}
    assert described == {("GET", path) for path in [*ANSWERS, STREAM]} | SENT
    for path, methods in api.openapi()["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                (content,) = response["content"].values()
                assert content.get("schema", content.get("itemSchema")), (method, path, status)
                assert response["description"], (method, path, status)
            assert operation["description"].endswith("."), (method, path)


@pytest.mark.parametrize("path", ANSWERS)
def test_answers_are_as_documented(path: str, client: TestClient, api: FastAPI, tmp_path: Path) -> None:
    """What a route answers for real recordings, also for odd ones, is what its model says."""
    with Store.open(odd(tmp_path / "odd.db")) as store:
        other = create_app(Settings(token=None), store)
        for app, asked in ((api, client), (other, TestClient(other, base_url="http://127.0.0.1:8050"))):
            for query in ANSWERS[path]:
                response = asked.get(path.replace("{run}", "1").replace("{layer}", "1") + query)
                assert response.status_code == 200, response.text
                check(response, app, "GET", path)


def test_streamed_events_are_as_documented(client: TestClient, api: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of each event is what the documentation of the stream says."""

    async def finite(*args: object, follow: bool, **options: object) -> object:
        async for notice in tail(*args, follow=False):  # type: ignore[arg-type]
            yield notice

    monkeypatch.setattr("root_dash.server.stream.tail", finite)
    response = client.get(STREAM.replace("{run}", "1"))
    content = api.openapi()["paths"][STREAM]["get"]["responses"]["200"]["content"]
    (schema,) = content.values()
    assert response.headers["content-type"].partition(";")[0] in content
    described = [one["properties"]["data"]["contentSchema"]["title"] for one in schema["itemSchema"]["oneOf"]]
    assert described == ["StreamedNoticeJson", "VerdictJson"]
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert len(data) == 45
    for event in data:
        StreamedNoticeJson.model_validate_json(event, strict=True)


def test_a_model_notices_a_field_too_many_or_too_few() -> None:
    """A record that grows a field makes the documentation false: the tests above then fail."""
    layer = {"name": "a", "shape": [1], "algorithm": "root", "position": 0, "id": 1}
    LayerJson.model_validate_json(json.dumps(layer), strict=True)
    for wrong in (layer | {"new": 1}, {"name": "a"}, layer | {"id": "1"}, layer | {"shape": None}):
        with pytest.raises(ValidationError):
            LayerJson.model_validate_json(json.dumps(wrong), strict=True)


def test_errors_of_reading_are_as_documented(client: TestClient, api: FastAPI) -> None:
    """What is not there, and what cannot be, is a documented problem of every route that takes a parameter."""
    for path, queries in ANSWERS.items():
        if "{" in path:
            for number, status in (("99", 404), ("x", 422)):
                response = client.get(path.replace("{run}", number).replace("{layer}", number) + queries[0])
                assert response.status_code == status
                check(response, api, "GET", path)
    for number, status in (("99", 404), ("x", 422)):
        response = client.get(STREAM.replace("{run}", number))
        assert response.status_code == status
        check(response, api, "GET", STREAM)


def test_refusals_of_the_guard_are_as_documented(tmp_path: Path) -> None:
    """No token, the wrong token, another host and a long head are documented problems of every route of the API."""
    server = Server(record(tmp_path / "x.db", 2))
    try:
        api = create_app(Settings(token=None), server.store)
        for method, path in [("GET", path) for path in (*ANSWERS, STREAM) if path.startswith("/api")] + sorted(SENT):
            url = path.replace("{run}", "1").replace("{layer}", "1").replace("{attempt}", "a" * 32)
            for headers, status in (
                ({}, 401),
                ({"Host": "evil.example"}, 421),
                ({"x": "a" * 2**15}, 431),
                ({"Authorization": f"Bearer {READ}"}, 403 if (method, path) in SENT else None),
            ):
                if status is not None:
                    response = server.client.request(method, url, headers=headers)
                    assert response.status_code == status, (method, path, status)
                    check(response, api, method, path)
    finally:
        server.stop()


def test_sending_is_as_documented(tmp_path: Path) -> None:
    """Every message of a trainer, and what refuses a message, is answered as the documentation says."""
    path = tmp_path / "team.db"
    Store.create(path).close()
    server = Server(path)
    api = create_app(Settings(token=None), server.store)
    attempt, frames, end = f"{ATTEMPTS}/{{attempt}}", f"{ATTEMPTS}/{{attempt}}/frames", f"{ATTEMPTS}/{{attempt}}/end"
    no_length = {name: value for name, value in HEADERS.items() if name != "Content-Length"}

    def answered(response: httpx2.Response, method: str, route: str, status: int) -> None:
        assert response.status_code == status, response.text
        check(response, api, method, route)

    try:
        answered(server.append([trained(0)]), "POST", frames, 404)
        answered(server.begin(), "PUT", attempt, 200)
        answered(server.append([trained(0)]), "POST", frames, 200)
        answered(server.end(End(1.8e9, 0, 1)), "POST", end, 412)
        answered(server.end(End(1.8e9, 0, 0)), "POST", end, 200)
        answered(server.append([trained(1)]), "POST", frames, 409)
        answered(server.client.get(PATH, headers=HEADERS), "GET", attempt, 200)
        answered(server.send("PUT", PATH, b""), "PUT", attempt, 400)
        answered(server.send("PUT", PATH, BEGIN, **{"Content-Type": "text/plain"}), "PUT", attempt, 415)
        answered(server.send("PUT", PATH, BEGIN, **{"Content-Length": str(2**40)}), "PUT", attempt, 413)
        answered(server.send("PUT", f"{ATTEMPTS}/A", BEGIN), "PUT", attempt, 422)
        chunked = server.client.request("PUT", PATH, content=iter([BEGIN]), headers=no_length)
        answered(chunked, "PUT", attempt, 411)
    finally:
        server.stop()


def test_the_page_shows_the_documentation_from_this_server(client: TestClient) -> None:
    """The page and all that it loads come from the server itself, whatever the page names."""
    page = client.get(DOCS)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    loaded = [part.partition('"')[0] for key in ('src="', 'href="') for part in page.text.split(key)[1:]]
    assert len(loaded) == 3
    for url in loaded:
        assert url.startswith(f"{DOCS}/static/")
        assert client.get(url).status_code == 200
    assert "//" not in page.text.replace("// ", "")
    assert client.get(f"{DOCS}/static/nope.js").headers["content-type"] == "application/problem+json"
    assert client.get(f"{DOCS}/static/../../../app.py").status_code == 404
