"""Scalars over the map of layers: one figure with one axis of steps, so that zoom and crosshair go through all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from root_dash.frontend.figures import base, strips
from root_dash.frontend.figures.map_rows import Row, cut, short_names
from root_dash.frontend.figures.scale import Scale
from root_dash.frontend.findings import Finding, rule_words
from root_dash.frontend.numbers import count
from root_dash.frontend.theme import AMBER, MONO, VERMILION, Theme
from root_dash.records import Event, Float64Array, Grid, History, Statistic

ROW = (9.0, 22.0)
"""Least and largest height of a row, in pixels."""
_MAP, _STRIP, _GAP = 500.0, (78.0, 180.0), 16.0
"""Height of the map if its rows allow, least and largest height of a strip of scalars, height of the band of events."""
_ROOM = 48.0
"""Height of the axis below the map and of the labels of onsets above the strips."""
_FEW_STEPS = 8
"""Steps below which every step has a tick: the axis would else have ticks between the steps."""
ONSETS = 6
"""Onsets that are drawn as lines."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of the map, (rows, columns): values with a colour, and cells of no colour on the scale."""

    values: Float64Array
    zero: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    """Cells with a value or a gradient entry that is not finite."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the map shows: a statistic's grid, its rows and cells, and the scale of its colours.

    `words` tells of the cells of one row, by row, what the number alone does not say.
    """

    statistic: Statistic
    grid: Grid
    rows: tuple[Row, ...]
    cells: Cells
    scale: Scale
    words: Mapping[int, Sequence[str]] = field(default_factory=dict)
    link: Callable[[int], str] = "/l/{}".format
    """The address of a layer of an id."""


def health_map(
    scalars: Sequence[History],
    mapped: Mapped | None,
    theme: Theme,
    *,
    log: bool = False,
    found: Sequence[Finding] = (),
    events: Sequence[Event] = (),
    sentence: str = "Nothing recorded yet: the first frame appears here by itself.",
) -> go.Figure:
    """Draw curves of `scalars` above the map, onsets of findings as dotted lines through both, and ticks of events.

    Without a map the figure has the curves and `sentence`.
    """
    held = strips.strips([scalar for scalar in scalars if len(scalar.steps)])
    if mapped is None and not held:
        return base.empty(theme, "map", sentence)
    rows = 1 if mapped is None else len(mapped.rows)
    map_height = float(np.clip(_MAP / rows, *ROW)) * rows if mapped is not None else 4 * ROW[1]
    # The strips take what the rows of a small model leave.
    strip = float(np.clip((_MAP - map_height) / max(len(held), 1), *_STRIP))
    whole = map_height + _GAP + strip * len(held)
    drawn = base.figure(theme, "map")
    drawn.update_layout(
        xaxis={
            **base.STEP_AXIS, "anchor": "y", "showgrid": False,
            "showspikes": True, "spikemode": "across", "spikesnap": "cursor", "spikethickness": 1, "spikedash": "solid",
            "spikecolor": theme.grey,
        },
        yaxis={"domain": [0, map_height / whole], "autorange": "reversed", "showgrid": False, "fixedrange": True},
        margin={"t": 20, "r": 84 if held else 10},
    )  # fmt: skip
    for at, members in enumerate(held):
        top = 1 - at * strip / whole
        _add_strip(drawn, members, at + 2, (top - (strip - 10) / whole, top), theme, log=log)
    low, high = (ROW[0] * rows, ROW[1] * rows) if mapped is not None else (map_height, map_height)
    meta: dict[str, Any] = {"least": low + whole - map_height + _ROOM, "most": high + whole - map_height + _ROOM}
    if mapped is None:
        drawn.update_yaxes(selector={"autorange": "reversed"}, visible=False, range=[1, 0], autorange=None)
        drawn.add_annotation(
            text=base.wrap(sentence, 70), x=0.5, y=map_height / whole / 2, xref="paper", yref="paper",
            font={"size": 12},
        )  # fmt: skip
    else:
        _add_map(drawn, mapped, theme)
        meta |= _places(mapped)
        base.marker(drawn, theme)
        drawn.add_shape(
            name="row", visible=False, type="rect", xref="x domain", x0=0, x1=1, y0=0, y1=1,
            line={"color": theme.second, "width": 1}, fillcolor="rgba(0,0,0,0)",
        )  # fmt: skip
        if mapped.grid.ends[-1] - mapped.grid.starts[0] < _FEW_STEPS:
            drawn.update_xaxes(dtick=1, tickformat="d")
    drawn.update_layout(meta=meta)
    _add_events(drawn, events, len(held) + 2, (map_height / whole, (map_height + _GAP) / whole), theme)
    _add_onsets(drawn, found, mapped, theme)
    return drawn


