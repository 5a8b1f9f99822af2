"""Parts that figures share: the empty figure, names as text, axes over steps, labels at line ends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend.theme import VERMILION, Stops, Theme
from root_dash.records import Float64Array

NO_SPECTRUM_LEFT = "Every singular value is zero or not finite."

STEP_AXIS = {"tickformat": "~s", "nticks": 7, "hoverformat": ","}


def figure(theme: Theme, plot: str) -> go.Figure:
    """Return a figure on a theme's paper. `plot` names the figure, so that zoom and hidden traces survive an update."""
    return go.Figure(layout={"template": theme.template, "uirevision": plot, "hovermode": "closest"})


def empty(theme: Theme, plot: str, sentence: str, *, sick: bool = False) -> go.Figure:
    """Return a figure of words: why nothing is drawn, or what to do.

    If `sick` is true, the words are a finding and not a lack: in ink, after a vermilion dot.
    """
    drawn = figure(theme, plot)
    drawn.update_layout(xaxis={"visible": False, "fixedrange": True}, yaxis={"visible": False, "fixedrange": True})
    words = wrap(plain(sentence))
    drawn.add_annotation(
        text=f'<span style="color:{VERMILION}">●</span> {words}' if sick else words,
        x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 12, "color": theme.ink if sick else theme.second},
    )  # fmt: skip
    return drawn


def wrap(sentence: str, width: int = 44) -> str:
    """Break a sentence into lines for an annotation."""
    return "<br>".join(textwrap.wrap(sentence, width, break_long_words=False, break_on_hyphens=False))


def plain(text: str) -> str:
    """Return a text that Plotly writes as it is: Plotly takes `<b>` in a user's name for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def step_axis(steps: Any) -> dict[str, Any]:
    """Return an axis over ascending steps. Few steps are ticks themselves: an axis without a choice makes fractions."""
    if not len(steps):
        return STEP_AXIS
    first, last = int(steps[0]), int(steps[-1])
    if last - first >= 8:
        return STEP_AXIS
    room = 0.5 if first == last else 0.04 * (last - first)
    ticks = list(range(first, last + 1, 1 + (last - first) // 4))
    return {"tickvals": ticks, "tickformat": ",d", "hoverformat": ",", "range": [first - room, last + room]}


def cell_edges(steps: Any) -> Float64Array:
    """Return the edges of cells around ascending steps: each edge lies half-way between two steps."""
    middles = np.asarray(steps, np.float64)
    usual = float(np.median(np.diff(middles))) if len(middles) > 1 else 1.0
    between = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[middles[0] - usual / 2], between, [middles[-1] + usual / 2]])


def colour(stops: Stops, at: float) -> str:
    """Return the colour at a place between the stops of a scale."""
    positions = [position for position, _ in stops]
    channels = np.array([[int(ink[i : i + 2], 16) for i in (1, 3, 5)] for _, ink in stops])
    red, green, blue = (round(float(np.interp(at, positions, channels[:, i]))) for i in range(3))
    return f"#{red:02x}{green:02x}{blue:02x}"


def line(steps: Any, values: Any, colour: str, width: float) -> dict[str, Any]:
    """Return a curve with a dot at every finite value without a finite neighbour: a single point makes no line."""
    finite = np.concatenate([[False], np.isfinite(np.asarray(values, np.float64)), [False]])
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    curve = {"x": steps, "y": values, "mode": "lines", "line": {"color": colour, "width": width}}
    if alone.any():
        curve |= {"mode": "lines+markers", "marker": {"color": colour, "size": np.where(alone, 4 + width, 0)}}
    return curve


def log_range(values: Any, decades: float = 12.0, pad: float = 0.08) -> tuple[float, float] | None:
    """Return the range of the positive finite values in powers of ten, at most `decades` below the largest."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if not len(finite):
        return None
    low, high = np.log10(finite.min()), np.log10(finite.max())
    low = max(low, high - decades)
    space = max(pad * (high - low), 0.05)
    return float(low - space), float(high + space)


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Return few ticks for a logarithmic axis between two powers of ten: whole decades, or 1-2-5 on a short axis."""
    whole = high - low
    if whole >= 2:
        return {"dtick": max(1, int(np.ceil(whole / 5)))}
    # Without a format Plotly labels 0.05 on a short axis as "5".
    format_ = {"tickformat": "~g" if low > -3.5 else "~e"}
    return {"dtick": "D2", **format_} if whole >= 0.4 else {"nticks": 4, **format_}


def end_height(values: Float64Array) -> float:
    """Return the height of the last positive finite value on a logarithmic axis; -inf if there is none."""
    usable = values[np.isfinite(values) & (values > 0)]
    return float(np.log10(usable[-1])) if len(usable) else -np.inf


def end_labels(
    drawn: go.Figure,
    ends: Sequence[tuple[str, str, float]],
    span: tuple[float, float],
    theme: Theme,
    *,
    domain: tuple[float, float] = (0.0, 1.0),
    gap: float = 0.085,
) -> None:
    """Name lines at their right end instead of in a legend, and push overlapping labels apart.

    `ends` are text, colour and height on the axis (a power of ten on a logarithmic axis). `span` is the range of the
    axis, `domain` is the axis' part of the figure's height, and `gap` is the height of a label in the same unit.
    """
    low, high = span
    wanted = sorted((float(np.clip((y - low) / (high - low), 0.0, 1.0)), text, colour) for text, colour, y in ends)
    heights = [domain[0] + at * (domain[1] - domain[0]) for at, _, _ in wanted]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    top = domain[1]
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], top)
        top = heights[i] - gap
    for height, (_, text, colour) in zip(heights, wanted, strict=True):
        drawn.add_annotation(
            text=text, x=1.0, xref="paper", xanchor="left", xshift=5, y=height, yref="paper", yanchor="middle",
            align="left", font={"color": theme.words.get(colour, colour), "size": 11},
        )  # fmt: skip


def marker(drawn: go.Figure, theme: Theme) -> None:
    """Add a hidden dotted line. The browser shows the line at the shown step, without a request for the figure."""
    drawn.add_shape(
        name="step", visible=False, type="line", x0=0, x1=0, y0=0, y1=1, yref="y domain",
        line={"color": theme.ink, "width": 1, "dash": "dot"},
    )  # fmt: skip


def onset(drawn: go.Figure, step: int | None) -> None:
    """Add a dotted vermilion line at the onset of a fault; nothing if there is none."""
    if step is not None:
        drawn.add_shape(
            name="onset", type="line", x0=step, x1=step, y0=0, y1=1, yref="y domain",
            line={"color": VERMILION, "width": 1.2, "dash": "dot"},
        )  # fmt: skip
