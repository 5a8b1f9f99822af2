"""The page of a layer at a step: its head, and the panels in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
import numpy as np
from dash import Output, dcc, html

from root_dash.exceptions import NotRecorded
from root_dash.frontend import address, ids, layout
from root_dash.frontend.panels.cards import cards
from root_dash.frontend.panels.panel import Panel, kinds_at_step
from root_dash.frontend.panels.reading import shape
from root_dash.frontend.theme import GREEN
from root_dash.records import Layer

if TYPE_CHECKING:
    from root_dash.store import Store

HEAD = {
    "name": Output(ids.LAYER_TITLE, "children"),
    "shape": Output(ids.LAYER_SHAPE, "children"),
    "back": Output(ids.BACK, "href"),
    "previous": Output(ids.PREVIOUS_LAYER, "href"),
    "next": Output(ids.NEXT_LAYER, "href"),
    "first": Output(ids.STEP_SLIDER, "min"),
    "last": Output(ids.STEP_SLIDER, "max"),
    "interval": Output(ids.STEP_SLIDER, "step"),
    "shown": Output(ids.STEP_SLIDER, "value"),
    "follows": Output(ids.FOLLOW, "checked"),
}
"""The outputs that `head` fills, by name."""


def page(panels: Sequence[Panel], query: Mapping[str, str]) -> Any:
    """Return the layout of every layer's page; the view says which layer the page shows."""
    return html.Div(
        className="layer",
        children=[
            *(dcc.Store(id=ids.shown(kind)) for kind in kinds_at_step(panels)),
            _head(),
            html.Div(cards(panels, query), className="rows"),
        ],
    )


def _head() -> Any:
    """Return the head: the layer's name and neighbours, the shown step, the switch for the newest step."""
    return html.Div(
        className="layer-head",
        children=[
            dcc.Link("← layers", id=ids.BACK, href="/", className="ghost"),
            html.H1("\u00a0", id=ids.LAYER_TITLE, className="mono"),
            html.Span(id=ids.LAYER_SHAPE, className="second"),
            html.Div(
                className="steps",
                children=[
                    dcc.Link("↑ K", id=ids.PREVIOUS_LAYER, href="/", className="ghost", title="previous layer (K)"),
                    dcc.Link("↓ J", id=ids.NEXT_LAYER, href="/", className="ghost", title="next layer (J)"),
                    html.Button("‹", id=ids.EARLIER, className="ghost", **layout.aria(label="earlier step")),
                    dmc.Slider(
                        id=ids.STEP_SLIDER, min=0, max=1, step=1, value=0, size="sm", updatemode="mouseup",
                        className="slider", thumbLabel="step", showLabelOnHover=False, thumbSize=14,
                    ),
                    html.Button("›", id=ids.LATER, className="ghost", **layout.aria(label="later step")),
                    html.Span(id=ids.STEP_LABEL, className="mono step-label"),
                    dmc.Switch(id=ids.FOLLOW, checked=True, label="follow", size="xs", color=GREEN),
                ],
            ),
        ],
    )  # fmt: skip


def position(layers: Sequence[Layer], run_id: int, layer_id: int) -> int:
    """Return the position of a layer in its run.

    Raises:
        NotRecorded: the run has no such layer.
    """
    for at, layer in enumerate(layers):
        if layer.id == layer_id:
            return at
    raise NotRecorded(f"run {run_id} has no layer {layer_id}")


def head(store: Store, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers of `HEAD`: the layer, its neighbours, and the slider at the step of the address."""
    run_id, layer_id = int(view["run"]), int(view["layer"])
    layers = store.layers(run_id)
    at = position(layers, run_id, layer_id)
    steps = store.steps(layer_id, "histograms")
    if not len(steps):
        steps = store.steps(layer_id, "statistics")
    first, last = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    step = view.get("step") if len(steps) else None
    return {
        "name": layers[at].name,
        "shape": shape(layers[at]),
        "back": address.overview(run_id),
        "previous": address.layer(run_id, layers[at - 1].id),
        "next": address.layer(run_id, layers[(at + 1) % len(layers)].id),
        # A slider needs two ends, and the newest step is the upper end.
        "first": min(first, last - 1),
        "last": last,
        "interval": max(1, int(np.gcd.reduce(np.diff(steps)))) if len(steps) > 1 else 1,
        "shown": last if step is None else int(steps[max(0, int(np.searchsorted(steps, step, side="right")) - 1)]),
        "follows": step is None,
    }