def cells_of(grid: Grid, rows: Sequence[Row], scale: Scale, broken: NDArray[np.bool_], *, zero: bool) -> Cells:
    """Return the cells of the rows of a grid; of a block's layers the one farthest from the scale's paper colour.

    Args:
        grid: the grid of all layers.
        rows: the rows; their members are places in the grid.
        scale: the scale of the colours.
        broken: cells of the grid in which something is not finite.
        zero: whether a value of 0 has no colour on the scale.
    """
    shape = (len(rows), grid.values.shape[1])
    values, zeros, bad = np.full(shape, np.nan), np.zeros(shape, bool), np.zeros(shape, bool)
    for at, row in enumerate(rows):
        members = np.array(row.members)
        raw = grid.values[members]
        bad[at] = (broken[members] | np.isinf(raw)).any(axis=0)
        zeros[at] = zero & (raw == 0).any(axis=0)
        usable = np.where(np.isfinite(raw) & ((raw != 0) | (not zero)), raw, np.nan)
        if len(members) > 1:
            far = np.nan_to_num(scale.away(np.where(np.isnan(usable), scale.ends[1], usable)), nan=-1.0)
            far = np.where(np.isnan(usable), -1.0, far)
            usable = np.take_along_axis(usable, far.argmax(axis=0)[None], axis=0)
        values[at] = usable[0]
    return Cells(values, zeros, bad)


def _add_strip(
    drawn: go.Figure, members: Sequence[History], axis: int, domain: tuple[float, float], theme: Theme, *, log: bool
) -> None:
    log = log and any((np.asarray(scalar.values) > 0).any() for scalar in members)
    span = strips.span(members, log=log)
    finite = any(np.isfinite(scalar.values).any() for scalar in members)
    ticks = base.log_ticks(*span) if log else {"nticks": 3, "tickformat": "~g" if abs(span[1]) >= 1e-3 else "~e"}
    drawn.update_layout(
        {
            f"yaxis{axis}": {
                "domain": domain, "anchor": "x", "fixedrange": True, "range": span, "showticklabels": finite,
                **({"type": "log"} if log else {}), **ticks,
            }
        }
    )  # fmt: skip
    for scalar, colour in zip(members, strips.colours_of(members), strict=True):
        values = np.asarray(scalar.values, np.float64)
        drawn.add_scatter(
            **base.line(scalar.steps, np.where(values > 0, values, np.nan) if log else values, colour, 1.6),
            yaxis=f"y{axis}", name=base.plain(scalar.name), hovertemplate="step %{x:,}: %{y:.4~g}",
        )  # fmt: skip
    labels = strips.ends(members, sum(span) / 2, log=log)
    gap = (domain[1] - domain[0]) * (0.45 if any("<br>" in text for text, _, _ in labels) else 0.24)
    base.end_labels(drawn, labels, span, theme, domain=domain, gap=gap)


def _add_map(drawn: go.Figure, mapped: Mapped, theme: Theme) -> None:
    rows, cells, grid = mapped.rows, mapped.cells, mapped.grid
    names = [base.plain(row.name) for row in rows]
    edges = np.append(grid.starts, grid.ends[-1] + 1) - 0.5  # a column of one step has the step in its middle
    place: dict[str, Any] = {"x": edges, "y": names, "ygap": 1}
    low, _, high = mapped.scale.ends
    where = "<b>%{y}</b><br>step %{x:,.0f}<br>"
    label = mapped.statistic.label
    quiet = [""] * len(grid.starts)  # Plotly writes a dash for a text that is missing
    words = [mapped.words.get(at, quiet) for at in range(len(rows))] if mapped.words else None
    drawn.add_heatmap(
        z=cells.values.astype(np.float32), zmin=low, zmax=high, hoverongaps=False, showscale=False,
        colorscale=mapped.scale.colours(theme.severity),
        text=words, hovertemplate=f"{where}{label} %{{z:.3~g}}{'%{text}' if words else ''}<extra></extra>", **place,
    )  # fmt: skip
    _add_plain(drawn, cells.zero & ~cells.broken, place, theme.zero, f"{where}{label} is exactly 0<extra></extra>")
    _add_plain(drawn, cells.broken, place, theme.ink, f"{where}not finite<extra></extra>")
    shown = short_names([row.name for row in rows if row.opened is None])
    texts = [_label(row, shown.get(row.name, row.name), mapped) for row in rows]
    drawn.update_yaxes(
        selector={"autorange": "reversed"}, type="category", tickmode="array", tickvals=names, ticktext=texts,
        tickfont={"family": MONO, "size": 10 if len(rows) <= 48 else 9},
    )  # fmt: skip


