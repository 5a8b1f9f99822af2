"""The error of the orthogonalization over the steps, beside the errors of other coefficients on the same spectra."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.theme import Theme
from root_dash.records import History


def errors(
    own: History | None,
    muon: History | None,
    paper: History | None,
    theme: Theme,
    *,
    name: str = "ROOT",
    onset: int | None = None,
    sentence: str = "",
) -> go.Figure:
    """Draw three curves, named at their ends, on a logarithmic axis: this run's (`name`), Muon's and the paper's."""
    named = ((own, name, colours.GREEN), (muon, "Muon", colours.AMBER), (paper, "paper", colours.PURPLE))
    curves = [(h, text, colour) for h, text, colour in named if h is not None and np.isfinite(h.values).any()]
    span = base.log_range(np.concatenate([h.values for h, _, _ in curves])) if curves else None
    if span is None:
        recorded = any(h is not None and len(h.steps) for h, _, _ in named)
        nothing = "No spectra yet: the error is computed from spectra."
        return base.empty(
            theme,
            "errors",
            sentence or (base.NO_SPECTRUM_LEFT if recorded else nothing),
            sick=recorded and not sentence,
        )
    drawn = base.figure(theme, "errors")
    for history, text, colour in reversed(curves):
        drawn.add_scatter(
            **base.line(
                history.steps, np.where(history.values > 0, history.values, np.nan), colour,
                2 if colour == colours.GREEN else 1.5,
            ),
            name=base.plain(text), hovertemplate="step %{x:,}: %{y:.3~g}",
        )  # fmt: skip
    drawn.update_layout(
        xaxis={**base.step_axis(max((h.steps for h, _, _ in curves), key=len)), "showgrid": False},
        yaxis={"type": "log", "range": list(span), **base.log_ticks(*span)},
        margin={"r": 52},
    )
    ends = [(base.plain(text), colour, base.end_height(history.values)) for history, text, colour in curves]
    base.end_labels(drawn, ends, span, theme)
    base.onset(drawn, onset)
    base.marker(drawn, theme)
    return drawn
