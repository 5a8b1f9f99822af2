"""Singular values before and after the orthogonalization. An orthogonal update has only the value 1."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base, polynomial
from root_dash.frontend.theme import Theme
from root_dash.records import Spectrum

DEEPEST = 5.0
"""How many decades the axis reaches below the largest value."""


def spectrum(
    recorded: Spectrum | None,
    theme: Theme,
    *,
    own: str = "ROOT",
    of_base: bool = True,
    polar: bool = True,
    sentence: str = "",
) -> go.Figure:
    """Draw singular values by index: momentum and base relative to the momentum's largest, the update unscaled.

    The amber line is the result of Muon's coefficients on the spectrum that the optimizer orthogonalizes, which is the
    base's if `of_base` is true, else the momentum's. Each result stands at the index of its input. `own` names the
    line of the update: green, or blue if nothing is orthogonalized. The dashed line at 1 is the
    aim of an update that is `polar`.
    """
    if recorded is None or not len(recorded.momentum):
        return base.empty(
            theme,
            "spectrum",
            sentence or "No spectrum at this step: watch() records spectra less often than histograms.",
        )
    top = float(np.nanmax(recorded.momentum, initial=0.0)) or 1.0
    # What orthogonalizes nothing has no use for a base.
    base_of = recorded.base if of_base or polar else recorded.base[:0]
    wanted = [
        ("momentum", theme.grey, recorded.momentum / top),
        ("base", colours.BLUE, base_of / top),
        ("Muon", colours.AMBER, polynomial.muon(polynomial.orthogonalized(recorded, of_base=of_base))),
        (own, colours.GREEN if of_base or polar else colours.BLUE, recorded.update),
    ]
    lines: list[tuple[str, str, NDArray[np.float64]]] = [
        (name, colour, np.asarray(values, np.float64)) for name, colour, values in wanted if len(values)
    ]
    if not any((values > 0).any() for _, _, values in lines):
        return base.empty(theme, "spectrum", base.NO_SPECTRUM_LEFT, sick=True)
    span = _span([values for _, _, values in lines])
    drawn = base.figure(theme, "spectrum")
    longest = max(len(values) for _, _, values in lines)
    if polar:
        dashed = {"color": theme.ink, "width": 1.2, "dash": "dash"}
        drawn.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=1, y1=1, line=dashed)
    for name, colour, values in lines:
        positive = np.where(values > 0, values, np.nan)
        drawn.add_scatter(
            **base.line(np.arange(1, len(values) + 1), positive, colour, 2 if name == own else 1.5),
            name=base.plain(name), hovertemplate="%{x}: %{y:.3~g}",
        )  # fmt: skip
    drawn.update_layout(
        xaxis={"title": {"text": "index"}, "range": [1, max(2, longest)], "nticks": 6, "showgrid": False},
        yaxis={"type": "log", "range": list(span), "title": {"text": "singular value"}, **base.log_ticks(*span)},
        margin={"r": 78},
    )
    ends = [(base.plain(_named(name, values)), colour, base.end_height(values)) for name, colour, values in lines]
    base.end_labels(drawn, ends, span, theme)
    return drawn


def _span(lines: list[NDArray[np.float64]]) -> tuple[float, float]:
    span = base.log_range(np.concatenate([*lines, [1.0, 1.5]]), decades=DEEPEST, pad=0.04)
    assert span is not None
    return span


def _named(name: str, values: NDArray[np.float64]) -> str:
    """Return a line's name, followed by NaN or 0 if the line has no value that can be drawn."""
    return name if (values > 0).any() else f"{name} {'NaN' if np.isnan(values).any() else '0'}"
