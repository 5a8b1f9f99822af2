"""The loss over the map of layers: one figure, one axis of steps, so that zooming one zooms both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.theme import MONO, Theme
from root_dash.records import Float64Array, Grid, History, Statistic

LOSS_COLOURS = (colours.BLUE, colours.AMBER, colours.PURPLE, colours.GREEN)
LOSS = (0.80, 1.0)
MAP = (0.0, 0.755)
NEVER_LESS_THAN_A_FACTOR_OF = 2.0
"""What differs from the usual by less stays the colour of the paper."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What the map draws: the layers that have the statistic, and its values as they are coloured."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    raw: Float64Array
    drawn: Float64Array
    log: bool
    low: float
    middle: float
    high: float


def loss_map(
    losses: Sequence[History],
    grid: Grid | None,
    statistic: Statistic,
    theme: Theme,
    *,
    relative: bool = False,
) -> go.Figure:
    """The curves of `losses` above the heat map of one statistic, layers in model order from the top.

    Colour is spent on what is unusual: the median is the colour of the paper, and the ends of the scale are the
    percentiles 0.5 and 99.5 (of all values or, when `relative`, of each value against its own layer's median). Cells
    that are not finite are vermilion, cells that were not recorded are empty.
    """
    rows = rows_of(grid, statistic, relative) if grid is not None and grid.values.size else None
    if rows is None and not any(len(loss.steps) for loss in losses):
        return base.empty(theme, "map", "Nothing recorded yet: the first frame appears here by itself.")
    drawn = base.figure(theme, "map")
    drawn.update_layout(
        xaxis={**base.STEP_AXIS, "anchor": "y", "showgrid": False, "title": {"text": "optimizer step"}},
        yaxis={"domain": MAP, "autorange": "reversed", "showgrid": False, "fixedrange": True},
        yaxis2={"domain": LOSS, "anchor": "x", "nticks": 4, "title": {"text": "loss"}, "fixedrange": True},
        margin={"r": 64},
    )
    for loss, colour in zip(losses, LOSS_COLOURS, strict=False):
        drawn.add_scatter(
            x=loss.steps, y=loss.values, yaxis="y2", name=loss.name, mode="lines",
            line={"color": colour, "width": 1.6}, hovertemplate="step %{x:,}: %{y:.4~g}",
        )  # fmt: skip
    _name_losses(drawn, losses)
    if rows is None or grid is None:
        text = "No layer has this statistic yet." if grid is None or not grid.values.size else _absent(statistic)
        drawn.add_annotation(text=text, x=0.5, y=0.4, xref="paper", yref="paper", font={"size": 12})
        return drawn
    _add_map(drawn, grid, rows, statistic, theme)
    return drawn


