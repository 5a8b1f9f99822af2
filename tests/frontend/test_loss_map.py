"""The map of layers over steps, field by field, and the loss above the map."""

from __future__ import annotations

import numpy as np
import pytest

from root_dash.frontend.figures import base
from root_dash.frontend.figures.loss_map import loss_map, map_rows, mapped, short_names
from root_dash.frontend.theme import LIGHT, VERMILION, Theme
from root_dash.records import (
    History,
    statistic,
)
from tests.frontend.figures import BOTH, INF, NAN, drawn, gridded


def test_the_map_leaves_out_layers_without_the_statistic_and_names_the_rest_shortly() -> None:
    """The map has a row for each layer with a value, in model order, and the layer ids and steps for a click."""
    grid = gridded([[1.0, 2.0], [np.nan, np.nan], [3.0, np.inf]])
    figure = loss_map([], grid, statistic("grad_norm"), LIGHT)
    data, layout = drawn(figure)
    assert list(data[0]["y"]) == ["blocks.0.weight", "blocks.2.weight"]
    assert layout["yaxis"]["labelalias"] == {"blocks.0.weight": "0", "blocks.2.weight": "2"}
    assert layout["meta"] == {"layers": {"blocks.0.weight": 10, "blocks.2.weight": 12}, "starts": [0, 1]}
    assert np.array_equal(data[0]["customdata"], np.array([[1, 2], [3, np.inf]], np.float32))
    broken = data[1]
    assert broken["z"] == [[None], [1]]
    assert list(broken["x"]) == [0.5, 1.5]


def test_gradients_that_were_not_finite_are_vermilion_whatever_the_statistic() -> None:
    """The norm covers the finite entries only; the counts tell of NaN and infinity."""
    grid = gridded([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    counts = gridded([[0, 0, 0], [0, 4, 0]], "grad_nan")
    data, _ = drawn(loss_map([], grid, statistic("grad_norm"), LIGHT, nonfinite=counts))
    assert data[1]["z"] == [[None], [1]]
    assert VERMILION in str(data[1]["colorscale"])
    # In the first case nothing was counted; in the second the counts were read before the first frame.
    for empty in (gridded(np.zeros((2, 3))), gridded(np.zeros((2, 0)))):
        none, _ = drawn(loss_map([], grid, statistic("grad_norm"), LIGHT, nonfinite=empty))
        assert len(none) == 2  # the map and the colour bar


def test_losses_are_named_at_their_ends_above_the_map() -> None:
    """Every loss is a curve over the same steps as the map; NaNs leave a gap."""
    losses = [
        History("loss", np.array([0, 1]), np.array([3.0, 2.0])),
        History("val_loss", np.array([0]), np.array([np.nan])),
    ]
    data, layout = drawn(loss_map(losses, gridded([[1.0, 2.0]]), statistic("grad_norm"), LIGHT))
    assert [trace["name"] for trace in data[:2]] == ["loss", "val_loss"]
    assert [a["text"] for a in layout["annotations"]] == ["loss 2", "val_loss NaN<br>at every step"]
    assert layout["yaxis2"]["anchor"] == "x"
    assert layout["uirevision"] == "map"


def test_the_colours_of_values_end_at_robust_percentiles() -> None:
    """One spike in a thousand does not wash out the rest, on a logarithmic scale centred on the median."""
    values = np.ones((1, 1000))
    values[0, :200] = 4.0
    values[0, 500] = 1e9
    rows = map_rows(gridded(values), statistic("grad_norm"))
    assert rows is not None
    assert rows.log
    assert rows.ends == (0.5, 1.0, 4.0)


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


def test_a_bent_scale_gives_raw_values_their_logarithmic_colours() -> None:
    """The colour of the middle value is the middle of the scale, on a raw axis over four decades."""
    scale = base.warped(((-1.0, "#000000"), (0.0, "#808080"), (1.0, "#ffffff")), 1e-2, 1.0, 1e2, log=True)
    positions = [position for position, _ in scale]
    assert positions == sorted(positions)
    assert positions[0] == 0
    assert positions[-1] == 1
    raw = 1e-2 + np.array(positions) * (1e2 - 1e-2)
    at = int(np.argmin(np.abs(raw - 1.0)))
    assert scale[at][1] == "#808080"


@BOTH
def test_a_layer_whose_gradient_was_never_finite_keeps_its_row(theme: Theme) -> None:
    """Such a layer has no statistic and is vermilion at every step; a layer without values and counts has no row."""
    grid = gridded([[1.0, 2.0], [NAN, NAN], [NAN, NAN]])
    broken = gridded([[0.0, 0.0], [16.0, 16.0], [0.0, 0.0]], "grad_nan")
    data, layout = drawn(loss_map([], grid, statistic("grad_norm"), theme, nonfinite=broken))
    assert list(layout["meta"]["layers"]) == ["blocks.0.weight", "blocks.1.weight"]
    sick = next(trace for trace in data if "not finite" in trace.get("hovertemplate", ""))
    assert sick["z"] == [[None, None], [1, 1]]
    assert mapped(grid, broken).tolist() == [True, True, False]
    assert mapped(grid).tolist() == [True, False, False]


def test_a_map_of_broken_layers_alone_has_no_colours_to_read() -> None:
    """If every row is vermilion, a colour bar would show numbers that belong to no layer."""
    data, _ = drawn(
        loss_map([], gridded([[NAN, NAN]]), statistic("grad_norm"), LIGHT, nonfinite=gridded([[4.0, 4.0]], "grad_nan"))
    )
    assert [trace["type"] for trace in data] == ["heatmap", "heatmap"]
    data, _ = drawn(loss_map([], gridded([[1.0, 2.0]]), statistic("grad_norm"), LIGHT))
    assert any(trace.get("marker", {}).get("showscale") for trace in data)


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
def test_a_loss_that_is_no_longer_finite_says_since_when(values: list[float], total: int, text: str) -> None:
    """The number at the end of the curve is the run's last value, even if the last value cannot be drawn."""
    loss = History("loss", np.arange(len(values)), np.array(values), total)
    data, layout = drawn(loss_map([loss], gridded([[1.0, 2.0]]), statistic("grad_norm"), LIGHT))
    assert [a["text"] for a in layout["annotations"]] == [text]
    assert layout["yaxis2"]["showticklabels"] == bool(np.isfinite(values).any())
    assert data[0]["mode"] == ("lines+markers" if np.isfinite(values).sum() == 1 else "lines")
