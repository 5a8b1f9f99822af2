"""Where the outliers sit in the matrix at the shown step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from root_dash.frontend.figures.mask import mask
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Layer, Mask

if TYPE_CHECKING:
    from root_dash.store import Store

NO_MASK = "A vector has no outlier map: its largest entries stand in the histogram."


def _read(store: Store, selection: Selection) -> dict[str, Any]:
    found = nearest(store, selection, "masks", lambda step: store.mask(selection.layer, step))
    return {"layer": store.layer(selection.layer), "found": found}


def _draw(theme: Theme, *, layer: Layer, found: Mask | None) -> Drawing:
    figure = mask(found, theme, sentence="" if layer.is_matrix else NO_MASK)
    return Drawing(figure, hint=with_step(found, "share of |M| > ε; bars: rows, columns"))


PANEL = Panel("mask", "Outlier map", "", _read, _draw, kind="masks", shows="step", className="wide tall")
