"""Every figure of a layer, field by field, for hand-written records and without a record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from root_dash.frontend.figures import base, polynomial
from root_dash.frontend.figures.errors import errors
from root_dash.frontend.figures.evolution import evolution, joined_bands
from root_dash.frontend.figures.health_map import health_map
from root_dash.frontend.figures.histogram import FINEST, histogram, joined_bars
from root_dash.frontend.figures.history import history
from root_dash.frontend.figures.mask import block_shares, line_totals, mask
from root_dash.frontend.figures.qq import band, qq, standardized
from root_dash.frontend.figures.spectrum import spectrum
from root_dash.frontend.theme import BLUE, DARK, LIGHT, VERMILION, Theme
from root_dash.records import (
    Histogram,
    HistogramHistory,
    History,
    Layer,
    Mask,
    Quantiles,
    Spectrum,
    histogram_edges,
    quantile_positions,
    statistic,
)
from tests.frontend.figures import BOTH, NAN, counted, drawn


@BOTH
@pytest.mark.parametrize(
    ("draw", "plot"),
    [
        (lambda t: health_map([], None, t), "map"),
        (lambda t: histogram(None, t), "histogram"),
        (lambda t: histogram(counted(np.zeros(9)), t), "histogram"),
        (lambda t: qq(None, t), "qq"),
        (lambda t: qq(Quantiles(np.zeros(65, np.float32), 100), t, mean=0.0, deviation=0.0), "qq"),
        (lambda t: evolution(None, t), "evolution"),
        (lambda t: spectrum(None, t), "spectrum"),
        (lambda t: errors(None, None, None, t), "errors"),
        (lambda t: mask(None, t), "mask"),
        (lambda t: history(None, statistic("grad_norm"), t), "history-grad_norm"),
    ],
)
def test_nothing_is_a_sentence_without_axes(draw: Callable[[Theme], go.Figure], plot: str, theme: Theme) -> None:
    """Without a record there are no trace and no axes, but a sentence."""
    data, layout = drawn(draw(theme))
    assert data == []
    assert layout["uirevision"] == plot
    assert layout["xaxis"]["visible"] is layout["yaxis"]["visible"] is False
    assert len(layout["annotations"][0]["text"]) > 5


def test_bars_are_never_finer_than_can_be_seen_and_hold_every_entry() -> None:
    """Fine bins around zero are joined symmetrically, and the bars hold every entry."""
    values = np.random.default_rng(0).standard_t(3, 20_000) * 1e-3
    bars = joined_bars(counted(values))
    assert bars is not None
    widths = np.diff(bars.edges)
    assert widths.min() >= (bars.edges[-1] - bars.edges[0]) / FINEST * 0.999
    assert bars.counts.sum() == len(values)
    assert np.allclose(bars.edges, -bars.edges[::-1])
    assert np.isclose((bars.density * widths).sum(), 1)


def test_a_histogram_marks_what_lies_beyond_the_threshold() -> None:
    """Bars beyond ±ε are vermilion, ε has two lines, the Gaussian is dashed and integrates to one."""
    values = np.random.default_rng(1).normal(0, 1, 5000)
    data, layout = drawn(histogram(counted(values), LIGHT, mean=0.0, deviation=1.0, threshold=1.5))
    bars, gauss = data
    beyond = np.abs(bars["x"]) > 1.5
    assert set(bars["marker"]["color"][beyond]) == {VERMILION}
    assert set(bars["marker"]["color"][~beyond]) == {BLUE}
    assert [shape["x0"] for shape in layout["shapes"]] == [-1.5, 1.5]
    assert gauss["line"]["dash"] == "dash"
    assert np.isclose(np.trapezoid(gauss["y"], gauss["x"]), 1, atol=0.01)
    assert layout["xaxis"]["range"][0] == -layout["xaxis"]["range"][1]


def test_a_histogram_without_a_threshold_claims_none() -> None:
    """ε belongs to the momentum: a gradient's bars are all blue and without lines."""
    data, layout = drawn(histogram(counted(np.ones(4)), LIGHT))
    assert set(data[0]["marker"]["color"]) == {BLUE}
    assert "shapes" not in layout


