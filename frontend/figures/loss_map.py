"""The loss over the map of layers: one figure with one axis of steps, so that a zoom changes both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.numbers import count, value
from root_dash.frontend.theme import MONO, Theme
from root_dash.records import Float64Array, Grid, History, Statistic

LOSS_COLOURS = (colours.BLUE, colours.AMBER, colours.PURPLE, colours.GREEN)
LOSS = (0.80, 1.0)
MAP = (0.0, 0.755)
_NUMBERED = re.compile(r"(\D+\.)\d+\.")


@dataclass(frozen=True, slots=True)
class MapRows:
    """The rows of the map: layers, the statistic's raw values, the values that get a colour, and the colours' ends."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    raw: Float64Array
    coloured: Float64Array
    log: bool
    ends: tuple[float, float, float]
    """The values of the first colour, of the paper's colour, and of the last colour."""


def loss_map(
    losses: Sequence[History],
    grid: Grid | None,
    statistic: Statistic,
    theme: Theme,
    *,
    nonfinite: Grid | None = None,
) -> go.Figure:
    """Draw the curves of `losses` above the heat map of a statistic, layers in model order from the top.

    The colours cover the values between the percentiles 0.5 and 99.5; the median has the colour of the paper. A cell is
    vermilion if its value is not finite, or if `nonfinite` counts gradient entries in the cell. A cell without a
    recording is empty.
    """
    rows = map_rows(grid, statistic, nonfinite) if grid is not None and grid.values.size else None
    if rows is None and not any(len(loss.steps) for loss in losses):
        return base.empty(theme, "map", "Nothing recorded yet: the first frame appears here by itself.")
    span = _span(losses)
    drawn = base.figure(theme, "map")
    drawn.update_layout(
        xaxis={**base.STEP_AXIS, "anchor": "y", "showgrid": False, "title": {"text": "optimizer step"}},
        yaxis={"domain": MAP, "autorange": "reversed", "showgrid": False, "fixedrange": True},
        yaxis2={
            "domain": LOSS,
            "anchor": "x",
            "nticks": 4,
            "title": {"text": "loss"},
            "fixedrange": True,
            "range": span,
            "showticklabels": not losses or any(np.isfinite(loss.values).any() for loss in losses),
        },
        margin={"r": 78},
    )
    for loss, colour in zip(losses, LOSS_COLOURS, strict=False):
        drawn.add_scatter(
            **base.line(loss.steps, loss.values, colour, 1.6),
            yaxis="y2", name=loss.name, hovertemplate="step %{x:,}: %{y:.4~g}",
        )  # fmt: skip
    ends = _loss_ends(losses, middle=sum(span) / 2)
    gap = 0.03
    if any("<br>" in text for text, _, _ in ends):
        gap = 0.05
        drawn.update_layout(margin={"r": 98})
    base.end_labels(drawn, ends, span, theme, domain=LOSS, gap=gap)
    if rows is None or grid is None:
        text = _absent(statistic, recorded=grid is not None and grid.values.size > 0)
        drawn.add_annotation(text=text, x=0.5, y=0.4, xref="paper", yref="paper", font={"size": 12})
        return drawn
    _add_map(drawn, grid, rows, statistic, theme, nonfinite)
    return drawn


def mapped(grid: Grid, nonfinite: Grid | None = None) -> NDArray[np.bool_]:
    """Return which layers the map shows: layers with a value, and layers whose gradient was ever not finite.

    A layer whose gradient is NaN from the first step has no statistic at all, and must not be missing from the map.
    """
    has = np.asarray(~np.isnan(grid.values).all(axis=1))
    if nonfinite is None or not nonfinite.values.size:
        return has
    broken = _counts(nonfinite, [layer.id for layer in grid.layers]) > 0
    return np.asarray(has | broken.any(axis=1))


