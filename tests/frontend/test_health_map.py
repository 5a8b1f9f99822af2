"""The map of layers under the scalars: its rows, its colours, its marks, and what a click finds in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from root_dash.frontend.figures.health_map import Mapped, cells_of, health_map
from root_dash.frontend.figures.map_rows import MOST, Row, choose, cut, matches, short_names
from root_dash.frontend.figures.scale import log_scale, scale_of, severity_scale
from root_dash.frontend.findings import findings
from root_dash.frontend.panels.overview.health_map import broken_cells, legend, rules_in_words, shares, worst_of
from root_dash.frontend.theme import DARK, LIGHT, Theme
from root_dash.health import RULES, Verdict
from root_dash.records import Event, Grid, History, Layer, statistic
from root_dash.records.verdict import severity_rules
from tests.frontend.figures import BOTH, drawn, gridded

NAN, INF = float("nan"), float("inf")
NORM, SEVERITY = statistic("grad_norm"), statistic("severity")


def named(*names: str) -> list[Layer]:
    """Return layers of these names."""
    return [Layer(name, (4, 4), "root", at, id=10 + at) for at, name in enumerate(names)]


def mapped(grid: Grid, name: str = "grad_norm", rows: tuple[Row, ...] | None = None, broken: Any = None) -> Mapped:
    """Return a map of a grid with a row for each layer."""
    shown = statistic(name)
    rows = rows or tuple(Row(layer.name, (at,)) for at, layer in enumerate(grid.layers))
    colours = severity_scale() if name == "severity" else scale_of(grid.values, log=shown.log)
    bad = np.zeros(grid.values.shape, bool) if broken is None else np.array(broken, bool)
    return Mapped(shown, grid, rows, cells_of(grid, rows, colours, bad, zero=shown.log), colours)


# The rows


def test_few_layers_have_a_row_each_in_the_models_order() -> None:
    """A layer without a value has no row; a filter leaves the layers that match."""
    layers = named("a.q", "a.k", "b.q")
    has = np.array([True, False, True])
    severity = np.array([0.1, 9.0, 3.0])
    assert [row.name for row in choose(layers, has, severity).rows] == ["a.q", "b.q"]
    assert [row.name for row in choose(layers, has, severity, order="worst").rows] == ["b.q", "a.q"]
    assert [row.name for row in choose(layers, has, severity, order="sick").rows] == ["b.q"]
    assert [row.name for row in choose(layers, has, severity, order="sick", sick={0}).rows] == ["a.q", "b.q"]
    assert choose(layers, has, severity, pattern="k").rows == ()


def test_many_layers_are_folded_by_block() -> None:
    """Every layer is in one row, the rows are few, and an opened block is followed by its layers."""
    layers = named("embed", *(f"h.{block}.{part}" for block in range(30) for part in "qkv"), "head")
    everything, severity = np.ones(len(layers), bool), np.zeros(len(layers))
    rows = choose(layers, everything, severity).rows
    assert [row.name for row in rows] == ["embed", *(f"h.{block}" for block in range(30)), "head"]
    assert sorted(at for row in rows for at in row.members) == list(range(len(layers)))
    opened = choose(layers, everything, severity, opened={"h.1"}).rows
    assert [row.name for row in opened[2:6]] == ["h.1", "h.1.q", "h.1.k", "h.1.v"]
    assert [row.opened for row in opened[1:5]] == [False, True, None, None]


@pytest.mark.parametrize("count", [MOST + 1, 1500, 5000])
def test_the_rows_of_any_model_are_few_and_have_names_of_their_own(count: int) -> None:
    """Blocks that are still too many share rows; two rows with one name would be one row on the axis."""
    layers = named(*(f"m.{at // 5 % 400}.{'qkvud'[at % 5]}" for at in range(count)))
    rows = choose(layers, np.ones(count, bool), np.zeros(count)).rows
    assert len(rows) <= MOST
    assert len({row.name for row in rows}) == len(rows)
    assert sorted(at for row in rows for at in row.members) == list(range(count))


def test_neighbouring_blocks_share_a_name() -> None:
    """The name of a row says from which block to which."""
    layers = named(*(f"h.{block}.{part}" for block in range(120) for part in "qk"))
    assert [row.name for row in choose(layers, np.ones(240, bool), np.zeros(240)).rows][:2] == ["h.0–2", "h.3–5"]


def test_the_worst_of_many_layers_come_first_and_the_rest_is_counted() -> None:
    """The worst layers have rows of their own, whatever their block."""
    layers = named(*(f"h.{at}.q" for at in range(100)))
    chosen = choose(layers, np.ones(100, bool), np.arange(100.0), order="worst")
    assert chosen.rows[0].name == "h.99.q"
    assert (len(chosen.rows), chosen.left_out) == (MOST, 100 - MOST)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("", True),
        ("ATTN", True),
        (" attn.q ", True),
        ("*.attn.?", True),
        ("attn*", False),
        ("[ab]", False),
        ("mlp", False),
    ],
)
def test_a_filter_is_a_part_of_a_name_or_a_pattern(pattern: str, fits: bool) -> None:
    """Brackets have no meaning of their own, and case does not matter."""
    assert matches("blocks.0.attn.q", pattern) == fits


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.weight", "b.weight"], ["a", "b"]),
        (["h.0.q.weight", "h.1.q.weight", "head.weight"], ["0.q", "1.q", "head"]),
        (["weight"], ["weight"]),
        (["a.weight", "a.bias"], ["a.weight", "a.bias"]),
    ],
)
def test_names_lose_what_they_share(names: list[str], short: list[str]) -> None:
    """A shared last part and a shared start before the block's number say nothing on every row."""
    aliases = short_names(names)
    assert [aliases.get(name, name) for name in names] == short


