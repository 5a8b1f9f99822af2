"""What all figures share: the empty figure, axes over steps, bent colour scales, labels at line ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend.theme import Stops, Theme
from root_dash.records import Float64Array

NO_SPECTRUM_LEFT = "Every singular value is zero or not finite."

STEP_AXIS = {"tickformat": "~s", "nticks": 7, "hoverformat": ","}


def figure(theme: Theme, plot: str) -> go.Figure:
    """A figure on a theme's paper; `plot` names it, so that zoom and hidden traces survive an update."""
    return go.Figure(layout={"template": theme.template, "uirevision": plot, "hovermode": "closest"})


def empty(theme: Theme, plot: str, sentence: str) -> go.Figure:
    """Axes, and a sentence that says why nothing is drawn or what to do."""
    drawn = figure(theme, plot)
    bare = {"range": [0, 1], "showticklabels": False, "showgrid": False, "showline": True, "fixedrange": True}
    drawn.update_layout(xaxis=bare, yaxis=bare)
    drawn.add_annotation(
        text=wrap(sentence), x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 12, "color": theme.second}
    )
    return drawn


def wrap(sentence: str, width: int = 44) -> str:
    """A sentence broken into lines for an annotation."""
    lines = [""]
    for word in sentence.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def edges_of(steps: Any) -> Float64Array:
    """Edges of cells about ascending steps, half-way between them, so that the middle of a cell is its step."""
    middles = np.asarray(steps, np.float64)
    usual = float(np.median(np.diff(middles))) if len(middles) > 1 else 1.0
    between = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[middles[0] - usual / 2], between, [middles[-1] + usual / 2]])


def warped(stops: Stops, low: float, middle: float, high: float, log: bool, count: int = 24) -> list[list[Any]]:
    """A two-sided colour scale for raw values between `low` and `high`, with its centre at `middle`.

    Plotly has no logarithmic colour axis; bending the scale instead keeps the values themselves in the figure, for the
    hover and for whoever reads it.
    """
    side = np.linspace(-1.0, 1.0, 2 * count + 1)
    a, b, c = (np.log10(v) for v in (low, middle, high)) if log else (low, middle, high)
    at = np.where(side < 0, b + side * (b - a), b + side * (c - b))
    raw = 10.0**at if log else at
    position = np.clip((raw - raw[0]) / (raw[-1] - raw[0]), 0.0, 1.0)
    position[0], position[-1] = 0.0, 1.0
    return [[float(p), _colour(stops, s)] for p, s in zip(np.maximum.accumulate(position), side, strict=True)]


def _colour(stops: Stops, at: float) -> str:
    positions = [position for position, _ in stops]
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in stops])
    red, green, blue = (round(float(np.interp(at, positions, channels[:, i]))) for i in range(3))
    return f"#{red:02x}{green:02x}{blue:02x}"


def line(steps: Any, values: Any, colour: str, width: float) -> dict[str, Any]:
    """A curve, with a dot where a finite value stands alone: Plotly draws no line through one point."""
    finite = np.concatenate([[False], np.isfinite(np.asarray(values, np.float64)), [False]])
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    curve = {"x": steps, "y": values, "mode": "lines", "line": {"color": colour, "width": width}}
    if alone.any():
        curve |= {"mode": "lines+markers", "marker": {"color": colour, "size": np.where(alone, 4 + width, 0)}}
    return curve


def log_range(values: Any, decades: float = 12.0, pad: float = 0.08) -> tuple[float, float] | None:
    """The range in powers of ten that holds all positive finite values, at most so many decades below the largest."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if not len(finite):
        return None
    low, high = np.log10(finite.min()), np.log10(finite.max())
    low = max(low, high - decades)
    space = max(pad * (high - low), 0.05)
    return float(low - space), float(high + space)


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Few ticks on a logarithmic axis between two powers of ten: whole decades, or 1-2-5 on a short one."""
    whole = high - low
    if whole >= 2:
        return {"dtick": max(1, int(np.ceil(whole / 5)))}
    # Plotly labels 0.05 on such an axis "5" unless it is given a format.
    format_ = {"tickformat": "~g" if low > -3.5 else "~e"}
    return {"dtick": "D2", **format_} if whole >= 0.4 else {"nticks": 4, **format_}


def end_labels(
    drawn: go.Figure,
    ends: Sequence[tuple[str, str, float]],
    span: tuple[float, float],
    theme: Theme,
    *,
    domain: tuple[float, float] = (0.0, 1.0),
    gap: float = 0.085,
) -> None:
    """Name lines at their right end instead of in a legend, pushed apart where they would cover each other.

    `ends` are text, colour and height on the axis (a power of ten on a logarithmic one), `span` is the axis' range,
    `domain` its place in the figure and `gap` the height of a label there.
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
    """A dotted line, unseen: the page moves it to the step that it shows, without asking for the figure again."""
    drawn.add_shape(
        name="step", visible=False, type="line", x0=0, x1=0, y0=0, y1=1, yref="y domain",
        line={"color": theme.ink, "width": 1, "dash": "dot"},
    )  # fmt: skip