def map_rows(grid: Grid, statistic: Statistic, nonfinite: Grid | None = None) -> MapRows | None:
    """Return the rows of a grid that the map shows; None if the map shows none."""
    has = mapped(grid, nonfinite)
    if not has.any():
        return None
    layers = [layer for layer, kept in zip(grid.layers, has, strict=True) if kept]
    raw = grid.values[has]
    log = statistic.log and bool((np.isfinite(raw) & (raw > 0)).any())
    finite = np.where(np.isfinite(raw) & ((raw > 0) | (not log)), raw, np.nan)
    ends = _ends(finite[~np.isnan(finite)], log)
    names, ids = tuple(layer.name for layer in layers), tuple(layer.id for layer in layers)
    return MapRows(names, ids, raw, finite, log, ends)


def _ends(values: Float64Array, log: bool) -> tuple[float, float, float]:
    if not len(values):
        return (0.5, 1.0, 2.0) if log else (-1.0, 0.0, 1.0)
    low, middle, high = (float(q) for q in np.percentile(values, [0.5, 50, 99.5]))
    if log:
        return min(low, middle / 2), middle, max(high, 2 * middle)
    least = max(0.1 * abs(middle), 1e-12)
    return min(low, middle - least), middle, max(high, middle + least)


def _edges(grid: Grid) -> Float64Array:
    """Return the edges of the columns, so that a column of one step has the step in its middle."""
    return np.append(grid.starts, grid.ends[-1] + 1) - 0.5


def _counts(nonfinite: Grid, layer_ids: Sequence[int]) -> Float64Array:
    """Return the counts of entries that are not finite, a row for each of `layer_ids`."""
    by_id = {layer.id: row for layer, row in zip(nonfinite.layers, nonfinite.values, strict=True)}
    none = np.full(nonfinite.values.shape[1], np.nan)
    return np.array([by_id.get(layer_id, none) for layer_id in layer_ids])


def _add_broken(drawn: go.Figure, cells: NDArray[np.bool_], place: dict[str, Any], hover: str) -> None:
    """Paint cells vermilion with a second heat map, which has only the columns from the first to the last such cell.

    The second heat map has all rows: on an axis of names, Plotly counts the rows of a heat map from the first name.
    """
    if not cells.any():
        return
    columns = np.flatnonzero(cells.any(axis=0))
    first, last = int(columns[0]), int(columns[-1]) + 1
    drawn.add_heatmap(
        z=[[1 if cell else None for cell in line] for line in cells[:, first:last]], zmin=0, zmax=1,
        hovertemplate=hover,
        colorscale=[[0, colours.VERMILION], [1, colours.VERMILION]], showscale=False, hoverongaps=False,
        **{**place, "x": place["x"][first : last + 1]},
    )  # fmt: skip


def _add_map(
    drawn: go.Figure, grid: Grid, rows: MapRows, statistic: Statistic, theme: Theme, nonfinite: Grid | None
) -> None:
    place: dict[str, Any] = {"x": _edges(grid), "y": list(rows.names), "ygap": 1 if len(rows.names) <= 80 else 0}
    where = "<b>%{y}</b><br>step %{x:,.0f}<br>"
    low, middle, high = rows.ends
    drawn.add_heatmap(
        z=rows.coloured.astype(np.float32), zmin=low, zmax=high, customdata=rows.raw.astype(np.float32),
        colorscale=base.warped(theme.severity, low, middle, high, rows.log), showscale=False, hoverongaps=False,
        hovertemplate=f"{where}{statistic.label} %{{customdata:.3~g}}<extra></extra>", **place,
    )  # fmt: skip
    _add_broken(drawn, np.isinf(rows.raw), place, f"{where}{statistic.label} is not finite<extra></extra>")
    if nonfinite is not None and nonfinite.values.size:
        broken, place = _counts(nonfinite, rows.ids) > 0, {**place, "x": _edges(nonfinite)}
        _add_broken(drawn, broken, place, f"{where}gradient entries not finite<extra></extra>")
    if not np.isnan(rows.coloured).all():
        _add_colour_bar(drawn, rows, theme)
    drawn.update_yaxes(
        selector={"autorange": "reversed"}, type="category", tickfont={"family": MONO, "size": 10},
        labelalias=short_names(rows.names),
    )  # fmt: skip
    # A click on a cell gives the row's name and the cell's middle; `meta` maps both to a layer and a step.
    drawn.update_layout(meta={"layers": dict(zip(rows.names, rows.ids, strict=True)), "starts": grid.starts.tolist()})


