"""What the figures of a layer's page say of a sick layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.frontend.figures import base
from root_dash.frontend.figures.errors import errors
from root_dash.frontend.figures.histogram import expected_reach, histogram, joined_bars, split_bars
from root_dash.frontend.figures.history import COLUMNS, envelope, history, stretches
from root_dash.frontend.figures.mask import named
from root_dash.frontend.figures.qq import qq, standardized
from root_dash.frontend.figures.spectrum import spectrum
from root_dash.frontend.panels.layer import statistics, verdict
from root_dash.frontend.panels.layer.findings import lasting, of_layer
from root_dash.frontend.panels.layer.qq import earlier
from root_dash.frontend.static_files import TRACES
from root_dash.frontend.theme import BLUE, GREEN, LIGHT, VERMILION
from root_dash.records import (
    Frame,
    History,
    Layer,
    Quantiles,
    Run,
    Spectrum,
    outlying,
    quantile_positions,
    statistic,
    statistic_names,
)
from root_dash.records.verdict import Measured, Verdict
from root_dash.store import Store
from tests.frontend.asking import PANEL, draw
from tests.frontend.figures import counted, drawn
from tests.frontend.test_layout import components
from tests.store.frames import make_frame, make_layers, record

NAN = float("nan")


# Small curves


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(NAN)), min_size=1, max_size=300))
def test_the_envelope_hides_no_extreme(values: list[float]) -> None:
    """The band reaches every value, whatever the number of points, and is NaN only where nothing is finite."""
    numbers = np.array(values)
    band = envelope(np.arange(len(numbers)), numbers)
    assert len(band.steps) <= COLUMNS
    if np.isfinite(numbers).any():
        assert np.nanmin(band.low) == np.nanmin(numbers)
        assert np.nanmax(band.high) == np.nanmax(numbers)
        known = np.isfinite(band.middle)
        assert (band.low <= band.middle)[known].all()
        assert (band.middle <= band.high)[known].all()


def test_zero_stands_at_the_floor_of_a_logarithmic_axis() -> None:
    """A dead layer's curve goes on at the floor in ink, instead of ending."""
    values = np.array([1.0, 0.5, 0.0, 0.0])
    data, layout = drawn(history(History("grad_norm", np.arange(4), values), statistic("grad_norm"), LIGHT))
    floor = next(curve for curve in data if curve.get("name") == "zero")
    assert np.array_equal(np.isfinite(floor["y"]), values == 0)
    assert np.allclose(np.log10(floor["y"][2:]), layout["yaxis"]["range"][0])
    assert floor["line"]["color"] == LIGHT.ink
    data, _ = drawn(history(History("grad_norm", np.arange(2), values[:2]), statistic("grad_norm"), LIGHT))
    assert len(data) == 1


def test_steps_that_are_not_finite_and_the_onset_are_marked() -> None:
    """A vermilion stretch for each time that entries were not finite, and a dotted line at the onset."""
    steps = np.arange(10, 20)
    broken = History("nonfinite", steps, np.isin(steps, [12, 13, 19]).astype(float))
    figure = history(
        History("grad_norm", steps, np.ones(10)), statistic("grad_norm"), LIGHT, onset=12, nonfinite=broken
    )
    shapes = {shape.name: [] for shape in figure.layout.shapes}  # type: ignore[var-annotated]
    for shape in figure.layout.shapes:
        shapes[shape.name].append((shape.x0, shape.x1))
    assert shapes["nonfinite"] == [(12, 13), (19, 19)]
    assert shapes["onset"] == [(12, 12)]
    assert stretches(steps, np.zeros(10, bool)) == []


@pytest.mark.parametrize("steps", [[7], [7, 8], [3, 5, 8], list(range(100))])
def test_the_ticks_of_steps_are_whole_numbers(steps: list[int]) -> None:
    """One frame or a few have their own steps as ticks, not 0.6 and 0.8."""
    axis = base.step_axis(np.array(steps))
    if steps[-1] - steps[0] < 8:
        assert all(isinstance(tick, int) and steps[0] <= tick <= steps[-1] for tick in axis["tickvals"])
        assert axis["range"][0] < steps[0] <= steps[-1] < axis["range"][1]
    else:
        assert axis == base.STEP_AXIS


# The distribution


