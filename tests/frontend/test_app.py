"""The dashboard over HTTP: every first page is complete, and every callback is answered."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from plotly.offline import get_plotlyjs_version
from starlette.testclient import TestClient

from root_dash import ROOT, watch
from root_dash.exceptions import StoreBusy
from root_dash.frontend import app, callbacks, ids
from root_dash.frontend.panels import PANELS
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.static_files import ASSETS, PLOTLY
from root_dash.server.app import create_app
from root_dash.settings import Settings
from root_dash.store import Store
from tests.frontend.asking import answers, draw, request_body, server
from tests.store.frames import make_layers, record


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A finished run of five layers."""
    with Store.open(record(tmp_path / "a.db", 21, make_layers(5))) as opened:
        yield opened


def fresh_client(store: Store) -> TestClient:
    """A client of a whole server that has answered no request yet."""
    return TestClient(server(store), base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/r/1", 200), ("/r/1/l/1", 200), ("/r/9", 404), ("/r/1/l/99", 404), ("/r/x", 404), ("/nowhere", 404)],
)
def test_the_first_page_of_a_server_is_complete(store: Store, path: str, status: int) -> None:
    """A server's first request may be for a bookmark, or for a tab that is loaded again.

    A page that leads nowhere says so to programs too. A browser keeps the files until their content changes.
    """
    with fresh_client(store) as client:
        page = client.get(path)
        assert page.status_code == status
        linked = re.findall(r'(?:src|href)="(/assets/([\w.-]+)[^"]*)"', page.text)
        assert {name for _, name in linked} == {asset.name for asset in ASSETS.iterdir()} | {PLOTLY.stem}
        for address, _ in linked:
            file = client.get(address)
            assert file.status_code == 200
            assert "immutable" in file.headers["cache-control"]
            assert client.get(address.partition("?")[0] + "?v=old").headers["cache-control"] == "no-cache"


def test_plotly_is_sent_compressed_and_is_the_bundle_that_npm_has(store: Store) -> None:
    """The bundle of the version in its name, to the byte; also for a client that cannot read gzip."""
    with fresh_client(store) as client:
        compressed, plain = (
            client.get(f"/assets/{PLOTLY.stem}", headers={"accept-encoding": accepted})
            for accepted in ("gzip", "identity")
        )
    assert int(compressed.headers["content-length"]) < 500_000
    assert compressed.content == plain.content
    digest = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    assert hashlib.sha256(plain.content).hexdigest() == digest
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}" in plain.text[:200]
    assert "MIT license" in plain.text[:200]


@pytest.mark.parametrize(
    ("run", "layer", "detail"),
    [(99, 1, "99"), (1, 999, "run 1 has no layer 999"), (1, None, "")],
    ids=["no such run", "no such layer", "there"],
)
def test_every_callback_is_answered_for_what_is_gone(store: Store, run: int, layer: int | None, detail: str) -> None:
    """A page may be open on a run or a layer that was deleted from the database."""
    values = {
        f"{ids.VIEW}.data": {"page": "layer", "run": run, "layer": layer or 1, "step": None},
        f"{ids.URL}.pathname": f"/r/{run}/l/{layer or 1}",
        f"{ids.URL}.search": "",
        "stat.value": "grad_norm",
        "tensor.value": "gradient",
        "measure.value": "polar_error",
        f"{ids.THEME}.data": "light",
    }
    given = answers(server(store), values)
    assert len(given) >= 10
    assert {answer.status_code for answer in given.values()} <= ({200, 404} if detail else {200})
    head = next(answer for output, answer in given.items() if ids.LAYER_TITLE in output)
    assert head.status_code == (404 if detail else 200)
    assert detail in head.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(StopIteration(), 500), (ZeroDivisionError("0"), 500), (KeyError("gone"), 500), (StoreBusy("busy"), 503)],
)
def test_a_callback_that_fails_is_answered_with_an_error(
    store: Store, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    """The browser can then say so; an empty answer would leave the old figure as if it were the new figure."""

    def broken(selection: Selection) -> dict[str, Any]:
        raise error

    panel = Panel("broken", "Broken", "", broken, lambda theme: Drawing(None))
    api = create_app(Settings(token=None), store)
    app.mount(api, store, {**PANELS, "layer": (panel,)})
    given = answers(api, {f"{ids.VIEW}.data": {"page": "layer", "run": 1, "layer": 1}, "stat.value": "grad_norm"})
    answer = next(answer for output, answer in given.items() if "broken.figure" in output)
    assert answer.status_code == status
    assert type(error).__name__ in caplog.text


def test_no_callback_raises_stop_iteration_out_of_its_thread() -> None:
    """A future cannot hold a StopIteration: the request would wait for ever."""

    def exhausted(*_: Any) -> Any:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="exhausted"):
        callbacks._call(exhausted)


