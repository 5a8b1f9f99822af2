"""Every panel on a real store file; and a panel that is added from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from fastapi import FastAPI

from root_dash.frontend import app, bookkeeping, ids
from root_dash.frontend.numbers import value
from root_dash.frontend.panels import PANELS
from root_dash.frontend.panels.controls import segmented
from root_dash.frontend.panels.kept import Kept
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.health import Health
from root_dash.monitor.limits.budget import Budget, describe_cadence
from root_dash.monitor.limits.cadence import Cadence
from root_dash.records import STATISTICS, Event, Run, statistic_names
from root_dash.store import Store
from tests.frontend.asking import answers, draw
from tests.store.frames import make_frame, make_layers, record


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A finished run of 61 steps and five layers; the last layer is a vector."""
    path = record(tmp_path_factory.mktemp("panels") / "a.db", 61, make_layers(5))
    with Store.open(path) as opened:
        yield opened


@pytest.fixture
def matrix(store: Store) -> int:
    """The id of a matrix under ROOT."""
    return store.layers(1)[0].id


@pytest.fixture
def vector(store: Store) -> int:
    """The id of a vector under AdamW."""
    return store.layers(1)[4].id


def sentence(figure: Any) -> str:
    """The words of an empty figure."""
    return str(figure.layout.annotations[0].text).replace("<br>", " ") if not figure.data else ""


# A panel from outside

FACTOR = segmented("factor", "by how much", {"1": "once", "10": "ten times"})


def _read(selection: Selection) -> dict[str, Any]:
    norm = selection.store.statistics(selection.layer, selection.step)["grad_norm"]
    return {"norm": norm, "factor": int(selection.values[FACTOR.id])}


def _draw(theme: Theme, *, norm: float, factor: int) -> Drawing:
    return Drawing(go.Figure(go.Bar(y=[norm * factor], marker={"color": theme.ink})), hint=f"times {factor}")


ADDED = Panel(
    "added", "A new panel", "one bar", _read, _draw, kind="masks", shows="step", controls=(FACTOR,), className="wide"
)


def added(store: Store) -> FastAPI:
    """A dashboard whose layer page has one more panel."""
    api = FastAPI()
    app.mount(api, store, {**PANELS, "layer": (*PANELS["layer"], ADDED)})
    return api


def test_a_panel_is_added_by_its_object_alone(store: Store, matrix: int) -> None:
    """The page has the panel's card and control, and the panel's callback draws what it read at the shown step."""
    values = {
        f"{ids.VIEW}.data": {"page": "layer", "run": 1, "layer": matrix, "step": None},
        f"{ids.shown('masks')}.data": {"step": 20},
        "factor.value": "10",
        f"{ids.THEME}.data": "dark",
        "tensor.value": "gradient",
        "measure.value": "polar_error",
    }
    opened = answers(added(store), {f"{ids.URL}.pathname": f"/r/1/l/{matrix}"})
    page = opened[next(output for output in opened if f"{ids.PAGE}.children" in output)].text
    for part in (ADDED.title, ADDED.hint, '"id":"added"', '"id":"added-hint"', '"id":"factor"', "ten times"):
        assert part in page
    answer = answers(added(store), values)["..added.figure...added-title.children...added-hint.children.."].json()[
        "response"
    ]
    figure = answer["added"]["figure"]
    assert figure["data"][0]["y"] == [pytest.approx(10 * store.statistics(matrix, 20)["grad_norm"])]
    assert figure["layout"]["uirevision"].endswith(f"{matrix} 10")
    assert answer["added-title"]["children"] == ADDED.title
    assert answer["added-hint"]["children"] == "times 10"