def test_a_long_name_loses_its_middle() -> None:
    """The beginning and the end of a name tell layers apart."""
    assert cut("short") == "short"
    assert len(cut("x" * 500 + ".q", 20)) == 20
    assert cut("x" * 500 + ".q", 20).endswith(".q")


# The colours


@pytest.mark.parametrize(
    "scale",
    [
        severity_scale(),
        log_scale(1e-2, 1.0, 1e3),
        scale_of(np.array([-1.2, 0.1, 0.2, 0.3, 900.0]), log=False),
        scale_of(np.array([0.0, 0.5, 1.0]), log=False),
        scale_of(np.array([0.0, 0.0, 0.0]), log=False),
        scale_of(np.array([NAN]), log=True),
    ],
)
def test_a_scale_bends_and_unbends(scale: Any) -> None:
    """The ends come back, the colours ascend from 0 to 1, and the ticks stand evenly with texts of their own."""
    low, middle, high = scale.ends
    assert low <= middle < high
    inside = np.linspace(low, high, 9)
    assert np.allclose(scale.unbend(scale.bend(inside)), inside)
    places = [place for place, _ in scale.colours(LIGHT.severity)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)
    texts = [text for _, text in scale.ticks]
    assert len(set(texts)) == len(texts)
    assert not any(text.startswith("-") for text in texts) or low < 0


def test_a_healthy_severity_has_almost_the_papers_colour() -> None:
    """Below the bound the colour is neutral on both papers; beyond the bound the colour is loud."""

    def loudness(theme: Theme, severity: float) -> int:
        scale = severity_scale()
        place = float(scale.bend(severity))
        colours = scale.colours(theme.severity)
        raw = scale.ends[2] * np.array([at for at, _ in colours])
        colour = colours[int(np.argmin(np.abs(scale.bend(raw) - place)))][1]
        channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return max(channels) - min(channels)

    for theme in (LIGHT, DARK):
        assert max(loudness(theme, severity) for severity in (0.0, 0.5, 0.9)) < 30
        assert min(loudness(theme, severity) for severity in (1.8, 3.0, 8.0)) > 50


def test_the_colours_of_values_end_at_robust_percentiles() -> None:
    """One spike in a thousand does not wash out the rest, on a logarithmic scale centred on the median."""
    values = np.ones((1, 1000))
    values[0, :200] = 4.0
    values[0, 500] = 1e9
    assert scale_of(values, log=True).ends == (0.5, 1.0, 4.0)


