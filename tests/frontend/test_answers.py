"""What the callbacks answer, as plain functions of a real store file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import no_update
from fastapi import FastAPI
from starlette.testclient import TestClient

from root_dash.frontend import answers, app
from root_dash.records import Event, Run
from root_dash.store import Store
from tests.store.frames import make_frame, make_layers, record

STEPS = 61


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A finished run of 61 steps and five layers, the last one a vector."""
    path = record(tmp_path_factory.mktemp("answers") / "a.db", STEPS, make_layers(5))
    with Store.open(path) as opened:
        yield opened


@pytest.fixture
def matrix(store: Store) -> dict[str, Any]:
    """The view of a matrix under ROOT."""
    return {"page": "layer", "run": 1, "layer": store.layers(1)[0].id, "step": None}


@pytest.fixture
def vector(store: Store) -> dict[str, Any]:
    """The view of a vector under AdamW."""
    return {"page": "layer", "run": 1, "layer": store.layers(1)[4].id, "step": None}


def sentence(figure: Any) -> str:
    """The words of an empty figure."""
    return str(figure.layout.annotations[0].text).replace("<br>", " ") if not figure.data else ""


def test_the_root_address_points_to_the_newest_run(store: Store) -> None:
    """`/` has no page of its own where there is a run."""
    view, page, picks, *_, retry_off = answers.route(store, "/", "", None, None)
    assert view["to"] == "/r/1"
    assert page is None
    assert picks == [{"value": "1", "label": "a run"}]
    assert retry_off is True


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_layer_with_one_histogram_is_followed(tmp_path: Path, steps: int) -> None:
    """The slider stands at its end, however few steps it has: short of it the page would let go of the newest."""
    with Store.open(record(tmp_path / "x.db", steps, make_layers(1))) as short:
        *_, least, most, _, at, follow = answers.layer_head(short, {"run": 1, "layer": 1, "step": None})
    assert follow
    assert least < at == most


def test_runs_of_several_processes_are_told_apart(tmp_path: Path) -> None:
    """They bear one name, so the picker adds the rank of all but the first."""
    with Store.create(tmp_path / "x.db") as several:
        for rank in range(2):
            several.begin(Run(f"run-{rank}", "a run", float(rank), rank=rank), make_layers())
        _, _, picks, *_ = answers.route(several, "/r/1", "", None, None)
    assert [pick["label"] for pick in picks] == ["a run · rank 1", "a run"]


def test_an_empty_store_says_what_to_run_and_looks_again(tmp_path: Path) -> None:
    """Without a run the page tells how to make one, and asks for it by itself."""
    with Store.create(tmp_path / "empty.db") as empty:
        view, page, picks, *_, retry_off = answers.route(empty, "/", "", None, None)
    assert view == {"page": "empty"}
    assert "root-dash demo" in str(page)
    assert picks == []
    assert retry_off is False


@pytest.mark.parametrize("path", ["/nope", "/r/99", "/r/1/l/999", "/r/999999999999999999", "/r/1/l/1e3"])
def test_an_address_of_nothing_is_a_page_of_words(store: Store, path: str) -> None:
    """Unknown paths, runs and layers show the way back."""
    view, page, *_ = answers.route(store, path, "", None, None)
    assert view == {"page": "missing"}
    assert "Nothing here" in str(page)


def test_a_layer_of_another_run_is_missing(tmp_path: Path) -> None:
    """The layer must belong to the run of the address."""
    record(tmp_path / "two.db", 2, uid="one")
    record(tmp_path / "two.db", 2, uid="two")
    with Store.open(tmp_path / "two.db") as both:
        other = both.layers(2)[0].id
        assert answers.route(both, f"/r/1/l/{other}", "", None, None)[0] == {"page": "missing"}


def test_walking_from_layer_to_layer_keeps_the_page(store: Store, matrix: dict[str, Any]) -> None:
    """The figures of the next layer are drawn into the same cards: nothing jumps."""
    path = f"/r/1/l/{store.layers(1)[1].id}"
    view, page, *_ = answers.route(store, path, "?step=20", None, matrix)
    assert page is no_update
    assert (view["layer"], view["step"], view["ended"]) == (store.layers(1)[1].id, 20, True)
    assert view["latest"]["step"] == STEPS - 1
    _, fresh, *_ = answers.route(store, path, "", None, {"page": "overview"})
    assert "step-slider" in str(fresh)


def test_a_quiet_run_is_asked_whether_it_has_ended(store: Store, tmp_path: Path) -> None:
    """The run that ended says so; one that only pauses does not."""
    assert answers.ended(store, 0, {"run": 1}) == (1,)
    assert answers.ended(store, 0, {"page": "empty"}) == (None,)
    with Store.open(record(tmp_path / "live.db", 3, end=False)) as live:
        assert answers.ended(live, 0, {"run": 1}) == (None,)


