"""The scalars over the map of layers, with the choice of what the map shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import dash_mantine_components as dmc
import numpy as np
from dash import dcc, html
from numpy.typing import NDArray

from root_dash.frontend import address, ids
from root_dash.frontend.figures import strips
from root_dash.frontend.figures.health_map import Cells, Mapped, cells_of, health_map
from root_dash.frontend.figures.map_rows import Order, Row, choose
from root_dash.frontend.figures.scale import Scale, scale_of, severity_scale
from root_dash.frontend.findings import Finding, findings, rule_words
from root_dash.frontend.layout import aria, data
from root_dash.frontend.numbers import count, plural
from root_dash.frontend.panels.controls import segmented, text
from root_dash.frontend.panels.panel import Control, Drawing, Panel, Selection
from root_dash.frontend.questions import SEVERITY, SEVERITY_RULE, groups, questions
from root_dash.frontend.theme import Theme, scale
from root_dash.health import RULES
from root_dash.records import Event, Grid, History, Statistic, statistic
from root_dash.records.verdict import rule_numbers

if TYPE_CHECKING:
    from root_dash.store import Store

_SHARES = ("grad_nan", "grad_inf", "grad_zero")
"""Counts of entries, which compare between layers as shares of the layer's entries."""
_BROKEN = 100.0
"""Severity of a layer with a gradient or a weight that is not finite."""
_LOUD = 0.75
"""Severity from which the hover text names the rule."""
_EVENTS = 200
"""Events that are drawn."""


# The controls


def _statistics(id: str, value: str) -> Any:
    """Return the chips, one for each question, and the picker of all statistics."""
    chips = [
        html.Button(question.name, className="chip", title=question.asks, **data(stat=question.statistics[0],
                    stats=" ".join(question.statistics)), **aria(pressed=str(value in question.statistics).lower()))
        for question in questions() if question.name != "other"
    ]  # fmt: skip
    more = dmc.Select(
        id=id, value=value, allowDeselect=False, searchable=True, size="xs", className="stat-picker",
        maxDropdownHeight=460, **aria(label="statistic"),
        data=[
            {"group": group, "items": [{"value": name, "label": label} for name, label in options.items()]}
            for group, options in groups().items()
        ],
    )  # fmt: skip
    return html.Div([*chips, more], className="chips", role="group", **aria(label="what the map shows"))


def _opened(id: str, value: str) -> Any:
    return dcc.Input(id=id, value=value, type="hidden")


def listed(text: str) -> list[str]:
    """Return the names of a list in the URL; `keep` in `assets/view.js` wrote the list."""
    return [unquote(part) for part in text.split(",") if part]


def _chosen(value: str | Sequence[str] | None) -> Sequence[str]:
    return listed(value) if isinstance(value, str) else value or ()


def _scalars(id: str, value: str) -> Any:
    return dmc.MultiSelect(
        id=id, value=listed(value), data=[], size="xs", className="scalars", placeholder="scalars", searchable=True,
        clearable=True, maxValues=strips.MOST, maxDropdownHeight=360, hidePickedOptions=False,
        **aria(label="scalars above the map"),
    )  # fmt: skip


STATISTIC = Control(
    "stat", tuple(name for options in groups().values() for name in options), _statistics, in_url=True, rescales=False
)
ROWS = segmented(
    "rows", "which layers, in which order", {"model": "model order", "worst": "worst first", "sick": "only sick"},
    rescales=False,
)  # fmt: skip
FILTER = text("only", "filter layers by name", "filter: *.attn.*")
OPENED = Control(ids.OPENED, (), _opened, in_url=True, rescales=False)
SCALARS = Control(ids.SCALARS, (), _scalars, in_url=True, rescales=False)
AXIS = segmented("axis", "axis of the scalars", {"lin": "lin", "log": "log"}, rescales=False)


# Reading


def _count_broken(store: Store, run_id: int) -> Grid:
    """Return how many gradient entries of each layer were NaN or infinite."""
    nan, inf = store.grid(run_id, "grad_nan"), store.grid(run_id, "grad_inf")
    # If a frame comes between the two reads, one grid is longer than the other.
    return nan if nan.values.shape != inf.values.shape else replace(nan, values=nan.values + inf.values)