def test_overflow_and_single_values_can_be_drawn() -> None:
    """The outermost bins have no outer edge, and one occupied bin is a distribution too."""
    for values in ([1e9, -1e9], [1e-20, -1e-20, 3.0], [5.0]):
        bars = joined_bars(counted(values))
        assert bars is not None
        assert np.isfinite(bars.edges).all()
        assert bars.counts.sum() == len(values)


def test_normal_quantiles_lie_on_the_diagonal_within_the_band() -> None:
    """The quantiles of an exact normal lie on the dashed line and inside the band."""
    recorded = Quantiles((3 + 2 * quantile_positions()).astype(np.float32), 1_000_000)
    points = standardized(recorded, 3.0, 2.0)
    assert points is not None
    assert np.allclose(points.observed, points.position, atol=1e-5)
    assert not points.far.any()
    assert (points.low <= points.observed).all()
    assert (points.observed <= points.high).all()
    data, _ = drawn(qq(recorded, LIGHT, mean=3.0, deviation=2.0))
    assert set(data[2]["marker"]["color"]) == {BLUE}


def test_heavy_tails_leave_the_band_and_unresolved_tails_are_left_out() -> None:
    """A cube of a normal is vermilion far out; a sample of 100 has no quantile of 1e-5."""
    recorded = Quantiles((quantile_positions() ** 3).astype(np.float32), 100)
    points = standardized(recorded, 0.0, 15**0.5)
    assert points is not None
    assert np.abs(points.position).max() < 2.6
    data, _ = drawn(qq(replace(recorded, count=10**6), LIGHT, mean=0.0, deviation=15**0.5))
    assert list(data[2]["marker"]["color"][[0, -1]]) == [VERMILION, VERMILION]


def test_the_band_holds_19_of_20_quantiles_of_normal_samples() -> None:
    """The 95 % band, against samples: in the bulk and at the last quantile that is drawn."""
    rng = np.random.default_rng(2)
    probabilities = np.array([0.002, 0.1, 0.5, 0.975])
    samples = np.sort(rng.normal(size=(4000, 500)), axis=1)
    low, high = band(probabilities, 500)
    for p, a, b in zip(probabilities, low, high, strict=True):
        quantile = np.quantile(samples, p, axis=1, method="hazen")
        assert 0.92 < np.mean((quantile >= a) & (quantile <= b)) < 0.985


def test_the_evolution_keeps_every_entry_in_mirrored_bands() -> None:
    """The shares of each step add up to one; positive entries lie above the middle, negative entries below."""
    positive, negative = np.full(30, 0.5), np.full(10, -0.5)
    counts = np.stack([counted(np.concatenate([positive, negative])).counts, counted(positive).counts])
    recorded = HistogramHistory(np.array([0, 10]), counts)
    bands = joined_bands(recorded)
    assert bands is not None
    assert np.allclose(bands.share.sum(axis=0), 1)
    assert np.allclose(bands.low, -bands.high[::-1])
    middle = len(bands.low) // 2
    assert np.allclose(bands.share[middle + 1 :].sum(axis=0), [0.75, 1.0])
    data, layout = drawn(evolution(recorded, DARK))
    assert list(data[0]["x"]) == [-5, 5, 15]
    assert len(set(data[0]["y"])) == len(data[0]["y"]) == bands.share.shape[0]
    assert "0" in layout["yaxis"]["ticktext"]