def skipping(model: torch.nn.Module) -> None:
    """Poison the whole gradient of one layer."""
    weight = dict(model.named_parameters())["1.weight"]
    assert weight.grad is not None
    weight.grad.fill_(math.nan)


def recorded(path: Path, nonfinite: Any, poison: Callable[[torch.nn.Module], None], steps: int = 4) -> None:
    """A real run of a small model whose gradients are poisoned before every step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    optimizer = ROOT(ROOT.param_groups(model), nonfinite=nonfinite)
    with watch(model, optimizer, db=path, name="sick") as run:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 8)).square().mean()
            loss.backward()
            poison(model)
            optimizer.step()
            run.log(loss=math.nan)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_a_recorded_layer_that_was_never_finite_is_on_the_map(tmp_path: Path, nonfinite: str) -> None:
    """Every layer of the run has a row, the sick layer's row is vermilion, and the label of the loss says NaN."""
    recorded(tmp_path / "sick.db", nonfinite, skipping)
    with Store.open(tmp_path / "sick.db") as store:
        drawing = draw(store, "map", stat="grad_norm")
        layers = [layer.name for layer in store.layers(1)]
        layer_id = {layer.name: layer.id for layer in store.layers(1)}["1.weight"]
        norm = draw(store, "statistic-0", layer_id).body
    figure = drawing.body
    assert list(figure.layout.meta["layers"]) == layers
    assert "no such statistic" not in str(drawing.hint)
    painted = next(trace for trace in figure.data if "not finite" in (trace.hovertemplate or ""))
    assert all(painted.z[layers.index("1.weight")])
    assert "loss NaN<br>at every step" in [a.text for a in figure.layout.annotations]
    assert norm.layout.annotations[0].text.endswith("never finite")


def test_the_dashboard_answers_its_addresses_and_leaves_the_api_its_own(store: Store) -> None:
    """Pages are the dashboard's HTML, the API's routes still answer, and a callback answers."""
    api = FastAPI()

    @api.get("/api/v1/ping")
    def ping() -> dict[str, str]:
        return {"said": "pong"}

    app.mount(api, store)
    with TestClient(api) as client:
        page = client.get("/r/1/l/1")
        assert page.status_code == 200
        assert '<script src="/assets/theme.js?v=' in page.text
        assert "https://" not in page.text.replace("https://dash.plotly.com", "")
        assert client.get("/assets/stream.js").status_code == 200
        assert client.get("/api/v1/ping").json() == {"said": "pong"}
        assert client.get("/_dash-layout").status_code == 200
        listed = client.get("/_dash-dependencies").json()
        route = next(entry for entry in listed if "page.children" in entry["output"])
        answer = client.post("/_dash-update-component", json=request_body(route, {"url.pathname": "/r/1"}))
        assert answer.status_code == 200
        assert answer.json()["response"]["view"]["data"]["page"] == "overview"


def test_dashboards_of_one_process_do_not_share_their_callbacks(store: Store, tmp_path: Path) -> None:
    """Dash collects assets and callbacks when an app is made: a later app changes neither."""
    first = FastAPI()
    app.mount(first, store)
    with Store.open(record(tmp_path / "b.db", 2)) as other:
        app.mount(FastAPI(), other)
        with TestClient(first) as client:
            outputs = [entry["output"] for entry in client.get("/_dash-dependencies").json()]
    assert len(outputs) == len(set(outputs)) > 15
