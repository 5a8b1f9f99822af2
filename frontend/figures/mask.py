"""The map of outliers by blocks of the matrix, with the totals of rows and columns beside the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.numbers import count
from root_dash.frontend.theme import Theme
from root_dash.records import CountArray, Float64Array, IntArray, Mask, outlying

BARS = 160
"""The most bars beside the map. A bar shows the worst of its rows or columns."""
NAMED = 3
"""The most rows or columns that are named."""


@dataclass(frozen=True, slots=True)
class LineTotals:
    """The share of outliers per bar: the bars' edges, the worst line (row or column) of each, and its share."""

    edges: Float64Array
    line: IntArray
    share: Float64Array
    outlying: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """Whether a row of the bar is an outlier, as `records.outlying` says."""


def mask(recorded: Mask | None, theme: Theme, *, sentence: str = "") -> go.Figure:
    """Draw the share of outliers per block, per row at the right and per column above; bars with an outlying row or
    column are vermilion, as `records.outlying` tells them.
    """
    if recorded is None or not recorded.pooled.size:
        return base.empty(theme, "mask", sentence or "No mask at this step: watch() records masks with the spectra.")
    shares = block_shares(recorded)
    rows, cols = line_totals(recorded.row_totals, recorded.cols), line_totals(recorded.col_totals, recorded.rows)
    drawn = base.figure(theme, "mask")
    most = float(shares.max()) or 1.0
    drawn.add_heatmap(
        x=_block_edges(recorded.cols, shares.shape[1]), y=_block_edges(recorded.rows, shares.shape[0]),
        z=shares.astype(np.float32), zmin=0, zmax=most, colorscale=colours.scale(theme.density), showscale=False,
        hovertemplate="row %{y:.0f}, column %{x:.0f}<br>%{z:.2~p} beyond ε<extra></extra>",
    )  # fmt: skip
    for totals, side, line in ((rows, "h", "row"), (cols, "v", "column")):
        centre, width = (totals.edges[1:] + totals.edges[:-1]) / 2, np.diff(totals.edges)
        axes = (
            {"x": totals.share, "y": centre, "xaxis": "x2"}
            if side == "h"
            else {"x": centre, "y": totals.share, "yaxis": "y2"}
        )
        drawn.add_bar(
            orientation=side, width=width, **axes, customdata=np.stack([totals.line, totals.share], axis=1),
            marker={"color": np.where(totals.outlying, colours.VERMILION, colours.BLUE), "line": {"width": 0}},
            hovertemplate=f"{line} %{{customdata[0]:,}}: %{{customdata[1]:.2~p}}<extra></extra>",
        )  # fmt: skip
    drawn.update_layout(
        bargap=0,
        xaxis={"domain": [0, 0.87], "showgrid": False, "nticks": 5, "range": [0, recorded.cols]},
        yaxis={"domain": [0, 0.86], "showgrid": False, "nticks": 5, "range": [recorded.rows, 0]},
        xaxis2={"domain": [0.885, 1], "anchor": "y", "showgrid": False, "showticklabels": False, "rangemode": "tozero"},
        yaxis2={"domain": [0.88, 1], "anchor": "x", "showgrid": False, "showticklabels": False, "rangemode": "tozero"},
    )
    return drawn


def block_shares(recorded: Mask) -> Float64Array:
    """Return the share of each block's entries that lie beyond ε."""
    heights = np.diff(_block_edges(recorded.rows, recorded.pooled.shape[0]))
    widths = np.diff(_block_edges(recorded.cols, recorded.pooled.shape[1]))
    share: Float64Array = recorded.pooled.astype(np.float64) / np.maximum(np.outer(heights, widths), 1)
    return share


def line_totals(counts: CountArray | IntArray, entries: int) -> LineTotals:
    """Return the share of outliers per line (row or column), with several lines to a bar if there are more than `BARS`.

    `entries` is the number of entries of a line.
    """
    share = np.asarray(counts, np.float64) / max(entries, 1)
    bars = min(BARS, len(share))
    edges = _block_edges(len(share), bars)
    line = np.array([a + int(np.argmax(share[a:b])) for a, b in zip(edges[:-1], edges[1:], strict=True)], np.int64)
    return LineTotals(edges.astype(np.float64), line, share[line], outlying(np.asarray(counts, np.uint32))[line])


def named(counts: CountArray | IntArray, noun: str) -> str:
    """Return the outlying lines in words, those with the most outliers first: rows 17, 5, 40 +2; empty for none."""
    totals = np.asarray(counts, np.uint32)
    lines = np.flatnonzero(outlying(totals))
    if not len(lines):
        return ""
    worst = lines[np.argsort(-totals[lines].astype(np.int64), kind="stable")[:NAMED]]
    more = f" +{count(len(lines) - NAMED)}" if len(lines) > NAMED else ""
    return f"{noun}{'s' if len(lines) > 1 else ''} {', '.join(count(int(line)) for line in worst)}{more}"


def _block_edges(length: int, blocks: int) -> IntArray:
    return np.arange(blocks + 1, dtype=np.int64) * length // blocks