def test_a_wide_scale_is_bent_about_zero_and_a_narrow_one_is_not() -> None:
    """A kurtosis of 900 must not squeeze all others into one colour."""
    wide = scale_of(np.concatenate([np.linspace(-1, 2, 200), np.full(20, 900.0)]), log=False)
    middle = float(wide.bend(2.0) - wide.bend(wide.ends[1])) / float(wide.bend(900.0) - wide.bend(wide.ends[1]))
    assert middle > 0.05
    narrow = scale_of(np.linspace(-1, 2, 200), log=False)
    assert np.array_equal(narrow.bend(np.array([0.3])), [0.3])


def test_counts_of_entries_are_shares_of_a_layers_entries() -> None:
    """Eight zeros are half of sixteen entries."""
    assert shares(gridded([[8.0, 0.0]], "grad_zero")).values.tolist() == [[0.5, 0.0]]


# The cells


def test_a_block_shows_the_worst_of_its_layers_at_each_step() -> None:
    """The severity farthest from healthy; zero and not finite count for the whole block."""
    grid = gridded([[0.1, 5.0, 0.2, NAN], [3.0, 0.1, NAN, NAN]], "severity")
    cells = mapped(grid, "severity", (Row("block", (0, 1), False),)).cells
    assert np.array_equal(cells.values, [[3.0, 5.0, 0.2, NAN]], equal_nan=True)
    norms = cells_of(
        gridded([[1.0, 0.0], [INF, 2.0]]), (Row("block", (0, 1), False),), log_scale(0.1, 1, 10),
        np.zeros((2, 2), bool), zero=True,
    )  # fmt: skip
    assert norms.zero.tolist() == [[False, True]]
    assert norms.broken.tolist() == [[True, False]]
    assert norms.values.tolist() == [[1.0, 2.0]]


@BOTH
def test_zero_not_finite_and_not_recorded_look_different(theme: Theme) -> None:
    """A value has a colour of the scale, 0 and not finite have their own, and a cell without a recording is empty."""
    grid = gridded([[1.0, 0.0, INF, NAN]])
    one = mapped(grid)
    data, _ = drawn(health_map([], one, theme))
    values, zero, broken = data
    assert np.array_equal(values["z"], np.array([[1, NAN, NAN, NAN]], np.float32), equal_nan=True)
    assert (zero["z"], list(zero["x"])) == ([[1]], [0.5, 1.5])
    assert (broken["z"], list(broken["x"])) == ([[1]], [1.5, 2.5])
    assert "exactly 0" in zero["hovertemplate"]
    assert "not finite" in broken["hovertemplate"]
    inks = {zero["colorscale"][0][1], broken["colorscale"][0][1], theme.card}
    assert len(inks) == 3
    said = str(legend(one.scale, one.cells, theme))
    assert all(words in said for words in ("exactly 0", "not finite", "not recorded"))


@BOTH
def test_a_layer_whose_gradient_was_never_finite_keeps_its_row(theme: Theme) -> None:
    """Such a layer has no statistic, and its counts or its severity paint every step."""
    grid = gridded([[1.0, 2.0], [NAN, NAN]])
    counts = gridded([[0.0, 0.0], [16.0, 16.0]], "grad_nan")
    broken = broken_cells(grid, counts, severe=False)
    assert broken.tolist() == [[False, False], [True, True]]
    assert broken_cells(gridded([[0.2, 100.0]]), counts, severe=True).tolist() == [[False, True]]
    data, layout = drawn(health_map([], mapped(grid, broken=broken), theme))
    assert list(layout["meta"]["layers"]) == ["blocks.0.weight", "blocks.1.weight"]
    assert data[-1]["z"] == [[None, None], [1, 1]]


def test_counts_of_other_columns_paint_the_columns_that_hold_their_steps() -> None:
    """A statistic of spectra has a column for every tenth step, and counts may come with every step."""
    grid = replace(gridded([[1.0, 1.0, 1.0]]), starts=np.array([0, 10, 20]), ends=np.array([0, 10, 20]))
    counts = np.zeros((1, 25))
    counts[0, 13] = 1
    assert broken_cells(grid, gridded(counts, "grad_nan"), severe=False).tolist() == [[False, True, False]]
    assert not broken_cells(grid, gridded(np.zeros((1, 0))), severe=False).any()


