"""The layout of a page's panels: a card for each. A control stands in the head of the first panel that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dash import html

from root_dash.frontend import layout
from root_dash.frontend.panels.panel import Panel


def cards(panels: Iterable[Panel], query: Mapping[str, str]) -> list[Any]:
    """Return the cards of panels in their order; `query` holds the values of controls that the URL keeps."""
    placed: set[str] = set()
    made = []
    for panel in panels:
        own = [control for control in panel.controls if control.id not in placed]
        placed |= {control.id for control in own}
        made.append(_card(panel, [control.component(id=control.id, value=control.value(query)) for control in own]))
    return made


def _card(panel: Panel, controls: list[Any]) -> Any:
    if not panel.title:
        return html.Div(id=panel.id, className=panel.className)
    note = [html.Span(panel.note, className="hint far")] if panel.note else []
    body = html.Div(id=panel.id) if panel.words else layout.graph(panel.id, panel.label or panel.title)
    head = [
        html.H2(panel.title, id=panel.title_id),
        html.Span(panel.hint, id=panel.hint_id, className="hint"),
        *controls,
        *note,
    ]
    return html.Section([html.Div(head, className="card-head"), body], className=f"card {panel.className}")