def test_a_spectrum_names_its_lines_at_their_ends_without_covering_them() -> None:
    """Momentum relative to its largest, Muon computed, labels apart, 1 dashed."""
    values = np.geomspace(10, 0.1, 16).astype(np.float32)
    recorded = Spectrum(2 * values, values, np.ones(16, np.float32))
    data, layout = drawn(spectrum(recorded, LIGHT))
    by_name = {trace["name"]: trace for trace in data}
    assert list(by_name) == ["momentum", "base", "Muon", "ROOT"]
    assert by_name["momentum"]["y"][0] == 1
    assert np.allclose(by_name["Muon"]["y"], polynomial.muon(values))
    heights = sorted(a["y"] for a in layout["annotations"])
    assert min(np.diff(heights)) > 0.08
    assert layout["shapes"][0]["line"]["dash"] == "dash"


def test_errors_are_computed_from_spectra() -> None:
    """The error of given singular values by hand, and Muon's five steps on a flat spectrum."""
    assert polynomial.error(np.array([0.5, 1.5]), "polar_error") == 0.5
    assert np.isclose(polynomial.error(np.array([0.5, 1.5]), "orthogonality_error"), np.sqrt((0.75**2 + 1.25**2) / 2))
    sigma = 1 / 2  # four equal values, by their Frobenius norm
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    flat = np.full(4, 7, np.float32)
    spectra = [Spectrum(np.geomspace(9, 1, 4).astype(np.float32), flat, flat, step=20)]
    muon, paper = polynomial.errors_on(spectra, "polar_error", Layer("w", (4, 4), "root"))
    assert list(muon.steps) == list(paper.steps) == [20]
    assert np.isclose(muon.values[0], abs(sigma - 1), atol=1e-6)  # on the base, which is flat
    other, _ = polynomial.errors_on(spectra, "polar_error", Layer("w", (4, 4), "muon"), of_base=False)
    assert not np.isclose(other.values[0], muon.values[0], atol=1e-3)  # on the momentum, which is not flat
    data, _ = drawn(errors(muon, muon, paper, LIGHT))
    assert {trace["name"] for trace in data} == {"ROOT", "Muon", "paper"}


def test_directions_that_are_null_count_for_no_error() -> None:
    """A spectrum of rank one has one direction, and a spectrum of zeros has none."""
    assert list(polynomial.present(np.array([2.0, 1e-9]))) == [2.0]
    assert len(polynomial.present(np.zeros(3))) == 0
    assert np.isnan(polynomial.error(np.zeros(0), "polar_error"))


def test_a_mask_shows_shares_and_its_worst_row() -> None:
    """Blocks as shares of their entries; the one full row is vermilion, at its own number."""
    rows, cols = 10, 6
    row_totals = np.ones(rows, np.uint32)
    row_totals[7] = 6
    pooled = np.array([[3, 2], [7, 3]], np.uint32)
    recorded = Mask(
        rows, cols, pooled, row_totals, np.full(cols, 2, np.uint32), np.empty((0, 2), np.int64), np.empty(0, np.float32)
    )
    assert np.allclose(block_shares(recorded), np.array([[3, 2], [7, 3]]) / 15)
    data, layout = drawn(mask(recorded, LIGHT))
    right = data[1]
    assert [line for line, colour in zip(right["customdata"][:, 0], right["marker"]["color"], strict=True)
            if colour == VERMILION] == [7]  # fmt: skip
    assert layout["yaxis"]["range"] == [10, 0]


def test_many_rows_share_bars_and_the_worst_speaks_for_them() -> None:
    """A bar of several rows shows the worst row, so that no bad row is hidden."""
    counts = np.ones(1000, np.int64)
    counts[333] = 50
    totals = line_totals(counts, 100)
    assert len(totals.line) <= 160
    assert 333 in totals.line
    assert list(totals.line[totals.outlying]) == [333]


def test_a_history_is_logarithmic_where_its_statistic_is() -> None:
    """A positive statistic over orders of magnitude has a log axis; a step without a recording is a gap."""
    recorded = History("grad_norm", np.array([0, 1, 2]), np.array([1.0, np.nan, 100.0]))
    data, layout = drawn(history(recorded, statistic("grad_norm"), LIGHT))
    assert layout["yaxis"]["type"] == "log"
    assert np.isnan(data[0]["y"][1])
    assert layout["shapes"][0]["visible"] is False
    _, linear = drawn(history(replace(recorded, name="alignment"), statistic("alignment"), LIGHT))
    assert "type" not in linear["yaxis"]