def test_a_panel_that_fails_leaves_the_others(store: Store, matrix: int) -> None:
    """Each panel has its own callback, so that only the answer of the broken panel is an error."""

    def broken(selection: Selection) -> dict[str, Any]:
        raise ZeroDivisionError

    api = FastAPI()
    app.mount(api, store, {**PANELS, "layer": (*PANELS["layer"], replace(ADDED, read=broken))})
    view = {"page": "layer", "run": 1, "layer": matrix, "step": None}
    values = {
        f"{ids.VIEW}.data": view, f"{ids.URL}.pathname": "/r/1", "stat.value": "grad_norm", "factor.value": "1",
        "rows.value": "model", "axis.value": "lin",
        "tensor.value": "gradient", "measure.value": "polar_error",
    }  # fmt: skip
    given = answers(api, values)
    assert [output for output, answer in given.items() if answer.status_code != 200] == [
        "..added.figure...added-title.children...added-hint.children.."
    ]


def test_a_panel_of_one_step_names_its_kind() -> None:
    """Each kind has its own steps, so that a step without a kind means nothing."""
    with pytest.raises(ValueError, match="'added': kind must be named if the panel shows 'step'"):
        replace(ADDED, kind=None)


# The overview


def test_the_overview_draws_the_scalars_and_the_map(store: Store) -> None:
    """A curve for the loss and the learning rate, a row for each layer, and the definition."""
    drawing = draw(store, "map", stat="grad_norm")
    assert [trace.name for trace in drawing.body.data[:2]] == ["loss", "lr"]
    assert drawing.body.data[2].z.shape[0] == 5
    assert drawing.title == "Gradient norm"
    assert "‖G‖" in str(drawing.hint)
    assert drawing.body.layout.uirevision == "map 1"


def has_values(store: Store, name: str) -> bool:
    """Return whether any layer has a value of a statistic at any step."""
    return bool(np.isfinite(store.grid(1, name).values).any())


@pytest.mark.parametrize("on", ["light", "dark"])
def test_every_statistic_can_be_mapped(store: Store, on: str) -> None:
    """Each recorded statistic is a heat map; a statistic without a value is a sentence and no heat map."""
    drawn = {s.name: draw(store, "map", on=on, stat=s.name).body for s in STATISTICS}
    mapped = {name for name, figure in drawn.items() if any(trace.type == "heatmap" for trace in figure.data)}
    assert mapped == {s.name for s in STATISTICS if has_values(store, s.name)}
    assert len(mapped) > 20


@pytest.mark.parametrize(
    ("kind", "intervals", "said"),
    [
        ("cadence", (1, 8), "statistics every 8, histograms every 10; asked for: statistics every step"),
        ("cadence", (1, 8, 1), "statistics every step, histograms every 10; at times less often, to keep the budget;"),
        ("layers", (1, 8), "statistics every step, histograms every 10; 1 frame"),
    ],
)
def test_the_header_says_what_is_really_recorded(
    tmp_path: Path, kind: str, intervals: tuple[int, ...], said: str
) -> None:
    """After events of the budget what is kept and what was asked for; other events change nothing."""
    layers = make_layers(1)
    frame = make_frame(0, 1, layers, np.random.default_rng(0))
    states = [Budget(0.03, Cadence(), Cadence(statistics=every)) for every in intervals]
    texts = [describe_cadence(*pair) for pair in zip(states, states[1:], strict=False)]
    with Store.create(tmp_path / "x.db") as store:
        run = Run("run-1", "a run", 0.0, cadence={"statistics": 1, "histograms": 10})
        events = tuple(Event(kind, text, 1, 0.0) for text in texts)
        store.begin(run, layers).append(replace(frame, events=events))
        assert said in bookkeeping.header(store, {"run": 1})["title"]


def test_the_map_says_how_many_layers_have_no_such_statistic(store: Store) -> None:
    """AdamW orthogonalizes nothing: its layer has no row, and the hint counts the layer."""
    assert "1 layer has no such statistic" in str(draw(store, "map", stat="orthogonality_error").hint)


