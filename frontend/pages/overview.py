"""The overview of a run: what needs a look, the map of layers under the scalars, and the selected layer beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dash import Output, dcc, html

from root_dash.frontend import ids
from root_dash.frontend.figures import strips
from root_dash.frontend.panels.cards import cards
from root_dash.frontend.panels.panel import Panel, kinds_at_step

if TYPE_CHECKING:
    from root_dash.store import Store

SCALARS = {"names": Output(ids.SCALARS, "data"), "shown": Output(ids.SCALARS, "placeholder")}
"""The outputs that `scalars` fills, by name."""


def page(panels: Iterable[Panel], query: Mapping[str, str]) -> Any:
    """Return the layout of the overview; `query` holds the values of controls that the URL keeps."""
    panels = tuple(panels)
    made = list(zip(panels, cards(panels, query), strict=True))
    whole = [card for panel, card in made if panel.words and not panel.selected]
    beside = [card for panel, card in made if not panel.words and not panel.selected]
    drawer = [card for panel, card in made if panel.selected]
    return html.Div(
        className="overview",
        children=[
            dcc.Store(id=ids.SELECTED),
            *(dcc.Store(id=ids.selected(kind)) for kind in kinds_at_step(panels, selected=True)),
            *whole,
            html.Button("Show the map", id=ids.UNFOLD, className="ghost unfold"),
            html.Div(
                [html.Div(beside, className="maps"), html.Aside(drawer, className="card drawer")], className="both"
            ),
        ],
    )


def scalars(store: Store, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers of `SCALARS`: the scalars of the view's run, and those that are shown if none is chosen."""
    names = strips.ordered(store.scalar_names(int(view["run"])))
    return {"names": names, "shown": ", ".join(strips.chosen(names, ())) or "no scalars"}
