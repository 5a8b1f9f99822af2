"""Every route compared with the store's own answers, and every error as a problem."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from root_dash.exceptions import StoreBusy, StoreError
from root_dash.records import STATISTICS, Run
from root_dash.records.plain import plain, strict
from root_dash.server.app import create_app
from root_dash.settings import Settings
from root_dash.store import Store
from tests.store.frames import make_frame, make_layers

V1 = "/api/v1"


def test_every_record_is_served_as_the_store_holds_it(client: TestClient, store: Store) -> None:
    """Each route answers with what the store returns."""
    expected: dict[str, Any] = {
        "/runs": store.runs(),
        "/runs/1": store.run(1),
        "/runs/1/layers": store.layers(1),
        "/runs/1/frames?after=40&limit=3": store.frames(1, 40, 3),
        "/runs/1/events": store.events(1),
        "/runs/1/grid?statistic=grad_norm&buckets=10": store.grid(1, "grad_norm", 10),
        "/runs/1/scalars": store.scalar_names(1),
        "/runs/1/scalars?name=loss&max_points=8": store.scalar(1, "loss", 8),
        "/layers/2": store.layer(2),
        "/layers/2/history?statistic=sigma_max": store.history(2, "sigma_max"),
        "/layers/2/history?statistic=grad_norm&max_points=8": store.history(2, "grad_norm", 8),
        "/layers/2/statistics?step=12": store.statistics(2, 12),
        "/layers/2/histogram?step=12&tensor=momentum": store.histogram(2, 12, "momentum"),
        "/layers/2/quantiles": store.quantiles(2),
        "/layers/2/spectrum?step=39": store.spectrum(2, 39),
        "/layers/2/mask": store.mask(2),
    }
    for url, record in expected.items():
        response = client.get(V1 + url)
        assert response.status_code == 200, url
        assert response.headers["content-type"] == "application/json"
        assert response.json() == plain(record, strict), url


def test_numbers_survive_json(client: TestClient, store: Store) -> None:
    """A client reads the same numbers, bits and edges from the JSON."""
    history = client.get(f"{V1}/layers/2/history?statistic=grad_norm").json()
    assert history["values"] == store.history(2, "grad_norm").values.tolist()
    mask = client.get(f"{V1}/layers/2/mask").json()
    assert base64.b64decode(mask["packed"]) == store.mask(2).packed
    edges = client.get(f"{V1}/layers/2/histogram").json()["edges"]
    assert np.array_equal([float(edge) for edge in edges], store.histogram(2).edges)


def test_what_was_not_recorded_is_null(client: TestClient) -> None:
    """NaN is null. A vector has no spectrum, and its row of a grid is all null."""
    grid = client.get(f"{V1}/runs/1/grid?statistic=orthogonality_error").json()
    assert grid["layers"][4]["shape"] == [16]
    assert set(grid["values"][4]) == {None}
    assert None not in grid["values"][0]
    assert client.get(f"{V1}/layers/5/spectrum").status_code == 404


def test_odd_values_are_json(tmp_path: Path) -> None:
    """NaN, infinities, lone surrogates and markup in a run are valid JSON, and a client reads back what they were."""
    with Store.create(tmp_path / "x.db") as store:
        config = {"nan": math.nan, "inf": math.inf, "text": "\ud800<script>", "deep": [{"x": -math.inf}]}
        recording = store.begin(Run("u", "ü<b>", 1.0, config), make_layers(1))
        frame = make_frame(0, 0, recording.layers, np.random.default_rng(0), ["statistics"])
        frame.statistics[0, :3] = [math.nan, math.inf, -math.inf]
        recording.append(frame)
        client = TestClient(create_app(Settings(token=None), store))
        run = client.get(f"{V1}/runs/1").json()
        assert run["config"] == {"nan": None, "inf": "Infinity", "text": "\ud800<script>", "deep": [{"x": "-Infinity"}]}
        assert run["name"] == "ü<b>"
        found = client.get(f"{V1}/layers/1/statistics").json()
        names = [statistic.name for statistic in STATISTICS[:3]]
        assert [found[name] for name in names] == [None, "Infinity", "-Infinity"]


NOT_THERE = [
    "/runs/99",
    "/runs/99/layers",
    "/runs/99/frames",
    "/runs/99/grid?statistic=grad_norm",
    "/runs/99/scalars",
    "/runs/99/stream",
    "/runs/1/scalars?name=nope",
    f"/runs/{2**63 - 1}",
    f"/layers/{2**63 - 1}/mask",
    "/layers/99",
    "/layers/99/statistics",
    "/nope",
    "/runs/",
    "/runs/1/nope",
    "/../nope",
]
INVALID = [
    f"/runs/{2**63}",
    f"/runs/{2**63}/stream",
    f"/layers/{2**63}",
    f"/layers/1/mask?step={2**63}",
    f"/runs/1/frames?after={2**63}",
    f"/runs/1/frames?after={'9' * 5000}",
    "/runs/-1",
    "/runs/1.5",
    "/runs/nan",
    "/runs/%2e%2e",
    "/runs/1/frames?limit=0",
    "/runs/1/frames?limit=1000000",
    "/runs/1/grid",
    "/runs/1/grid?statistic=grad_norm&buckets=0",
    "/runs/1/grid?statistic=%27%3B+DROP+TABLE+runs",
    "/runs/1/scalars?name=" + "x" * 600,
    "/layers/1/history?statistic=nope",
    "/layers/1/history?statistic=grad_norm&max_points=3",
    "/layers/1/histogram?tensor=weight",
    "/runs/1/stream?after=x",
]


@pytest.mark.parametrize(("urls", "status"), [(NOT_THERE, 404), (INVALID, 422)], ids=["not there", "invalid"])
def test_errors_are_problems_without_an_echo(urls: list[str], status: int, client: TestClient) -> None:
    """A missing record is a 404 and an impossible value a 422. Both are problems, and neither repeats the input."""
    for url in urls:
        response = client.get(V1 + url)
        assert response.status_code == status, url
        assert response.headers["content-type"] == "application/problem+json", url
        problem = response.json()
        assert (problem["status"], bool(problem["detail"])) == (status, True), url
        assert "DROP" not in response.text
        assert "nope" not in response.text
        assert "xxx" not in response.text


def test_an_invalid_statistic_is_told_what_exists(client: TestClient) -> None:
    """The error of an unknown statistic lists the known statistics."""
    problem = client.get(f"{V1}/layers/1/history?statistic=x").json()
    assert problem["errors"][0]["in"] == "query"
    assert problem["errors"][0]["name"] == "statistic"
    assert all(statistic.name in problem["detail"] for statistic in STATISTICS)


@pytest.mark.parametrize("url", ["/api", "/api/", "/api/v1", "/api/v2/runs", "/api/doc", "/api/%2e%2e/healthz"])
def test_unknown_api_paths_are_json_404(url: str, client: TestClient) -> None:
    """An unknown path below the API's prefix is a problem, with any method."""
    for method in ("GET", "POST", "DELETE"):
        response = client.request(method, url)
        assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


def test_another_method_is_not_allowed(client: TestClient) -> None:
    """A known path with another method is a 405."""
    response = client.post(f"{V1}/runs")
    assert (response.status_code, response.json()["title"]) == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("error", "status"), [(StoreBusy("x"), 503), (StoreError("x"), 503), (ValueError("x"), 422), (KeyError("x"), 500)]
)
def test_failures_below_have_a_status(
    error: Exception, status: int, client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy or damaged database is a 503, a refused argument a 422, our own mistake a 500. All are problems."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(store, "runs", fail)
    response = client.get(f"{V1}/runs")
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


def test_the_description_needs_no_other_server(client: TestClient) -> None:
    """The OpenAPI document names every route, and FastAPI's own page, which loads scripts from elsewhere, is off."""
    paths = client.get("/api/openapi.json").json()["paths"]
    assert len(paths) == 20
    assert f"{V1}/runs/{{run}}/stream" in paths
    assert client.get("/docs").status_code == 404
    assert client.get("/healthz").json() == {"status": "ok"}
