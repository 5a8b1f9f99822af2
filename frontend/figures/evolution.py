"""The distribution of a tensor's entries over the steps, in the same bins at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend.figures import base
from root_dash.frontend.figures.scale import log_scale
from root_dash.frontend.numbers import value
from root_dash.frontend.theme import Theme
from root_dash.records import Float64Array, HistogramHistory

DECADES = 5
"""How many decades the axis reaches below the largest entry. All smaller entries share the band about zero."""
JOINED = 2
"""How many recorded bins a row of the heat map joins."""


@dataclass(frozen=True, slots=True)
class Bands:
    """Shares of the entries per band of magnitude: `share[i, t]` of the band from `low[i]` to `high[i]`."""

    low: Float64Array
    high: Float64Array
    share: Float64Array


def evolution(recorded: HistogramHistory | None, theme: Theme, onset: int | None = None) -> go.Figure:
    """Draw the share of the entries in each band of magnitude over the steps, on a symmetric logarithmic axis."""
    if recorded is None or not len(recorded.steps):
        return base.empty(theme, "evolution", "No histograms yet: watch() records histograms every 10 steps.")
    bands = joined_bands(recorded)
    if bands is None:
        return base.empty(theme, "evolution", "Every entry so far is zero or not finite.", sick=True)
    drawn = base.figure(theme, "evolution")
    most = float(bands.share.max())
    names = [_name(low, high) for low, high in zip(bands.low, bands.high, strict=True)]
    low = max(float(bands.share[bands.share > 0].min()), most * 1e-5)
    low = min(low, most / 10)
    scale = log_scale(low, (low * most) ** 0.5, most).colours(((-1.0, theme.density[0][1]), *theme.density[1:]))
    rows = len(names)
    drawn.add_heatmap(
        x=base.cell_edges(recorded.steps), y=names,
        z=np.where(bands.share > 0, bands.share, np.nan).astype(np.float32), zmin=low, zmax=most, colorscale=scale,
        showscale=False, hoverongaps=False,
        hovertemplate="step %{x:,.0f}<br>%{z:.2~p} of the entries<br>%{y}<extra></extra>",
    )  # fmt: skip
    ticks = _ticks(bands)
    drawn.update_layout(
        xaxis={**base.step_axis(recorded.steps), "showgrid": False},
        yaxis={
            "type": "category",
            "tickvals": [at for at, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "range": [-0.5, rows - 0.5],
            "showgrid": False,
        },
    )
    if not bands.share.any(axis=0).all():
        drawn.add_annotation(
            text="blank: no finite entry", x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="top",
            bgcolor=theme.card, opacity=0.9,
        )  # fmt: skip
    base.onset(drawn, onset)
    base.marker(drawn, theme)
    return drawn


def joined_bands(recorded: HistogramHistory) -> Bands | None:
    """Join the occupied bins in twos, and the bins nearest to zero into one band; None if no bin is occupied."""
    counts = np.asarray(recorded.counts, np.float64)
    middle = counts.shape[1] // 2
    folded = counts.sum(axis=0)
    folded = folded[middle + 1 :] + folded[:middle][::-1]
    occupied = np.flatnonzero(folded)
    if not len(occupied):
        return None
    outer = int(occupied[-1]) + 1
    inner = max(0, int(occupied[0]), outer - round(DECADES * np.log2(10) * 4))
    inner -= (outer - inner) % JOINED  # whole bands only
    if inner < 0:
        outer, inner = outer + inner + JOINED, 0
    edges = np.array(recorded.edges[middle + 1 :], np.float64)
    edges[-1] = 1.25 * edges[-2]
    bounds = edges[inner : outer + 1 : JOINED]
    side = np.arange(inner, outer, JOINED)
    above = np.add.reduceat(counts[:, middle + 1 : middle + 1 + outer], side, axis=1)
    below = np.add.reduceat(counts[:, :middle][:, ::-1][:, :outer], side, axis=1)
    total = counts.sum(axis=1)
    centre = total - above.sum(axis=1) - below.sum(axis=1)
    all_bands = np.concatenate([below[:, ::-1], centre[:, None], above], axis=1)
    share = (all_bands / np.maximum(total, 1)[:, None]).T
    return Bands(
        low=np.concatenate([-bounds[:0:-1], [-bounds[0]], bounds[:-1]]),
        high=np.concatenate([-bounds[-2::-1], [bounds[0]], bounds[1:]]),
        share=share,
    )


def _ticks(bands: Bands) -> list[tuple[float, str]]:
    """Return the ticks: zero, and every second power of ten on both sides, at its position between the bands."""
    half = len(bands.low) // 2
    positive = np.append(bands.low[half + 1 :], bands.high[-1])
    low, high = np.log10(positive[0]), np.log10(positive[-1])
    ticks = [(float(half), "0")]
    if high > low:
        powers = range(int(np.ceil(low + 0.3)), int(np.floor(high)) + 1)
        for power in list(powers)[::-2]:
            place = half + 0.5 + (power - low) / (high - low) * (len(positive) - 1)
            text = value(10.0**power, 2)
            ticks += [(float(place), text), (float(2 * half - place), f"−{text}")]
    return sorted(ticks)


def _name(low: float, high: float) -> str:
    return f"{value(low, 2)} to {value(high, 2)}"
