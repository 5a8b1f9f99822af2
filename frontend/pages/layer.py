"""The page of a layer at a step: its head, and the panels in rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
import numpy as np
from dash import Output, dcc, html

from root_dash.exceptions import NotRecorded
from root_dash.frontend import ids, layout
from root_dash.frontend.panels.cards import cards
from root_dash.frontend.panels.panel import Panel, kinds_at_step
from root_dash.frontend.panels.reading import shape
from root_dash.frontend.steps import stretches
from root_dash.frontend.theme import GREEN
from root_dash.records import IntArray, Kind, Layer

if TYPE_CHECKING:
    from root_dash.store import Store

HEAD = {
    "name": Output(ids.LAYER_TITLE, "children"),
    "shape": Output(ids.LAYER_SHAPE, "children"),
    "whole": Output(ids.LAYER_TITLE, "title"),
    "steps": Output(ids.STEPS, "data"),
    "first": Output(ids.STEP_SLIDER, "min"),
    "last": Output(ids.STEP_SLIDER, "max"),
    "follow": Output(ids.FOLLOW, "label"),
    "colour": Output(ids.FOLLOW, "color"),
}
"""The outputs that `head` fills, by name."""


def page(panels: Sequence[Panel], query: Mapping[str, str]) -> Any:
    """Return the layout of every layer's page; the view says which layer the page shows."""
    return html.Div(
        className="layer",
        children=[
            *(dcc.Store(id=ids.shown(kind)) for kind in kinds_at_step(panels)),
            dcc.Store(id=ids.STEPS),
            _head(),
            html.Div(cards(panels, query), className="rows"),
        ],
    )


def _head() -> Any:
    """Return the head: the layer's name and neighbours, the shown step, the switch for the newest step."""
    return html.Div(
        className="layer-head",
        children=[
            # `assets/view.js` gives these links their addresses, which hand on the query.
            html.A("← layers", href="/", className="ghost", **layout.data(go="back")),
            html.H1("\u00a0", id=ids.LAYER_TITLE, className="mono"),
            html.Span(id=ids.LAYER_SHAPE, className="second"),
            html.Div(
                className="steps",
                children=[
                    html.A(
                        "↑ K", href="/", className="ghost", title="previous layer (K)", **layout.data(go="previous")
                    ),
                    html.A("↓ J", href="/", className="ghost", title="next layer (J)", **layout.data(go="next")),
                    html.Button(
                        "‹", id=ids.EARLIER, className="ghost", title="previous recorded step (←)",
                        **layout.aria(label="previous recorded step"),
                    ),
                    dmc.Slider(
                        id=ids.STEP_SLIDER, min=0, max=1, step=1, value=0, size="sm", updatemode="mouseup",
                        className="slider", thumbLabel="step", showLabelOnHover=False, thumbSize=14,
                    ),
                    html.Button(
                        "›", id=ids.LATER, className="ghost", title="next recorded step (→)",
                        **layout.aria(label="next recorded step"),
                    ),
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


def walked(panels: Iterable[Panel]) -> list[Kind]:
    """Return the kinds through whose steps a page of panels walks: those that a panel shows whole, at one step."""
    return [kind for kind in kinds_at_step(panels) if kind != "statistics"]


def head(store: Store, panels: Sequence[Panel], view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers of `HEAD`: the layer, its recorded steps, and the ends of the slider."""
    run_id, layer_id = int(view["run"]), int(view["layer"])
    layers = store.layers(run_id)
    layer = layers[position(layers, run_id, layer_id)]
    steps = recorded_steps(store, layer_id, walked(panels))
    first, last = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    ended = bool(view.get("ended"))
    return {
        "name": layer.name,
        "shape": shape(layer),
        "whole": layer.name,
        "steps": stretches(steps),
        # A slider needs two ends, and the newest step is the upper end.
        "first": min(first, last - 1),
        "last": last,
        "follow": "newest" if ended else "follow",
        "colour": "gray" if ended else GREEN,
    }


def recorded_steps(store: Store, layer_id: int, kinds: Iterable[Kind]) -> IntArray:
    """Return the steps at which any of the kinds was recorded, ascending; of the statistics if there are none."""
    steps = [store.steps(layer_id, kind) for kind in kinds]
    found = np.unique(np.concatenate(steps)) if steps else np.empty(0, np.int64)
    return found if len(found) else store.steps(layer_id, "statistics")