def test_both_sides_beyond_the_threshold_are_coloured_exactly() -> None:
    """The bar that ε cuts is blue up to ε and vermilion beyond; no density changes."""
    bars = joined_bars(counted(np.random.default_rng(0).normal(0, 1, 5000)))
    assert bars is not None
    cut = split_bars(bars, 1.2345)
    assert {-1.2345, 1.2345} <= set(cut.edges)
    assert np.isclose((cut.density * np.diff(cut.edges)).sum(), 1)
    assert split_bars(bars, 1e9).edges is not bars.edges
    assert np.array_equal(split_bars(bars, 1e9).edges, bars.edges)
    data, _ = drawn(histogram(counted(np.linspace(-2, 2, 999)), LIGHT, threshold=1.0))
    assert {at > 0 for at, colour in zip(data[0]["x"], data[0]["marker"]["color"], strict=True)
            if colour == VERMILION} == {True, False}  # fmt: skip


def test_a_gaussian_sample_hardly_leaves_its_expected_reach() -> None:
    """Of a Gaussian's entries fewer than one is expected beyond it; of heavy tails many are."""
    rng = np.random.default_rng(0)
    reach = expected_reach(0.0, 2.0, 10_000)
    beyond = [(np.abs(rng.normal(0, 2, 10_000)) > reach).sum() for _ in range(200)]
    assert 0.5 < np.mean(beyond) < 1.5
    assert (np.abs(rng.standard_t(2, 10_000)) > reach).sum() > 100
    assert np.isnan(expected_reach(NAN, 1.0, 10))


def test_the_ghost_is_the_layers_usual_self() -> None:
    """Before a fault: ten recordings back. After its onset: the last recording before it."""
    steps = np.arange(0, 300, 10)
    assert earlier(steps, 200, None) == 100
    assert earlier(steps, 200, 250) == 100
    assert earlier(steps, 200, 120) == 110
    assert earlier(steps, 30, None) == 0
    assert earlier(steps, 0, None) is None
    assert earlier(steps, 200, 0) is None


def test_colour_is_the_distance_from_the_normal() -> None:
    """A point more than 1 σ off is vermilion; the ghost is grey behind it."""
    far = Quantiles((quantile_positions() * np.where(np.abs(quantile_positions()) > 3, 2, 1)).astype(np.float32), 10**6)
    usual = standardized(Quantiles(quantile_positions().astype(np.float32), 10**6), 0.0, 1.0)
    data, _ = drawn(qq(far, LIGHT, mean=0.0, deviation=1.0, before=usual))
    ghost, now = data[-2:]
    assert ghost["marker"]["color"] == LIGHT.grey
    beyond = np.abs(now["y"] - now["x"]) > 1
    assert 0 < beyond.sum() < len(beyond)
    assert set(now["marker"]["color"][beyond]) == {VERMILION}
    assert set(now["marker"]["color"][~beyond]) == {BLUE}


# The outlier map


def test_the_map_names_the_rows_that_the_api_calls_outlying() -> None:
    """Three sick rows are three names, the worst first; many are cut, and their number is said."""
    totals = np.full(64, 3, np.uint32)
    totals[[5, 17, 40]] = 60, 64, 61
    assert np.flatnonzero(outlying(totals)).tolist() == [5, 17, 40]
    assert named(totals, "row") == "rows 17, 40, 5"
    totals[[7, 9]] = 59
    assert named(totals, "row") == "rows 17, 40, 5 +2"
    assert named(np.ones(9, np.uint32), "row") == ""
    assert named(np.array([0, 0, 0, 9], np.uint32), "col") == "col 3"


# Other optimizers, and names


def test_an_update_that_aims_at_nothing_is_neither_green_nor_beside_an_ideal() -> None:
    """AdamW orthogonalizes nothing: its update is data, and 1 is no aim."""
    values = np.array([3.0, 1.0], np.float32)
    recorded = Spectrum(values, values, values)
    for polar, colour, shapes in ((True, GREEN, 1), (False, BLUE, 0)):
        data, layout = drawn(spectrum(recorded, LIGHT, own="mine", of_base=False, polar=polar))
        assert next(line for line in data if line["name"] == "mine")["line"]["color"] == colour
        assert len(layout.get("shapes", [])) == shapes


@pytest.mark.parametrize("name", ["<b>mine</b>", "a<br>b", '<a href="x">y</a>', "R&D"])
def test_a_name_is_text_and_never_markup(name: str) -> None:
    """Plotly reads tags and entities in texts: the label of a user's optimizer is escaped."""
    values = np.array([3.0, 1.0], np.float32)
    own = History("polar_error", np.arange(2), np.ones(2))
    for figure in (
        spectrum(Spectrum(values, values, values), LIGHT, own=name),
        errors(own, None, None, LIGHT, name=name),
    ):
        texts = [note.text for note in figure.layout.annotations] + [trace.name for trace in figure.data]
        assert base.plain(name) in texts
        assert name not in texts
    assert "<" not in base.plain(name)


