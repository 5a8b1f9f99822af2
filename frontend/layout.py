"""The shell: the header, the stores, and the place where a page goes; and the card that every panel is."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from root_dash.frontend import ids
from root_dash.frontend.theme import BLUE, MONO, SANS
from root_dash.records import KINDS

CONFIG: Any = {
    "displaylogo": False,
    "showTips": False,
    "showSendToCloud": False,  # nothing leaves the machine
    "plotlyServerURL": "",
    "responsive": True,
    "doubleClick": "autosize",
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "resetScale2d", "zoomIn2d", "zoomOut2d"],
}

# Before the first figure arrives a graph is blank, not Plotly's white axes.
_BLANK = {
    "data": [],
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
    },
}


def aria(**said: str) -> dict[str, Any]:
    """What a screen reader is told of a component: `aria(label="run")`."""
    return {f"aria-{name}": text for name, text in said.items()}


def shell() -> Any:
    """The whole document: what stays while pages come and go."""
    return dmc.MantineProvider(
        id=ids.PROVIDER,
        defaultColorScheme="auto",
        theme={
            "fontFamily": SANS,
            "fontFamilyMonospace": MONO,
            "defaultRadius": "sm",
            "primaryColor": "data",
            "primaryShade": 6,
            "colors": {"data": [*["#eaf3fb"] * 2, "#c5dff3", "#9cc8ea", "#74b1e0", "#539bd4", BLUE, *["#2f6ca6"] * 3]},
            "cursorType": "pointer",
        },
        children=[
            dcc.Location(id=ids.URL, refresh=False),
            dcc.Store(id=ids.THEME),
            dcc.Store(id=ids.VIEW),
            dcc.Store(id=ids.CURSOR),
            dcc.Store(id=ids.QUIET),
            dcc.Store(id=ids.ENDED),
            *(dcc.Store(id=ids.cursor_of(kind)) for kind in KINDS),
            dcc.Interval(id=ids.RETRY, interval=2000, disabled=True),
            header(),
            connection(),
            html.Main(id=ids.PAGE),
        ],
    )


def header() -> Any:
    """Run, layers, live status, theme."""
    return html.Header(
        className="head",
        children=[
            dcc.Link("root-dash", href="/", className="brand"),
            dmc.Select(
                id=ids.RUN_PICKER, data=[], allowDeselect=False, size="xs", className="run-picker",
                placeholder="run", maxDropdownHeight=420, **aria(label="run"),
            ),
            dmc.Select(
                id=ids.LAYER_PICKER, data=[], searchable=True, size="xs", className="layer-picker",
                placeholder="/  search layers", nothingFoundMessage="no such layer", maxDropdownHeight=420,
                selectFirstOptionOnChange=True, **aria(label="go to a layer"),
            ),
            html.Div(
                id=ids.STATUS, className="status", role="status", **aria(live="off"),
                children=[
                    html.Span(id=ids.STATUS_DOT, className="dot", **aria(hidden="true")),
                    html.Span(id=ids.STATUS_TEXT, className="status-text"),
                    html.Span(id=ids.STATUS_STEP, className="mono"),
                    html.Span(id=ids.STATUS_AGE, className="second"),
                ],
            ),
            html.Button(
                id=ids.THEME_TOGGLE, className="ghost", n_clicks=0, title="light or dark",
                **aria(label="switch between light and dark"),
                children=html.Span(className="theme-icon", **aria(hidden="true")),
            ),
        ],
    )  # fmt: skip


def connection() -> Any:
    """The bar under the header that says why the page may be old; shown and hidden in the browser."""
    return html.Div(
        id=ids.CONNECTION, className="connection", role="alert", hidden=True,
        children=[
            html.Span(className="dot", **aria(hidden="true")),
            html.Span(id=ids.CONNECTION_TEXT),
            html.Button("Try now", id=ids.CONNECTION_RETRY, className="ghost"),
        ],
    )  # fmt: skip


def graph(graph_id: str, label: str) -> Any:
    """A figure that fills its box; the box has the height, so that nothing jumps when the figure changes."""
    return html.Div(
        dcc.Graph(id=graph_id, figure=_BLANK, config=CONFIG, responsive=True, className="graph"),
        className="graph-box",
        role="figure",
        **aria(label=label),
    )


def card(
    title: str,
    hint: str,
    graph_id: str,
    *,
    title_id: str | None = None,
    hint_id: str | None = None,
    control: Any = None,
    className: str = "",
) -> Any:
    """A panel: its title, how to read it in under ten words, and its figure."""
    given: dict[str, Any] = {"id": title_id} if title_id else {}
    hinted: dict[str, Any] = {"id": hint_id} if hint_id else {}
    return html.Section(
        className=f"card {className}".strip(),
        children=[
            html.Div(
                [
                    html.H2(title, **given),
                    html.Span(hint, className="hint", **hinted),
                    *([control] if control is not None else []),
                ],
                className="card-head",
            ),
            graph(graph_id, title),
        ],
    )


def notice(title: str, *lines: Any) -> Any:
    """A panel of words alone: nothing recorded yet, or nothing at this address."""
    return html.Section([html.H1(title), *(html.P(line) for line in lines)], className="card notice")
