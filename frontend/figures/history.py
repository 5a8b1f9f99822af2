"""A small figure of one statistic of one layer over the steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.theme import Theme
from root_dash.records import Float64Array, History, IntArray, Statistic

COLUMNS = 70
"""Columns of the envelope: about as many as the figure can show apart."""
STRETCHES = 24
"""The most stretches of steps that are marked as not finite, apart."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A curve in columns of steps: the middle, least and largest value of each, and a step within."""

    steps: Float64Array
    low: Float64Array
    middle: Float64Array
    high: Float64Array


def history(
    recorded: History | None,
    statistic: Statistic,
    theme: Theme,
    *,
    onset: int | None = None,
    nonfinite: History | None = None,
) -> go.Figure:
    """Draw the curve, on a logarithmic axis if the statistic is best read so; many points as a band with its middle.

    On a logarithmic axis a value of 0 stands at the floor, in ink. Steps with gradient entries that are not finite,
    which `nonfinite` counts, are vermilion. A dotted line stands at the onset of what was found in the layer.
    """
    plot = f"history-{statistic.name}"
    if recorded is None or not len(recorded.steps):
        return base.empty(theme, plot, "not recorded")
    values = recorded.values
    if not np.isfinite(values).any():
        broken = nonfinite is not None and bool((nonfinite.values > 0).any())
        return base.empty(theme, plot, "never finite" if broken else "no value yet", sick=broken)
    span = base.log_range(values) if statistic.log else None
    shown = np.where(values > 0, values, np.nan) if span else values
    drawn = base.figure(theme, plot)
    hover = "step %{x:,}: %{y:.4~g}<extra></extra>"
    if len(values) > 2 * COLUMNS:
        band = envelope(recorded.steps, shown)
        for edge, fill in ((band.high, None), (band.low, "tonexty")):
            drawn.add_scatter(
                x=band.steps, y=edge, mode="lines", line={"width": 0}, fill=fill, fillcolor=theme.curve,
                hoverinfo="skip",
            )  # fmt: skip
        drawn.add_scatter(**base.line(band.steps, band.middle, colours.BLUE, 1.4), hovertemplate=hover)
    else:
        drawn.add_scatter(**base.line(recorded.steps, shown, colours.BLUE, 1.4), hovertemplate=hover)
    if span and (values == 0).any():
        floor = np.where(values == 0, 10.0 ** span[0], np.nan)
        zero = base.line(recorded.steps, floor, theme.ink, 3)
        drawn.add_scatter(**zero, name="zero", hovertemplate="step %{x:,}: 0<extra></extra>")
    drawn.update_layout(
        xaxis={**base.step_axis(recorded.steps), "nticks": 4, "showgrid": False},
        yaxis={"nticks": 4, "tickformat": "~g"} if span is None
        else {"type": "log", "range": list(span), **base.log_ticks(*span)},
    )  # fmt: skip
    if nonfinite is not None:
        _mark(drawn, nonfinite)
    base.onset(drawn, onset)
    base.marker(drawn, theme)
    return drawn


def envelope(steps: IntArray, values: Float64Array, columns: int = COLUMNS) -> Envelope:
    """Return a curve in at most so many columns of equal numbers of points; a column without a finite value is NaN."""
    parts = np.array_split(np.arange(len(steps)), min(columns, len(steps)))
    rows = []
    for part in parts:
        held = values[part][np.isfinite(values[part])]
        middle = float(steps[part[len(part) // 2]])
        rows.append((middle, held.min(), np.median(held), held.max()) if len(held) else (middle, *[np.nan] * 3))
    return Envelope(*np.array(rows, np.float64).T)


def stretches(steps: IntArray, on: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """Return the first and last step of each stretch of marked points, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8)))
    return [(int(steps[first]), int(steps[last - 1])) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _mark(drawn: go.Figure, nonfinite: History) -> None:
    found = stretches(nonfinite.steps, nonfinite.values > 0)
    if len(found) > STRETCHES:
        found = [(found[0][0], found[-1][1])]
    width = {"color": colours.VERMILION, "width": 1}
    for first, last in found:
        drawn.add_shape(
            name="nonfinite", type="rect", x0=first, x1=last, y0=0, y1=1, yref="y domain", layer="below",
            fillcolor=colours.VERMILION, opacity=0.28, line=width,
        )  # fmt: skip