def test_the_overview_draws_the_loss_and_the_map(store: Store) -> None:
    """A curve for the loss, a row for each layer, the sentence and the definition."""
    figure, said, hint = answers.draw_map(store, answers.Nonfinite(), {"run": 1}, None, "grad_norm", "light")
    assert figure.data[0].name == "loss"
    assert figure.data[1].z.shape[0] == 5
    assert said.startswith("4 matrices under ROOT and 1 tensor under AdamW")
    assert "‖G‖" in hint
    assert figure.layout.uirevision == "map 1"


@pytest.mark.parametrize("theme", ["light", "dark", None])
def test_every_statistic_can_be_mapped(store: Store, theme: str | None) -> None:
    """No statistic, recorded or not, breaks the map in any theme."""
    from root_dash.records import STATISTICS

    for statistic in STATISTICS:
        figure, *_ = answers.draw_map(store, answers.Nonfinite(), {"run": 1}, None, statistic.name, theme)
        assert figure.data


def test_a_layers_head_names_it_and_its_neighbours(store: Store, matrix: dict[str, Any]) -> None:
    """Name, shape, links around the model, and a slider over the steps that hold histograms."""
    layers = store.layers(1)
    head = answers.layer_head(store, matrix)
    assert head[:2] == ("blocks.0.attn.qkv.weight", "16 × 24 · root")
    assert head[2:5] == ("/r/1", f"/r/1/l/{layers[4].id}", f"/r/1/l/{layers[1].id}")
    assert head[5:] == (0, 60, 10, 60, True)
    assert answers.layer_head(store, {**matrix, "step": 37})[8:] == (30, False)
    assert answers.layer_head(store, {**matrix, "step": 10**15})[8:] == (60, False)


@pytest.mark.parametrize("tensor", ["gradient", "momentum"])
def test_the_first_row_shows_the_recording_at_or_before_the_step(
    store: Store, matrix: dict[str, Any], tensor: Any
) -> None:
    """Histogram and Q-Q plot at the shown step, the newest without one; ε only for the momentum."""
    bars, hint, points, _ = answers.draw_distribution(store, matrix, {"step": 37}, tensor, "light")
    assert hint.startswith("step 30 ·")
    assert len(bars.data) == 2
    assert len(points.data) == 3
    assert ("ε" in hint) == (tensor == "momentum")
    newest = answers.draw_distribution(store, matrix, None, tensor, "dark")
    assert newest[1].startswith("step 60 ·")


def test_spectra_masks_and_errors_of_a_matrix_are_drawn(store: Store, matrix: dict[str, Any]) -> None:
    """The second row of a matrix has figures, each with the step that it shows."""
    figure, hint = answers.draw_spectrum(store, matrix, {"step": 50}, "light")
    assert {trace.name for trace in figure.data} == {"momentum", "base", "Muon", "ROOT"}
    assert hint.startswith("step 40 ·")
    figure, hint = answers.draw_mask(store, matrix, {"step": 50}, "light")
    assert len(figure.data) == 3
    assert hint.startswith("step 40 ·")
    figure, _ = answers.draw_errors(store, matrix, None, "polar_error", "light")
    own = next(trace for trace in figure.data if trace.name == "ROOT")
    assert np.allclose(own.y, store.history(matrix["layer"], "polar_error").values)


@pytest.mark.parametrize("kind", ["cadence", "layers"])
def test_the_top_line_says_that_recording_was_thinned(tmp_path: Path, kind: str) -> None:
    """What is recorded is then less than the cadence that it names; other events say nothing of the kind."""
    layers = make_layers(1)
    frame = make_frame(0, 1, layers, np.random.default_rng(0))
    with Store.create(tmp_path / "x.db") as store:
        run = Run("run-1", "a run", 0.0, cadence={"statistics": 1})
        store.begin(run, layers).append(replace(frame, events=(Event(kind, "every 8 steps", 1, 0.0),)))
        view = {"page": "overview", "run": 1}
        _, sentence, _ = answers.draw_map(store, answers.Nonfinite(), view, None, "grad_norm", "light")
    assert ("statistics every step; at times less often, to keep the budget;" in sentence) == (kind == "cadence")