def _read(selection: Selection) -> dict[str, Any]:
    store, run_id, values = selection.store, selection.run, selection.values
    name = values[STATISTIC.id]
    names = strips.chosen(store.scalar_names(run_id), _chosen(values[SCALARS.id]))
    severe = name == SEVERITY
    grid = store.grid(run_id, name)
    return {
        "run_id": run_id,
        "shown": statistic(name),
        "scalars": [store.scalar(run_id, scalar) for scalar in names],
        "grid": grid,
        "rules": store.grid(run_id, SEVERITY_RULE) if severe else None,
        "severity": grid if severe else store.grid(run_id, SEVERITY),
        "broken": grid if severe else _count_broken(store, run_id),
        "found": findings(selection.judgement.verdicts),
        "events": store.events(run_id)[-_EVENTS:],
        "ended": store.run(run_id).ended_at is not None,
        "order": values[ROWS.id],
        "pattern": values[FILTER.id] or "",
        "opened": listed(values[OPENED.id] or ""),
        "log": values[AXIS.id] == "log",
    }


# Drawing


def _draw(
    theme: Theme,
    *,
    run_id: int,
    shown: Statistic,
    scalars: Sequence[History],
    grid: Grid,
    rules: Grid | None,
    severity: Grid,
    broken: Grid,
    found: Any,
    events: Sequence[Event],
    ended: bool,
    order: Order,
    pattern: str,
    opened: Sequence[str],
    log: bool,
) -> Drawing:
    lines: list[Finding] = [*found.now, *found.earlier]
    if not grid.values.size:
        figure = health_map(scalars, None, theme, log=log, found=lines, events=events, **_nothing(shown, grid, ended))
        return Drawing(figure, title=_title(shown), hint=shown.definition)
    grid = shares(grid) if shown.name in _SHARES else grid
    bad = broken_cells(grid, broken, severe=shown.name == SEVERITY)
    has = np.asarray(np.isfinite(grid.values).any(axis=1) | bad.any(axis=1))
    colours = severity_scale() if shown.name == SEVERITY else scale_of(grid.values, log=shown.log)
    chosen = choose(
        grid.layers, has, worst_of(severity, len(grid.layers)), order=order, pattern=pattern, opened=opened,
        sick={place for finding in found.now for one in finding.all if (place := one.layer) is not None},
    )  # fmt: skip
    if not chosen.rows:
        sentence = _nothing(shown, grid, ended) if not has.any() else {"sentence": _no_row(order, pattern)}
        figure = health_map(scalars, None, theme, log=log, found=lines, events=events, **sentence)
        return Drawing(figure, title=_title(shown), hint=shown.definition)
    cells = cells_of(grid, chosen.rows, colours, bad, zero=shown.log)
    mapped = Mapped(
        shown, grid, chosen.rows, cells, colours,
        words={} if rules is None else rules_in_words(rules, chosen.rows, cells.values),
        link=partial(address.layer, run_id),
    )  # fmt: skip
    figure = health_map(scalars, mapped, theme, log=log, found=lines, events=events)
    hint = [
        html.Span(hint_of(shown, grid, int((~has).sum()), chosen.left_out), className="hint-words"),
        legend(colours, cells, theme),
    ]
    return Drawing(figure, title=_title(shown), hint=hint)


def _title(shown: Statistic) -> str:
    return "Health map" if shown.name == SEVERITY else shown.label[:1].upper() + shown.label[1:]


def _nothing(shown: Statistic, grid: Grid, ended: bool) -> dict[str, str]:
    """Return the sentence that says why there is no map."""
    if not grid.values.size and (shown.name == SEVERITY or not grid.layers):
        return {"sentence": "Nothing was recorded before the run ended."} if ended else {}
    if shown.name == SEVERITY:
        return {
            "sentence": "This run was recorded without severities. The other questions above show what was recorded."
        }
    if grid.values.size:
        return {"sentence": f"No layer has a value of “{shown.label}”."}
    return {"sentence": f"No layer has “{shown.label}” yet: watch() records it with the {shown.kind}."}


def _no_row(order: Order, pattern: str) -> str:
    named = f" whose name matches “{pattern}”" if pattern.strip() else ""
    return f"No {'sick ' if order == 'sick' else ''}layer{named}."


def shares(grid: Grid) -> Grid:
    """Return counts of entries as shares of each layer's entries."""
    sizes = np.array([max(layer.size, 1) for layer in grid.layers], np.float64)
    return replace(grid, values=grid.values / sizes[:, None])


