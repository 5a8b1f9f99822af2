"""The distribution of a tensor's entries, over the Gaussian of the same moments."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.numbers import count
from root_dash.frontend.theme import Theme
from root_dash.records import Float64Array, Histogram

FINEST = 120
"""The most bars over the whole range. Near zero the recorded bins are finer than a pixel and are joined."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of density: recorded bins. Bins that are too fine to see are joined."""

    edges: Float64Array
    counts: Float64Array
    density: Float64Array


def histogram(
    recorded: Histogram | None,
    theme: Theme,
    *,
    mean: float = np.nan,
    deviation: float = np.nan,
    threshold: float = np.nan,
    mark: str = "ε",
    sentence: str = "",
) -> go.Figure:
    """Draw the density on a logarithmic axis, over the dashed Gaussian of the same moments.

    On both sides of ±`threshold` lines with the name `mark` stand, and what lies beyond is vermilion. `sentence` says
    why there are no bars.
    """
    if recorded is None:
        return base.empty(theme, "histogram", "No histogram at this step: watch() records histograms every 10 steps.")
    bars = joined_bars(recorded)
    if bars is None:
        return base.empty(theme, "histogram", sentence or why_empty(recorded), sick=True)
    bars = split_bars(bars, threshold)
    centre = (bars.edges[1:] + bars.edges[:-1]) / 2
    colour = np.where(np.abs(centre) > threshold, colours.VERMILION, colours.BLUE)
    seen = bars.density > 0
    least = float(np.log10(bars.density[seen].min() / 3))
    most = float(np.log10(bars.density.max() * 2))
    drawn = base.figure(theme, "histogram")
    drawn.add_bar(
        x=centre[seen], y=bars.density[seen], width=np.diff(bars.edges)[seen],
        marker={"color": colour[seen], "line": {"width": 0}},
        customdata=bars.counts[seen], hovertemplate="near %{x:.3~g}: %{customdata:,} entries<extra></extra>",
    )  # fmt: skip
    if np.isfinite(mean) and deviation > 0:
        x = np.linspace(bars.edges[0], bars.edges[-1], 241)
        y = np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        above = y > 10.0 ** (least - 1)
        drawn.add_scatter(
            x=x[above], y=y[above], mode="lines", hoverinfo="skip",
            line={"color": theme.ink, "width": 1.3, "dash": "dash"},
        )  # fmt: skip
        most = max(most, float(np.log10(y.max() * 1.5)))
    reach = float(max(-bars.edges[0], bars.edges[-1]))
    if threshold < reach:
        for at in (-threshold, threshold):
            drawn.add_shape(
                type="line", x0=at, x1=at, y0=0, y1=1, yref="y domain", line={"color": colours.VERMILION, "width": 1}
            )
        drawn.add_annotation(
            text=mark, x=threshold, y=1, yref="y domain", xanchor="left", yanchor="top", xshift=4,
            font={"color": theme.words[colours.VERMILION], "size": 12},
        )  # fmt: skip
    drawn.update_layout(
        bargap=0,
        xaxis={"range": [-reach, reach], "showgrid": False, "nticks": 5, "tickformat": "~g"},
        yaxis={
            "type": "log", "range": [least, most], "title": {"text": "density"}, **base.log_ticks(least, most),
        },
    )  # fmt: skip
    return drawn


def split_bars(bars: Bars, threshold: float) -> Bars:
    """Return the bars cut at ±`threshold`; both parts of a bar keep its density and its count."""
    cuts = [at for at in (-threshold, threshold) if bars.edges[0] < at < bars.edges[-1] and at not in bars.edges]
    edges = np.sort(np.append(bars.edges, cuts))
    whole = np.searchsorted(bars.edges, edges[:-1], side="right") - 1
    return Bars(edges, bars.counts[whole], bars.density[whole])


def expected_reach(mean: float, deviation: float, entries: int) -> float:
    """Return the magnitude beyond which a Gaussian has less than one of so many entries; NaN without moments."""
    if not (np.isfinite(mean) and deviation > 0 and entries > 1):
        return np.nan
    return abs(mean) + deviation * NormalDist().inv_cdf(1 - 0.5 / entries)


def why_empty(recorded: Histogram, since: int | None = None) -> str:
    """Say what the entries are, if every entry is zero or not finite, and since which step if it is known."""
    zero = int(np.asarray(recorded.counts, np.int64).sum())
    kinds = [(n, name) for n, name in ((zero, "0"), (recorded.nan, "NaN"), (recorded.inf, "±Inf")) if n]
    ever = "" if since is None else f" since step {count(since)}"
    if len(kinds) == 1:
        number, name = kinds[0]
        return f"All {count(number)} entries are {name}{ever}." if number > 1 else f"The entry is {name}{ever}."
    parts = (f"{count(n)} {'zero' if name == '0' else name}" for n, name in kinds)
    return f"Entries{ever}: {', '.join(parts)}."


def joined_bars(recorded: Histogram) -> Bars | None:
    """Return the occupied bins, symmetric about zero, with fine bins joined; None if only zero is occupied."""
    counts = np.asarray(recorded.counts, np.float64)
    edges = np.array(recorded.edges, np.float64)
    occupied = np.flatnonzero(counts)
    # If only the middle bin is occupied, every finite entry is zero.
    if not len(occupied) or (len(occupied) == 1 and occupied[0] == len(counts) // 2):
        return None
    # The outermost bins have no outer edge: the figure draws them up to 1.25 times their inner edge.
    edges[0], edges[-1] = 1.25 * edges[1], 1.25 * edges[-2]
    reach = max(-edges[occupied[0]], edges[occupied[-1] + 1])
    inside = (edges[:-1] >= -reach) & (edges[1:] <= reach)
    counts, edges = counts[inside], np.append(edges[:-1][inside], reach)
    kept = _coarse(edges, 2 * reach / FINEST)
    summed = np.add.reduceat(counts, kept[:-1])
    joined = edges[kept]
    return Bars(joined, summed, summed / summed.sum() / np.diff(joined))


def _coarse(edges: Float64Array, width: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return the indices of the edges to keep, so that no bin is narrower than `width`; symmetric about zero."""
    half = len(edges) // 2
    kept = [len(edges) - 1]
    for i in range(len(edges) - 2, half - 1, -1):
        if edges[kept[-1]] - edges[i] >= width:
            kept.append(i)
    # The bins about zero become one, between the innermost edge and its mirror image.
    while len(kept) > 1 and 2 * edges[kept[-1]] < width:
        kept.pop()
    inner = np.array(kept)[::-1]
    return np.concatenate([len(edges) - 1 - inner[::-1], inner]).astype(np.intp)