def test_a_large_read_is_kept_for_a_period(store: Store, tmp_path: Path) -> None:
    """Within the period the answer is the same object, after the period it is read anew; stores share nothing."""
    now = 100.0
    kept = Kept(lambda store, run_id: store.layers(run_id), 5.0, clock=lambda: now)
    first = kept(store, 1)
    now += 4.9
    assert kept(store, 1) is first
    now += 0.2
    again = kept(store, 1)
    assert again is not first
    with Store.open(record(tmp_path / "b.db", 2, make_layers(2))) as other:
        assert len(kept(other, 1)) == 2
    assert kept(store, 1) is again


# A layer's page


@pytest.mark.parametrize("tensor", ["gradient", "momentum"])
def test_the_first_row_shows_the_recording_at_or_before_the_step(store: Store, matrix: int, tensor: str) -> None:
    """Histogram and Q-Q plot show the chosen step, or the newest; only the momentum has ε."""
    bars, points = (draw(store, panel, matrix, 37, tensor=tensor) for panel in ("histogram", "qq"))
    assert str(bars.hint).startswith("step 30 ·")
    assert str(points.hint).startswith("step 30 ·")
    assert len(bars.body.data) == 2
    assert [trace.name for trace in points.body.data] == [None, None, "before", "now"]
    assert ("ε" in str(bars.hint)) == (tensor == "momentum")
    assert bars.body.layout.uirevision == f"histogram {matrix} {tensor}"
    assert str(draw(store, "histogram", matrix, on="dark", tensor=tensor).hint).startswith("step 60 ·")


def test_spectra_masks_and_errors_of_a_matrix_are_drawn(store: Store, matrix: int) -> None:
    """The second row of a matrix has figures, and the hints name the steps that the figures show."""
    drawing = draw(store, "spectrum", matrix, 50)
    assert {trace.name for trace in drawing.body.data} == {"momentum", "base", "Muon", "ROOT"}
    assert str(drawing.hint).startswith("step 40 ·")
    drawing = draw(store, "mask", matrix, 50)
    assert len(drawing.body.data) == 3
    assert str(drawing.hint).startswith("step 40 ·")
    figure = draw(store, "errors", matrix, measure="polar_error").body
    own = next(trace for trace in figure.data if trace.name == "ROOT")
    assert np.allclose(own.y, store.history(matrix, "polar_error").values)


@pytest.mark.parametrize("estimated", [True, False])
def test_the_hint_says_that_singular_values_are_estimated(tmp_path: Path, estimated: bool) -> None:
    """The singular values of a large matrix are estimates, and the hint says so."""
    layers = make_layers(1)
    frame = make_frame(0, 1, layers, np.random.default_rng(0))
    spectra = {at: (replace(one, estimated=estimated), numbers) for at, (one, numbers) in frame.spectra.items()}
    with Store.create(tmp_path / "x.db") as store:
        store.begin(Run("run-1", "a run", 0.0), layers).append(replace(frame, spectra=spectra))
        hint = str(draw(store, "spectrum", 1).hint)
    assert ("estimated" in hint) == estimated


def test_before_its_first_recording_a_kind_shows_its_first_recording(tmp_path: Path) -> None:
    """At a step between the first histogram and the first spectrum both panels show their first recording."""
    with Store.open(record(tmp_path / "late.db", 40, start=1)) as late:
        layer = late.layers(1)[0].id
        assert str(draw(late, "histogram", layer, 12).hint).startswith("step 10 ·")
        assert str(draw(late, "spectrum", layer, 12).hint).startswith("step 20 ·")
        assert str(draw(late, "mask", layer, 1).hint).startswith("step 20 ·")


def test_a_vector_says_why_it_has_no_spectrum_and_no_mask(store: Store, vector: int) -> None:
    """A panel that a vector cannot have says so in a sentence."""
    for panel in ("spectrum", "errors", "mask"):
        assert "vector" in sentence(draw(store, panel, vector).body)
    assert draw(store, "histogram", vector).body.data


