"""The overview of a run: what is recorded, the loss, and the map of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dash import html

from root_dash.frontend.panels.cards import cards
from root_dash.frontend.panels.panel import Panel


def page(panels: Iterable[Panel], query: Mapping[str, str]) -> Any:
    """Return the layout of the overview; `query` holds the values of controls that the URL keeps."""
    return html.Div(cards(panels, query), className="overview")