def _add_colour_bar(drawn: go.Figure, rows: MapRows, theme: Theme) -> None:
    """Add a colour bar whose ticks fit the scale; the heat map's own colour bar would be linear."""
    ends = np.log10(rows.ends) if rows.log else np.array(rows.ends)
    side = np.linspace(-1, 1, 25)
    at = np.where(side < 0, ends[1] + side * (ends[1] - ends[0]), ends[1] + side * (ends[2] - ends[1]))
    position = (at - at[0]) / (at[-1] - at[0])
    scale = [
        [float(p), c] for p, (_, c) in zip(position, base.warped(theme.severity, -1, 0, 1, False, 12), strict=True)
    ]
    texts = [value(end, 2) for end in rows.ends]
    drawn.add_scatter(
        x=[None], y=[None], yaxis="y2", mode="markers", hoverinfo="skip", showlegend=False,
        marker={
            "color": [float(ends[0])], "cmin": float(ends[0]), "cmax": float(ends[2]), "colorscale": scale,
            "showscale": True,
            "colorbar": {
                "thickness": 8, "len": 0.5, "y": 0.02, "yanchor": "bottom", "x": 1.0, "xpad": 12, "outlinewidth": 0,
                "tickvals": [float(v) for v in ends], "ticktext": texts, "ticklen": 0, "tickfont": {"size": 10},
            },
        },
    )  # fmt: skip


def _span(losses: Sequence[History]) -> tuple[float, float]:
    finite = [loss.values[np.isfinite(loss.values)] for loss in losses]
    low, high = (f(np.concatenate(finite)) if any(map(len, finite)) else at for f, at in ((np.min, 0.0), (np.max, 1.0)))
    space = 0.06 * float(high - low) or 0.5
    return float(low) - space, float(high) + space


def _loss_ends(losses: Sequence[History], middle: float) -> list[tuple[str, str, float]]:
    """Return the label of each curve: name and last value, colour, height (`middle` if no value is finite)."""
    ends = []
    for loss, colour in zip(losses, LOSS_COLOURS, strict=False):
        if not len(loss.steps):
            continue
        finite, last = np.flatnonzero(np.isfinite(loss.values)), float(loss.values[-1])
        height = float(loss.values[finite[-1]]) if len(finite) else middle
        text = f"{loss.name} {'NaN' if np.isnan(last) else value(last)}"
        if not np.isfinite(last):
            about = "about " if loss.total > len(loss.steps) else ""  # the curve does not show every step
            text += f"<br>since {about}{count(int(loss.steps[finite[-1] + 1]))}" if len(finite) else "<br>at every step"
        ends.append((text, colour, height))
    return ends


def _absent(statistic: Statistic, *, recorded: bool) -> str:
    if recorded:
        return f"No layer has a value of “{statistic.label}”."
    return f"No layer has “{statistic.label}” yet: watch() records it with the {statistic.kind}."


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return shorter names, without the parts that most names share: `3.attn.v` for `blocks.3.attn.v.weight`."""
    last = {name.rpartition(".")[2] for name in names}
    suffix = f".{last.pop()}" if len(last) == 1 and len(names) > 1 and all("." in name for name in names) else ""
    starts = Counter(match[1] for name in names if (match := _NUMBERED.match(name)))
    prefix, often = starts.most_common(1)[0] if starts else ("", 0)
    prefix = prefix if often > len(names) / 2 else ""
    short = {name: name.removesuffix(suffix).removeprefix(prefix) or name for name in names}
    return {name: text for name, text in short.items() if text != name}