def test_six_statistics_show_their_value_at_the_step(store: Store, matrix: int, vector: int) -> None:
    """Six curves, and six names with the value at the shown step; a vector has other statistics."""
    drawings = [draw(store, f"statistic-{slot}", matrix, 10) for slot in range(6)]
    assert all(len(drawing.body.data) == 1 for drawing in drawings)
    norms = store.history(matrix, "grad_norm")
    at_step = dict(zip(norms.steps.tolist(), norms.values, strict=True))[10]
    assert [part.children for part in drawings[0].title] == ["gradient norm", value(at_step)]
    names = {draw(store, f"statistic-{slot}", vector).title[0].children for slot in range(6)}
    assert len(names - {drawing.title[0].children for drawing in drawings}) == 3


def test_histograms_over_time_follow_the_chosen_tensor(store: Store, matrix: int) -> None:
    """The evolution shows the tensor that the first row shows."""
    drawing = draw(store, "evolution", matrix, tensor="momentum")
    assert drawing.title == "Momentum over time"
    assert drawing.body.data[0].z.shape[1] == len(store.steps(matrix, "histograms"))


# The drawer


def test_the_drawer_shows_the_selected_layer_at_the_selected_step(store: Store, matrix: int, vector: int) -> None:
    """The drawer's panels are those of the layer's page, and its head names layer and step and leads to the page."""
    head = draw(store, "drawer", matrix, 37).body
    assert (head[0].children, head[0].href) == ("blocks.0.attn.qkv.weight", f"/r/1/l/{matrix}?step=37")
    assert head[1].endswith("step 37")
    for slot, panel in enumerate(("histogram", "qq", "spectrum", "mask")):
        small, whole = draw(store, f"drawer-{slot}", matrix, 37), draw(store, panel, matrix, 37)
        assert small.body.data == whole.body.data
    assert [draw(store, f"drawer-{slot}", vector).title for slot in range(3)] == [
        "Gradient", "Q–Q against normal", "Gradient over time",
    ]  # fmt: skip
    assert draw(store, "drawer-3", vector).body.data


def test_without_a_selection_the_drawer_shows_the_sick_layer_or_the_first(tmp_path: Path) -> None:
    """A sick layer comes first, then a layer that is orthogonalized; the head says that it follows the newest step."""
    layers = make_layers(5)
    with Store.create(tmp_path / "sick.db", judge=Health) as store:
        recording = store.begin(Run("run-1", "a run", 0.0, optimizer={"name": "ROOT"}), layers)
        for step in range(40):
            frame = make_frame(step, step, layers, np.random.default_rng(step), ("statistics",))
            statistics = frame.statistics.copy()
            statistics[1, statistic_names("statistics").index("grad_nan")] = float(step == 39)
            recording.append(replace(frame, statistics=statistics))
            if step == 30:
                assert draw(store, "drawer").body[0].children == layers[0].name
        assert draw(store, "drawer").body[0].children == layers[1].name
        assert "newest step 39" in draw(store, "drawer").body[1]
        assert draw(store, "verdicts").body.children[0].children[0].children == "1 of 5 layers needs a look"
        assert any("not finite" in (trace.hovertemplate or "") for trace in draw(store, "map").body.data)


@pytest.mark.parametrize(("end", "said"), [(True, "before the run ended"), (False, "appears here by itself")])
def test_a_run_without_frames_says_whether_any_will_come(tmp_path: Path, end: bool, said: str) -> None:
    """A run that has ended promises nothing."""
    with Store.open(record(tmp_path / "x.db", 0, end=end)) as store:
        assert said in sentence(draw(store, "map").body)
        assert draw(store, "drawer").body[0].children == "blocks.0.attn.qkv.weight"


def test_a_run_without_diagnosis_says_so_and_shows_what_was_recorded(store: Store) -> None:
    """The map of severities has a sentence, every other map is as before."""
    notes = [str(note.text).replace("<br>", " ") for note in draw(store, "map").body.layout.annotations]
    assert any("recorded without severities" in note for note in notes)
    assert "root-dash diagnose --run 1" in str(draw(store, "verdicts").body)