def worst_of(severity: Grid, layers: int) -> NDArray[np.float64]:
    """Return each layer's worst severity in a grid, which may be older and have fewer layers; NaN if there is none."""
    worst = np.full(layers, np.nan)
    if severity.values.size:
        seen = np.where(np.isnan(severity.values), -np.inf, severity.values).max(axis=1)[:layers]
        worst[: len(seen)] = np.where(np.isneginf(seen), np.nan, seen)
    return worst


def broken_cells(grid: Grid, counts: Grid, *, severe: bool) -> NDArray[np.bool_]:
    """Return the cells of a grid in which a gradient or a weight was not finite.

    The severity tells of both. Beside another statistic the counts of gradient entries tell, whose columns may differ.
    """
    if severe:
        return np.asarray(grid.values >= _BROKEN)
    cells = np.zeros(grid.values.shape, bool)
    if not counts.values.size:
        return cells
    rows = {layer.id: row for row, layer in enumerate(grid.layers)}
    for row, column in zip(*(at.tolist() for at in np.nonzero(counts.values > 0)), strict=True):
        at = rows.get(counts.layers[row].id)
        if at is not None:
            first, last = np.searchsorted(grid.starts, [counts.starts[column], counts.ends[column]], side="right") - 1
            cells[at, max(int(first), 0) : max(int(last), 0) + 1] = True
    return cells


def rules_in_words(rules: Grid, rows: Sequence[Row], values: NDArray[np.float64]) -> Mapping[int, Sequence[str]]:
    """Return what the hover text adds to the severities of a row, by row: the rule in words. Quiet rows are absent."""
    found: dict[int, list[str]] = {}
    for at, row in enumerate(rows):
        loud = np.flatnonzero(values[at] >= _LOUD)
        if not len(loud) or rules.values.shape[1] != values.shape[1]:
            continue
        numbers = rule_numbers(np.fmax.reduce(rules.values[list(row.members)], axis=0))
        line = [""] * values.shape[1]
        for column in loud.tolist():
            if 0 < numbers[column] < len(RULES):
                line[column] = f" × bound<br>{rule_words(RULES[numbers[column]])}"
        found[at] = line
    return found


def hint_of(shown: Statistic, grid: Grid, absent: int, left_out: int) -> str:
    """Return how to read the map: the definition, the steps of a column, and how many layers have no row and why."""
    parts = ["each layer against its own past" if shown.name == SEVERITY else shown.definition]
    if shown.name in _SHARES:
        parts = [f"share of the {parts[0]}"]
    if left_out:
        parts.append(f"{plural(left_out, 'layer')} more")
    if absent:
        parts.append(f"{plural(absent, 'layer has', 'layers have')} no such statistic")
    if grid.total > grid.shown > 0:
        parts.append(f"about {count(round(grid.total / grid.shown))} steps a column, its extreme")
    return " · ".join(parts)


def legend(colours: Scale, cells: Cells, theme: Theme) -> Any:
    """Return the scale of the colours, evenly, and what the colours off the scale mean."""
    stops = ", ".join(f"{colour} {100 * float(at):.0f}%" for at, colour in scale(colours.stops(theme.severity)))
    ticks = [html.Span(text, className="legend-tick", style={"left": f"{100 * at:.0f}%"}) for at, text in colours.ticks]
    marks: list[Any] = []
    empty = np.isnan(cells.values) & ~cells.zero & ~cells.broken
    for there, colour, words in (
        (cells.broken.any(), theme.ink, "not finite"),
        (cells.zero.any(), theme.zero, "exactly 0"),
        (empty.any(), theme.card, "not recorded"),
    ):
        if there:
            marks += [html.Span(className="swatch", style={"background": colour}), html.Span(words)]
    bar = html.Span(ticks, className="legend-bar", style={"background": f"linear-gradient(90deg, {stops})"})
    shown = [bar] if np.isfinite(cells.values).any() else []
    return html.Span([*marks, *shown], className="legend")


PANEL = Panel(
    "map", "Health map", "", _read, _draw,
    controls=(STATISTIC, ROWS, FILTER, SCALARS, AXIS, OPENED), className="map-card", click="openCell",
    label="scalars, and a map of layers over steps",
)  # fmt: skip