def test_every_trace_is_in_our_bundle_of_plotly(tmp_path: Path) -> None:
    """A trace that the bundle lacks would not be drawn."""
    with Store.open(record(tmp_path / "a.db", 41, make_layers(2))) as store:
        bodies = [draw(store, panel, 1).body for panel in PANEL]
        kinds = {trace.type for body in bodies if hasattr(body, "data") for trace in body.data}
    assert {"bar", "heatmap", "scatter"} <= kinds <= TRACES


# The strip


def found(number: int, layer: int | None, rule: str, since: int, **more: Any) -> Verdict:
    """A verdict."""
    return Verdict(number, layer, rule, more.pop("severity", "warning"), since, f"blocks.0: {rule}; why", **more)


def test_the_strip_begins_with_what_lasts_and_is_worst() -> None:
    """What follows from something else, what has ended and what is of other layers comes later or not at all."""
    verdicts = [
        found(1, 0, "ended", 5, severity="critical", until=9),
        found(2, 0, "follows", 6, severity="critical", under=1),
        found(3, 0, "warns", 7),
        found(4, 0, "worst", 8, severity="critical"),
        found(5, 1, "other", 3),
        found(6, None, "one of", 3, candidates=(0, 1)),
    ]
    assert [verdict.rule for verdict in of_layer(verdicts, 0)] == ["worst", "one of", "warns", "ended", "follows"]


def test_the_evidence_is_where_its_number_is_drawn() -> None:
    """A verdict points to the panels of its statistics, and to the map if it names rows."""
    one = found(1, 0, "heavy-tails", 5, evidence={"grad_kurtosis": Measured(231.0, 12.0)})
    names = statistics.names_of(Layer("x", (4, 4), "root"))
    assert verdict.evidence(one, names) == ["qq", "statistic-2"]
    assert verdict.evidence(replace(one, text="with outliers gathering in rows 1, 2"), names)[-1] == "mask"
    panels = {panel for ids in verdict.EVIDENCE.values() for panel in ids}
    assert panels <= set(PANEL)


def strip(store: Store, layer: int) -> tuple[str, dict[str, Any]]:
    """The words of a layer's strip, and the properties of its outermost part."""
    body = draw(store, verdict.PANEL.id, layer).body
    words = [part.children for part in components(body) if isinstance(getattr(part, "children", None), str)]
    return " ".join(words), body.to_plotly_json()["props"]


@pytest.mark.parametrize(("nonfinite", "word"), [("skip", "skipped"), ("propagate", "gradient not finite")])
def test_the_strip_says_since_when_the_gradient_is_not_finite(tmp_path: Path, nonfinite: str, word: str) -> None:
    """With `nonfinite="skip"` the layer stands still from there on, and the strip says so."""
    layers, rng = make_layers(1), np.random.default_rng(0)
    options = {"optimizers": [{"class": "ROOT", "groups": [{"algorithm": "root", "nonfinite": nonfinite}]}]}
    column = statistic_names("statistics").index("grad_nan")
    with Store.create(tmp_path / "a.db") as store:
        recording = store.begin(Run("run-1", "a run", 0.0, optimizer=options), layers)
        for step in range(10):
            frame: Frame = make_frame(step, step, layers, rng, ["statistics"])
            numbers = frame.statistics.copy()
            numbers[:, column] = step >= 6
            recording.append(replace(frame, statistics=numbers))
        assert f"{word} since 6" in strip(store, 1)[0]


def test_a_layer_without_a_finding_is_quiet(tmp_path: Path) -> None:
    """One line says that the rules found nothing, or that nobody looked."""
    with Store.open(record(tmp_path / "a.db", 3)) as store:
        words, props = strip(store, 1)
    assert words == "Recorded without diagnosis: root-dash diagnose judges the run."
    assert props["className"] == "strip note"


def test_lasting_is_what_the_newest_steps_have() -> None:
    """A fault that is over does not last."""
    for values, since in (([0, 4, 0, 4, 4], 30), ([4, 4, 0], None), ([4, 4], 0)):
        zero = History("grad_zero", np.arange(len(values)) * 10, np.array(values, np.float64))
        assert lasting(zero, 4) == since
    assert lasting(None, 4) is None
