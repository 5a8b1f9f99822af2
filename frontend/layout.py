"""The shell: the header, the stores, and the element that holds the page; a graph and a notice for the pages."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from root_dash.frontend import address, ids
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


def aria(**properties: str) -> dict[str, Any]:
    """Return properties of a component for screen readers: `aria(label="run")`."""
    return {f"aria-{name}": text for name, text in properties.items()}


def data(**attributes: str) -> dict[str, Any]:
    """Return data attributes of a component for scripts: `data(grammar="…")`."""
    return {f"data-{name}": text for name, text in attributes.items()}


def shell() -> Any:
    """Return the whole document, which stays while pages come and go."""
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
            dcc.Store(id=ids.QUIET),
            dcc.Store(id=ids.ENDED),
            *(dcc.Store(id=ids.cursor(kind)) for kind in (None, *KINDS)),
            dcc.Store(id=ids.GONE),
            dcc.Store(id=ids.JUDGED),
            dcc.Interval(id=ids.RUNS, interval=5000),
            dcc.Interval(id=ids.RETRY, interval=2000, disabled=True),
            header(),
            connection(),
            html.Main(id=ids.PAGE, **data(grammar=address.GRAMMAR)),
            shortcuts(),
        ],
    )


def header() -> Any:
    """Return the header: pickers of run and layer, live status, what recording costs, theme."""
    return html.Header(
        className="head",
        children=[
            dcc.Link("root-dash", href="/", className="brand"),
            dmc.Select(
                id=ids.RUN_PICKER, data=[], allowDeselect=False, size="xs", className="run-picker",
                placeholder="run", maxDropdownHeight=420, renderOption={"function": "runOption"},
                comboboxProps={"width": 420, "position": "bottom-start", "withinPortal": False}, **aria(label="run"),
            ),
            dmc.Select(
                id=ids.LAYER_PICKER, data=[], searchable=True, size="xs", className="layer-picker",
                placeholder="/  search layers", nothingFoundMessage="no such layer", maxDropdownHeight=420,
                selectFirstOptionOnChange=True, comboboxProps={"withinPortal": False}, **aria(label="go to a layer"),
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
            html.Span(id=ids.BOOKKEEPING, className="bookkeeping"),
            html.Button(
                "?", className="ghost", title="keys (?)", **aria(label="show the keys"), **data(opens=ids.SHORTCUTS),
            ),
            html.Button(
                id=ids.THEME_TOGGLE, className="ghost", n_clicks=0, title="light or dark",
                **aria(label="switch between light and dark"),
                children=html.Span(className="theme-icon", **aria(hidden="true")),
            ),
        ],
    )  # fmt: skip


def connection() -> Any:
    """Return the bar under the header with the reason why the page may be old. The browser shows and hides the bar."""
    return html.Div(
        id=ids.CONNECTION, className="connection", role="alert", hidden=True,
        children=[
            html.Span(className="dot", **aria(hidden="true")),
            html.Span(id=ids.CONNECTION_TEXT),
            html.Button("Try now", id=ids.CONNECTION_RETRY, className="ghost"),
        ],
    )  # fmt: skip


KEYS = {
    "J, K": "next, previous layer",
    "←, →": "previous, next recorded step",
    "space": "follow the newest step",
    "/": "search a layer",
    "Enter": "open the layer that is selected on the map",
    "?": "these keys",
}
"""What the keys do, as `assets/keys.js` binds them."""


def shortcuts() -> Any:
    """Return the dialog of the keys, which the browser opens and closes."""
    rows = [html.Div([html.Dt(html.Kbd(key)), html.Dd(does)]) for key, does in KEYS.items()]
    close = html.Button("Close", className="ghost", **data(closes=ids.SHORTCUTS))
    return html.Dialog(
        [html.H2("Keys"), html.Dl(rows), close], id=ids.SHORTCUTS, className="card shortcuts", **aria(label="keys")
    )


def graph(graph_id: str, label: str) -> Any:
    """Return a figure that fills its box. The box sets the height, so that nothing jumps when the figure changes."""
    return html.Div(
        dcc.Graph(id=graph_id, figure=_BLANK, config=CONFIG, responsive=True, className="graph"),
        className="graph-box",
        role="figure",
        **aria(label=label),
    )


def notice(title: str, *lines: Any) -> Any:
    """Return a card of words for a page without panels."""
    return html.Section([html.H1(title), *(html.P(line) for line in lines)], className="card notice")