def rows_of(grid: Grid, statistic: Statistic, relative: bool) -> Rows | None:
    """The rows of a grid that have any value, and the range of their colours; None where there is none."""
    has = np.asarray(~np.isnan(grid.values).all(axis=1))
    if not has.any():
        return None
    layers = [layer for layer, kept in zip(grid.layers, has, strict=True) if kept]
    raw = grid.values[has]
    finite = np.where(np.isfinite(raw), raw, np.nan)
    log = statistic.log and bool(np.nanmax(finite, initial=-np.inf) > 0)
    if log:
        finite = np.where(finite > 0, finite, np.nan)
    drawn = finite
    if relative:
        usual = np.array([[np.median(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan] for row in finite])
        drawn = finite / usual if log else finite - usual
    values = drawn[~np.isnan(drawn)]
    low, middle, high = _range(values, log, relative)
    return Rows(
        names=tuple(layer.name for layer in layers), ids=tuple(layer.id for layer in layers), raw=raw, drawn=drawn,
        log=log, low=low, middle=middle, high=high,
    )  # fmt: skip


def _range(values: Float64Array, log: bool, relative: bool) -> tuple[float, float, float]:
    """Where the colours begin, are the paper's, and end."""
    if not len(values):
        return (0.5, 1.0, 2.0) if log else (-1.0, 0.0, 1.0)
    low, middle, high = (float(q) for q in np.percentile(values, [0.5, 50, 99.5]))
    if relative:
        middle = 1.0 if log else 0.0
    if log:
        return (
            min(low, middle / NEVER_LESS_THAN_A_FACTOR_OF),
            middle,
            max(high, middle * NEVER_LESS_THAN_A_FACTOR_OF),
        )
    least = max(0.1 * abs(middle), 0.25 * (high - low), 1e-12)
    return min(low, middle - least), middle, max(high, middle + least)


def _add_map(drawn: go.Figure, grid: Grid, rows: Rows, statistic: Statistic, theme: Theme) -> None:
    edges = np.append(grid.starts, grid.ends[-1] + 1).astype(np.float64)
    place: dict[str, Any] = {"x": edges, "y": list(rows.names), "xgap": 0, "ygap": 1 if len(rows.names) <= 80 else 0}
    hover = "<b>%{y}</b><br>step %{x:,.0f}<br>" + statistic.label + " %{customdata:.3~g}<extra></extra>"
    scale = base.warped(theme.severity, rows.low, rows.middle, rows.high, rows.log)
    drawn.add_heatmap(
        z=rows.drawn.astype(np.float32), customdata=rows.raw.astype(np.float32), zmin=rows.low, zmax=rows.high,
        colorscale=scale, showscale=False, hoverongaps=False, hovertemplate=hover, **place,
    )  # fmt: skip
    broken = np.isinf(rows.raw)
    if broken.any():
        drawn.add_heatmap(
            z=np.where(broken, 1.0, np.nan).astype(np.float32), colorscale=[[0, colours.VERMILION]] * 1
            + [[1, colours.VERMILION]], showscale=False, hoverongaps=False,
            hovertemplate="<b>%{y}</b><br>step %{x:,.0f}<br>" + statistic.label + " not finite<extra></extra>", **place,
        )  # fmt: skip
    _add_colour_bar(drawn, rows, theme)
    suffix = _common_suffix(rows.names)
    alias = {name: name.removesuffix(suffix) for name in rows.names} if suffix else None
    drawn.update_yaxes(
        selector={"autorange": "reversed"}, type="category", tickfont={"family": MONO, "size": 10}, labelalias=alias
    )
    # A click on a cell gives its row and column: these say which layer and which step.
    drawn.update_layout(meta={"layers": list(rows.ids), "starts": grid.starts.tolist()})
    first, last = edges[0], edges[-1]
    if first < last:
        drawn.update_xaxes(minallowed=float(first), maxallowed=float(last))


def _add_colour_bar(drawn: go.Figure, rows: Rows, theme: Theme) -> None:
    """A bar with honest ticks: the heat map's own would be linear."""
    ends = np.log10([rows.low, rows.middle, rows.high]) if rows.log else np.array([rows.low, rows.middle, rows.high])
    side = np.linspace(-1, 1, 25)
    at = np.where(side < 0, ends[1] + side * (ends[1] - ends[0]), ends[1] + side * (ends[2] - ends[1]))
    position = (at - at[0]) / (at[-1] - at[0])
    scale = [
        [float(p), c] for p, (_, c) in zip(position, base.warped(theme.severity, -1, 0, 1, False, 12), strict=True)
    ]
    texts = [_tick(float(10**v if rows.log else v)) for v in ends]
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


def _tick(number: float) -> str:
    from root_dash.frontend.numbers import value

    return value(number, 2)


def _name_losses(drawn: go.Figure, losses: Sequence[History]) -> None:
    """Name each curve at its right end, where it stands."""
    for order, (loss, colour) in enumerate(zip(losses, LOSS_COLOURS, strict=False)):
        finite = loss.values[np.isfinite(loss.values)]
        if len(finite):
            drawn.add_annotation(
                text=f"{loss.name} {finite[-1]:.3g}", x=1.0, xref="paper", xanchor="right", y=1.0, yref="paper",
                yanchor="top", xshift=-4, yshift=-2 - 15 * order, font={"color": colour, "size": 11},
            )  # fmt: skip


def _absent(statistic: Statistic) -> str:
    return f"No layer has “{statistic.label}” yet: it comes with the {statistic.kind} of a frame."


def _common_suffix(names: Sequence[str]) -> str:
    """The last part of the names where all share it: `.weight` says nothing on forty rows."""
    last = {name.rpartition(".")[2] for name in names}
    return f".{last.pop()}" if len(last) == 1 and len(names) > 1 and all("." in name for name in names) else ""