def alike(value: float) -> Spectrum:
    """Return a spectrum whose singular values are all equal."""
    values = np.full(3, value, np.float32)
    return Spectrum(values, values, values)


@pytest.mark.parametrize("values", [[NAN, 2.0, NAN], [2.0], [1.0, 2.0, NAN, 3.0], [NAN, -1.0, 4.0, 0.0]])
def test_a_value_between_gaps_is_a_dot_in_every_curve(values: list[float]) -> None:
    """One point makes no line, so a lone point is drawn as a dot."""
    recorded = History("grad_norm", np.arange(len(values)), np.array(values))
    for figure in (
        history(recorded, statistic("grad_norm"), LIGHT),
        errors(recorded, None, None, LIGHT),
        health_map([replace(recorded, name="loss")], None, LIGHT),
    ):
        curve = drawn(figure)[0][0]
        y = np.array(curve["y"], np.float64)
        dots = np.array(curve.get("marker", {}).get("size", np.zeros(len(y)))) > 0
        seen = np.isfinite(y)
        beside = np.append(seen[1:], False) | np.append(False, seen[:-1])
        assert (dots == (seen & ~beside)).all()


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (
            history(History("grad_norm", np.arange(2), np.full(2, NAN)), statistic("grad_norm"), LIGHT),
            "no value yet",
        ),
        (history(History("grad_norm", np.arange(0), np.zeros(0)), statistic("grad_norm"), LIGHT), "not recorded"),
        (
            histogram(Histogram(np.zeros(len(histogram_edges()) - 1, np.uint32), nan=9), LIGHT),
            "● All 9 entries are NaN.",
        ),
        (histogram(counted(np.zeros(9)), LIGHT), "● All 9 entries are 0."),
        (
            histogram(replace(counted(np.zeros(9)), nan=2, inf=1), LIGHT),
            "● Entries: 9 zero, 2 NaN, 1 ±Inf.",
        ),
        (spectrum(alike(NAN), LIGHT), f"● {base.NO_SPECTRUM_LEFT}"),
        (spectrum(alike(0.0), LIGHT), f"● {base.NO_SPECTRUM_LEFT}"),
        (
            errors(History("polar_error", np.arange(2), np.full(2, NAN)), None, None, LIGHT),
            f"● {base.NO_SPECTRUM_LEFT}",
        ),
        (errors(None, None, None, LIGHT), "No spectra yet: the error is computed from spectra."),
    ],
)
def test_a_panel_says_what_its_values_are_if_none_can_be_drawn(figure: go.Figure, said: str) -> None:
    """A panel of recorded NaN or zero does not say that nothing was recorded."""
    data, layout = drawn(figure)
    assert data == []
    assert re.sub("<.*?>", "", layout["annotations"][0]["text"].replace("<br>", " ")) == said


def test_a_spectrum_labels_a_line_of_nan() -> None:
    """The other lines are drawn, and the label of the missing line says NaN."""
    values = np.array([3.0, 1.0], np.float32)
    data, layout = drawn(spectrum(Spectrum(values, values, np.full(2, NAN, np.float32)), LIGHT))
    assert "ROOT NaN" in [a["text"] for a in layout["annotations"]]
    assert len(data) == 4


def test_an_evolution_says_that_a_blank_step_had_no_finite_entry() -> None:
    """The column of such a step is blank, like the column of a step without a recording."""
    counts = np.stack([counted(np.ones(9)).counts, np.zeros(len(histogram_edges()) - 1, np.uint32)])
    _, layout = drawn(evolution(HistogramHistory(np.array([1, 2]), counts), LIGHT))
    assert "blank: no finite entry" in [a["text"] for a in layout["annotations"]]
    _, layout = drawn(evolution(HistogramHistory(np.array([1, 2]), counts[[0, 0]]), LIGHT))
    assert "annotations" not in layout