def test_the_hover_text_of_a_loud_cell_names_the_rule() -> None:
    """The rule of a block's cell is the rule of its worst layer; a quiet row has no text."""
    tails, dead = RULES.index("heavy-tails"), RULES.index("dead-rows")
    severity = np.array([[0.1, 2.0], [0.2, 4.0], [0.1, 0.1]])
    numbers = severity_rules(severity, np.array([[tails] * 2, [dead] * 2, [tails] * 2]))
    rows = (Row("block", (0, 1), False), Row("quiet", (2,)))
    words = rules_in_words(gridded(numbers, "severity_rule"), rows, np.array([[0.2, 4.0], [0.1, 0.1]]))
    assert words == {0: ["", " × bound<br>dead rows"]}
    grid = gridded(severity[1:], "severity")
    data, _ = drawn(health_map([], replace(mapped(grid, "severity"), words=words), LIGHT))
    assert data[0]["text"] == [words[0], ["", ""]]
    assert data[0]["hovertemplate"].endswith("severity %{z:.3~g}%{text}<extra></extra>")
    assert "text" not in drawn(health_map([], mapped(grid, "severity"), LIGHT))[0][0]


def test_a_grid_that_is_older_has_no_severity_for_new_layers() -> None:
    """The severities are read after the grid, and layers may come between."""
    assert np.array_equal(worst_of(gridded([[0.1, 3.0], [NAN, NAN]]), 3), [3.0, NAN, NAN], equal_nan=True)


# The figure


def test_names_are_text_and_lead_to_their_layers() -> None:
    """Markup in a name is shown letter by letter, on the axis, in the hover text and to a click."""
    layers = named("<b>x</b>", 'a&"b')
    grid = replace(gridded([[1.0, 2.0], [1.0, 2.0]]), layers=tuple(layers))
    data, layout = drawn(health_map([], mapped(grid), LIGHT))
    assert list(data[0]["y"]) == ["&lt;b&gt;x&lt;/b&gt;", 'a&amp;"b']
    assert layout["yaxis"]["ticktext"][0] == '<a href="/l/10" target="_self">&lt;b&gt;x&lt;/b&gt;</a>'
    assert layout["meta"]["layers"] == {"&lt;b&gt;x&lt;/b&gt;": 10, 'a&amp;"b': 11}


def test_a_click_on_a_block_finds_the_block() -> None:
    """The map tells a block's row from a layer's row."""
    grid = gridded([[1.0, 2.0], [1.0, 2.0]])
    _, layout = drawn(health_map([], mapped(grid, rows=(Row("blocks.0", (0, 1), False), Row("x", (1,)))), LIGHT))
    assert layout["meta"]["blocks"] == {"blocks.0": "blocks.0"}
    assert layout["meta"]["rows"] == ["blocks.0", None]
    assert layout["meta"]["ids"] == [None, 11]
    assert layout["meta"]["layers"] == {"x": 11}
    assert layout["yaxis"]["ticktext"][0] == "▸ blocks.0"


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (5, 1), (40, None)])
def test_few_steps_have_a_tick_each(steps: int, every: int | None) -> None:
    """There is no step 0.6: an axis of few steps has no ticks between them."""
    _, layout = drawn(health_map([], mapped(gridded(np.ones((2, steps)))), LIGHT))
    assert layout["xaxis"].get("dtick") == every


@pytest.mark.parametrize("rows", [1, 6, 35, 60])
def test_rows_are_neither_too_thin_nor_too_thick(rows: int) -> None:
    """The figure says how high its box may be: a row has 9 to 22 pixels."""
    _, layout = drawn(health_map([], mapped(gridded(np.ones((rows, 2)))), LIGHT))
    for height, pixels in ((layout["meta"]["least"], 9), (layout["meta"]["most"], 22)):
        assert abs(height - pixels * rows - 64) < 1
    bottom, top = layout["yaxis"]["domain"]
    assert bottom == 0
    assert 0 < top <= 1


def verdict(**how: Any) -> Verdict:
    """Return a verdict of the second layer."""
    return Verdict(
        **{"id": 1, "layer": 1, "rule": "heavy-tails", "severity": "warning", "since": 120, "text": "x", **how}
    )