def _label(row: Row, short: str, mapped: Mapped) -> str:
    """Return a row's name for the axis: a link to the layer, or a block's name after the sign that folds it."""
    if row.opened is not None:
        return f"{'▾' if row.opened else '▸'} {base.plain(cut(row.name, 24))}"
    layer = mapped.grid.layers[row.members[0]]
    return f'<a href="{mapped.link(layer.id)}" target="_self">{base.plain(cut(short))}</a>'


def _add_plain(drawn: go.Figure, cells: NDArray[np.bool_], place: dict[str, Any], colour: str, hover: str) -> None:
    """Paint cells in one colour with a heat map that has only the columns from the first to the last such cell.

    The heat map has all rows: on an axis of names, Plotly counts the rows of a heat map from the first name.
    """
    if not cells.any():
        return
    columns = np.flatnonzero(cells.any(axis=0))
    first, last = int(columns[0]), int(columns[-1]) + 1
    drawn.add_heatmap(
        z=[[1 if cell else None for cell in line] for line in cells[:, first:last]], zmin=0, zmax=1,
        hovertemplate=hover, colorscale=[[0, colour], [1, colour]], showscale=False, hoverongaps=False,
        **{**place, "x": place["x"][first : last + 1]},
    )  # fmt: skip


def _places(mapped: Mapped) -> dict[str, Any]:
    """Return what a click needs: a cell gives the row's name and the cell's middle."""
    layers, blocks = {}, {}
    for row in mapped.rows:
        if row.opened is None:
            layers[base.plain(row.name)] = mapped.grid.layers[row.members[0]].id
        else:
            blocks[base.plain(row.name)] = row.name
    ids = [mapped.grid.layers[row.members[0]].id if row.opened is None else None for row in mapped.rows]
    rows = [None if row.opened is None else row.name for row in mapped.rows]
    return {"layers": layers, "blocks": blocks, "rows": rows, "ids": ids, "starts": mapped.grid.starts.tolist()}


def _add_events(
    drawn: go.Figure, events: Sequence[Event], axis: int, domain: tuple[float, float], theme: Theme
) -> None:
    """Add a tick for each step with events, in a band of its own."""
    texts: dict[int, list[str]] = {}
    for event in events:
        texts.setdefault(event.step, []).append(f"<b>{base.plain(event.kind)}</b> {base.plain(event.text)}")
    if not texts:
        return
    hidden = {"domain": domain, "anchor": "x", "visible": False, "fixedrange": True, "range": [0, 1]}
    drawn.update_layout({f"yaxis{axis}": hidden})
    drawn.add_scatter(
        x=list(texts), y=[0.5] * len(texts), yaxis=f"y{axis}", mode="markers", name="events", cliponaxis=False,
        text=["<br>".join(base.wrap(text, 60) for text in lines[:6]) for lines in texts.values()],
        marker={"symbol": "triangle-down", "size": 8, "color": theme.grey, "line": {"width": 0}},
        hovertemplate="step %{x:,}<br>%{text}<extra></extra>",
    )  # fmt: skip


def _add_onsets(drawn: go.Figure, found: Sequence[Finding], mapped: Mapped | None, theme: Theme) -> None:
    """Add a dotted line at each finding's first sick step, and name the first finding, which is the worst."""
    steps: dict[int, Finding] = {}
    for finding in found:
        steps.setdefault(finding.verdict.since, finding)
    for at, (step, finding) in enumerate(list(steps.items())[:ONSETS]):
        colour = theme.grey if not finding.lasts else VERMILION if finding.verdict.severity == "critical" else AMBER
        drawn.add_shape(
            name="onset", type="line", x0=step, x1=step, y0=0, y1=1, yref="paper",
            line={"color": colour, "width": 1.2, "dash": "dot"},
        )  # fmt: skip
        if at == 0:
            drawn.add_annotation(
                text=base.plain(_onset(finding, mapped)), x=step, y=1, yref="paper", yanchor="bottom",
                xanchor="right" if _is_late(step, mapped) else "left",
                font={"size": 11, "color": theme.words.get(colour, theme.second)},
            )  # fmt: skip


def _onset(finding: Finding, mapped: Mapped | None) -> str:
    layer = finding.verdict.layer
    if layer is None or mapped is None or layer >= len(mapped.grid.layers):
        return f"{rule_words(finding.verdict.rule)} · step {count(finding.verdict.since)}"
    names = [one.name for one in mapped.grid.layers]
    return f"{cut(short_names(names).get(names[layer], names[layer]))} · step {count(finding.verdict.since)}"


def _is_late(step: int, mapped: Mapped | None) -> bool:
    return mapped is not None and step > (mapped.grid.starts[0] + mapped.grid.ends[-1]) / 2