@pytest.mark.parametrize("estimated", [True, False])
def test_estimated_singular_values_are_called_so(tmp_path: Path, estimated: bool) -> None:
    """Those of a large matrix are no exact ones, and the hint says it."""
    layers = make_layers(1)
    frame = make_frame(0, 1, layers, np.random.default_rng(0))
    spectra = {at: (replace(one, estimated=estimated), numbers) for at, (one, numbers) in frame.spectra.items()}
    with Store.create(tmp_path / "x.db") as store:
        store.begin(Run("run-1", "a run", 0.0), layers).append(replace(frame, spectra=spectra))
        hint = answers.draw_spectrum(store, {"run": 1, "layer": 1}, None, "light")[1]
    assert ("estimated" in hint) == estimated


def test_before_its_first_recording_a_kind_shows_that_one(tmp_path: Path) -> None:
    """A step between the first histogram and the first spectrum shows both, each with its own step."""
    with Store.open(record(tmp_path / "late.db", 40, start=1)) as late:
        view = {"run": 1, "layer": late.layers(1)[0].id}
        assert answers.draw_distribution(late, view, {"step": 12}, "gradient", "light")[1].startswith("step 10 ·")
        assert answers.draw_spectrum(late, view, {"step": 12}, "light")[1].startswith("step 20 ·")
        assert answers.draw_mask(late, view, {"step": 1}, "light")[1].startswith("step 20 ·")


def test_a_vector_says_why_it_has_no_spectrum_and_no_mask(store: Store, vector: dict[str, Any]) -> None:
    """Panels that cannot be for a vector say so in a sentence."""
    assert "vector" in sentence(answers.draw_spectrum(store, vector, None, "light")[0])
    assert "vector" in sentence(answers.draw_errors(store, vector, None, "polar_error", "light")[0])
    assert "vector" in sentence(answers.draw_mask(store, vector, None, "light")[0])
    assert answers.draw_distribution(store, vector, None, "gradient", "light")[0].data


def test_six_statistics_show_their_value_at_the_step(store: Store, matrix: dict[str, Any]) -> None:
    """Six curves, six names with the value at the shown step."""
    answer = answers.draw_statistics(store, matrix, None, {"step": 10}, "light")
    figures, titles = answer[:6], answer[6:]
    assert all(len(figure.data) == 1 for figure in figures)
    values = dict(zip(*(getattr(store.history(matrix["layer"], "grad_norm"), part) for part in ("steps", "values")),
                      strict=True))  # fmt: skip
    from root_dash.frontend.numbers import value

    assert [part.children for part in titles[0]] == ["gradient norm", value(values[10])]


def test_histograms_over_time_follow_the_chosen_tensor(store: Store, matrix: dict[str, Any]) -> None:
    """The evolution is of the tensor that the first row shows."""
    figure, title = answers.draw_evolution(store, matrix, None, "momentum", "light")
    assert title == "Momentum over time"
    assert figure.data[0].z.shape[1] == len(store.steps(matrix["layer"], "histograms"))


def test_counts_of_what_was_not_finite_are_not_read_for_every_frame(store: Store) -> None:
    """Within the period the grids are those read before."""
    nonfinite = answers.Nonfinite()
    assert nonfinite(store, 1) is nonfinite(store, 1)


def test_the_dashboard_answers_its_addresses_and_leaves_the_api_its_own(store: Store) -> None:
    """Pages are HTML of our own, the API's routes stay what they were, a callback answers."""
    api = FastAPI()

    @api.get("/api/v1/ping")
    def ping() -> dict[str, str]:
        return {"said": "pong"}

    app.mount(api, store)
    with TestClient(api) as client:
        page = client.get("/r/1/l/1")
        assert page.status_code == 200
        assert '<script src="/assets/theme.js"' in page.text
        assert "https://" not in page.text.replace("https://dash.plotly.com", "")
        assert client.get("/assets/stream.js").status_code == 200
        assert client.get("/api/v1/ping").json() == {"said": "pong"}
        assert client.get("/_dash-layout").status_code == 200
        names = [entry["output"] for entry in client.get("/_dash-dependencies").json()]
        route = next(name for name in names if "page.children" in name)
        outputs = [dict(zip(("id", "property"), part.rsplit(".", 1), strict=True)) for part in route[2:-2].split("...")]
        body = {
            "output": route,
            "outputs": outputs,
            "inputs": [
                {"id": "url", "property": "pathname", "value": "/r/1"},
                {"id": "url", "property": "search", "value": ""},
                {"id": "retry", "property": "n_intervals", "value": 0},
            ],
            "state": [{"id": "view", "property": "data", "value": None}],
            "changedPropIds": ["url.pathname"],
        }
        answered = client.post("/_dash-update-component", json=body)
        assert answered.status_code == 200
        assert answered.json()["response"]["view"]["data"]["page"] == "overview"