def test_onsets_are_dotted_lines_through_all_and_the_worst_is_named() -> None:
    """A line for each onset; the name of the worst finding's layer and its step above the first."""
    found = findings([verdict(since=5), verdict(id=2, layer=0, severity="critical", since=3, until=4)])
    grid = gridded(np.ones((2, 8)))
    _, layout = drawn(health_map([], mapped(grid), LIGHT, found=[*found.now, *found.earlier]))
    lines = [shape for shape in layout["shapes"] if shape["name"] == "onset"]
    assert [(line["x0"], line["yref"], line["line"]["dash"]) for line in lines] == [
        (5, "paper", "dot"),
        (3, "paper", "dot"),
    ]
    assert [a["text"] for a in layout["annotations"]] == ["1 · step 5"]
    _, layout = drawn(health_map([], mapped(grid), LIGHT, found=findings([verdict(layer=None, since=5)]).now))
    assert [a["text"] for a in layout["annotations"]] == ["heavy tails · step 5"]


def test_events_are_ticks_and_their_text_is_text() -> None:
    """A tick for each step with events; markup in a text is shown letter by letter."""
    events = [Event("cadence", "every 8 <b>steps</b>", 3, 0.0), Event("layers", "new", 3, 0.0), Event("x", "", 5, 0.0)]
    data, layout = drawn(health_map([], mapped(gridded(np.ones((1, 8)))), LIGHT, events=events))
    ticks = data[-1]
    assert list(ticks["x"]) == [3, 5]
    assert ticks["text"][0].count("<b>") == 2
    assert "&lt;b&gt;steps" in ticks["text"][0]
    assert layout["yaxis2"]["visible"] is False


def test_scalars_stand_above_the_map_on_its_steps() -> None:
    """A strip for each family, the scalars named at their ends; without a map the curves stay, and a sentence."""
    scalars = [
        History("loss", np.array([0, 1]), np.array([3.0, 2.0])),
        History("val_loss", np.array([0]), np.array([NAN])),
        History("lr", np.array([0, 1]), np.array([1e-3, 1e-3])),
    ]
    data, layout = drawn(health_map(scalars, mapped(gridded([[1.0, 2.0]])), LIGHT))
    assert [(trace["name"], trace["yaxis"]) for trace in data[:3]] == [("loss", "y2"), ("val_loss", "y2"), ("lr", "y3")]
    assert {"loss 2", "val_loss NaN<br>at every step", "lr 0.001"} == {a["text"] for a in layout["annotations"]}
    assert layout["yaxis2"]["anchor"] == layout["yaxis3"]["anchor"] == "x"
    assert layout["yaxis"]["domain"][1] < layout["yaxis3"]["domain"][0] < layout["yaxis2"]["domain"][0]
    assert layout["xaxis"]["spikemode"] == "across"
    data, layout = drawn(health_map(scalars, None, LIGHT, sentence="why not"))
    assert len(data) == 3
    assert "why not" in [a["text"] for a in layout["annotations"]]


@pytest.mark.parametrize(
    ("values", "total", "text"),
    [
        ([3.0, 2.0], 2, "loss 2"),
        ([3.0, NAN, NAN], 3, "loss NaN<br>since 1"),
        ([3.0, NAN, INF], 900, "loss ∞<br>since about 1"),
        ([NAN, NAN], 2, "loss NaN<br>at every step"),
        ([NAN, 2.0], 2, "loss 2"),
    ],
)
@pytest.mark.parametrize("log", [True, False])
def test_a_loss_that_is_no_longer_finite_says_since_when(values: list[float], total: int, text: str, log: bool) -> None:
    """The number at the end of the curve is the run's last value, even if the last value cannot be drawn."""
    loss = History("loss", np.arange(len(values)), np.array(values), total)
    data, layout = drawn(health_map([loss], mapped(gridded([[1.0, 2.0]])), LIGHT, log=log))
    assert [a["text"] for a in layout["annotations"]] == [text]
    assert layout["yaxis2"]["showticklabels"] == bool(np.isfinite(values).any())
    assert layout["yaxis2"].get("type") == ("log" if log and np.isfinite(values).any() else None)
    assert data[0]["mode"] == ("lines+markers" if np.isfinite(values).sum() == 1 else "lines")
