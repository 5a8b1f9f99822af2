"""The dashboard over HTTP: every first page is whole, and every callback is answered."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from root_dash import ROOT, watch
from root_dash.cli.serving import compose
from root_dash.exceptions import StoreBusy
from root_dash.frontend import answers, app, callbacks, ids
from root_dash.settings import Settings
from root_dash.store import Store
from tests.store.frames import make_layers, record

SECONDS = 60
"""How long a request may take before it counts as never answered."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A finished run of five layers."""
    with Store.open(record(tmp_path / "a.db", 21, make_layers(5))) as opened:
        yield opened


def client_of(store: Store) -> TestClient:
    """A client of a whole server that was not asked for anything yet."""
    return TestClient(compose(Settings(token=None), store), base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["/", "/r/1", "/r/1/l/1", "/r/9", "/nowhere"])
def test_the_first_page_of_a_server_is_whole(store: Store, path: str) -> None:
    """A bookmark, or a tab that is loaded again, may be what a server is asked for first."""
    with client_of(store) as client:
        page = client.get(path)
        linked = set(re.findall(r'(?:src|href)="/assets/([\w.]+)', page.text))
        assert linked == {asset.name for asset in app.ASSETS.iterdir()}
        for name in sorted(linked):
            assert client.get(f"/assets/{name}").status_code == 200


def asked(dependency: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The body with which a browser calls a callback."""
    outputs = [
        dict(zip(("id", "property"), output.rsplit(".", 1), strict=True))
        for output in dependency["output"].strip(".").split("...")
    ]

    def given(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**part, "value": values.get(f"{part['id']}.{part['property']}")} for part in parts]

    return {
        "output": dependency["output"],
        "outputs": outputs,
        "inputs": given(dependency["inputs"]),
        "state": given(dependency["state"]),
        "changedPropIds": ["{id}.{property}".format(**part) for part in dependency["inputs"][:1]],
    }


def answered(store: Store, values: dict[str, Any]) -> dict[str, httpx2.Response]:
    """What a server answers to each of its callbacks, by output; none may take longer than `SECONDS`."""
    server = compose(Settings(token=None), store)

    async def ask() -> dict[str, httpx2.Response]:
        transport = httpx2.ASGITransport(server, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            listed = (await client.get("/_dash-dependencies")).json()
            own = [entry for entry in listed if not entry["clientside_function"]]
            return {
                entry["output"]: await asyncio.wait_for(
                    client.post("/_dash-update-component", json=asked(entry, values)), SECONDS
                )
                for entry in own
            }

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("run", "layer", "detail"),
    [(99, 1, "99"), (1, 999, "run 1 has no layer 999"), (1, None, "")],
    ids=["no such run", "no such layer", "there"],
)
def test_every_callback_is_answered_for_what_is_gone(store: Store, run: int, layer: int | None, detail: str) -> None:
    """A page may be open on a run or a layer that the database does not have any longer."""
    values = {
        f"{ids.VIEW}.data": {"page": "layer", "run": run, "layer": layer or 1, "step": None},
        f"{ids.URL}.pathname": f"/r/{run}/l/{layer or 1}",
        f"{ids.URL}.search": "",
        f"{ids.STAT_PICKER}.value": "grad_norm",
        f"{ids.TENSOR}.value": "gradient",
        f"{ids.MEASURE}.value": "polar_error",
        f"{ids.THEME}.data": "light",
    }
    answers_of = answered(store, values)
    assert len(answers_of) >= 10
    assert {answer.status_code for answer in answers_of.values()} <= ({200, 404} if detail else {200})
    head = next(answer for output, answer in answers_of.items() if ids.LAYER_TITLE in output)
    assert head.status_code == (404 if detail else 200)
    assert detail in head.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(StopIteration(), 500), (ZeroDivisionError("0"), 500), (KeyError("gone"), 500), (StoreBusy("busy"), 503)],
)
def test_a_callback_that_fails_is_answered_with_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    """The browser can say so then, where an answer of nothing would leave the old panel as if it were the new."""

    def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(answers, "layer_head", broken)
    answers_of = answered(store, {f"{ids.URL}.pathname": "/r/1"})
    head = next(answer for output, answer in answers_of.items() if ids.LAYER_TITLE in output)
    assert head.status_code == status
    assert type(error).__name__ in caplog.text


def test_no_callback_raises_stop_iteration_out_of_its_thread() -> None:
    """A future does not take one: whoever awaits it would wait for ever."""

    def exhausted(*_: Any) -> Any:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="exhausted"):
        callbacks._call(exhausted, 1)


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
    """Every layer of the run has its row, the sick one a vermilion one, and the loss says that it is NaN."""
    recorded(tmp_path / "sick.db", nonfinite, skipping)
    with Store.open(tmp_path / "sick.db") as store:
        figure, _, hint = answers.draw_map(store, answers.Nonfinite(), {"run": 1}, None, "grad_norm", "light")
        layers = [layer.name for layer in store.layers(1)]
        layer_id = {layer.name: layer.id for layer in store.layers(1)}["1.weight"]
        view = {"page": "layer", "run": 1, "layer": layer_id, "step": None}
        norm, *_ = answers.draw_statistics(store, view, None, None, "light")
    assert list(figure.layout.meta["layers"]) == layers
    assert "no such statistic" not in hint
    painted = next(trace for trace in figure.data if "entries not finite" in (trace.hovertemplate or ""))
    assert all(painted.z[layers.index("1.weight")])
    assert "loss NaN<br>at every step" in [a.text for a in figure.layout.annotations]
    assert norm.layout.annotations[0].text == "no finite value"


def test_the_map_says_how_many_layers_have_no_such_statistic(store: Store) -> None:
    """AdamW orthogonalizes nothing: its layer has no row, and the hint counts it."""
    _, _, hint = answers.draw_map(store, answers.Nonfinite(), {"run": 1}, None, "orthogonality_error", "light")
    assert hint.endswith("1 layer has no such statistic")


def test_dashboards_of_one_process_do_not_share_their_callbacks(store: Store, tmp_path: Path) -> None:
    """Assets and callbacks are collected when an app is made: another one made later changes neither."""
    first = FastAPI()
    app.mount(first, store)
    with Store.open(record(tmp_path / "b.db", 2)) as other:
        app.mount(FastAPI(), other)
        with TestClient(first) as client:
            outputs = [entry["output"] for entry in client.get("/_dash-dependencies").json()]
    assert len(outputs) == len(set(outputs)) > 15
