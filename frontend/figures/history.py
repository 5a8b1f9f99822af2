"""A small figure of one statistic of one layer over the steps."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.theme import Theme
from root_dash.records import History, Statistic


def history(recorded: History | None, statistic: Statistic, theme: Theme) -> go.Figure:
    """Draw the curve; on a logarithmic axis if the statistic is best read so."""
    plot = f"history-{statistic.name}"
    if recorded is None or not len(recorded.steps):
        return base.empty(theme, plot, "not recorded")
    if not np.isfinite(recorded.values).any():
        return base.empty(theme, plot, "no finite value")
    values = recorded.values
    span = base.log_range(values) if statistic.log else None
    drawn = base.figure(theme, plot)
    drawn.add_scatter(
        **base.line(recorded.steps, np.where(values > 0, values, np.nan) if span else values, colours.BLUE, 1.4),
        hovertemplate="step %{x:,}: %{y:.4~g}<extra></extra>",
    )  # fmt: skip
    drawn.update_layout(
        xaxis={**base.STEP_AXIS, "nticks": 4, "showgrid": False},
        yaxis={"nticks": 4, "tickformat": "~g"} if span is None
        else {"type": "log", "range": list(span), **base.log_ticks(*span)},
    )  # fmt: skip
    base.marker(drawn, theme)
    return drawn
