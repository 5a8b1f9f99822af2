"""The map of the outliers in the matrix at the shown step."""

from __future__ import annotations

from typing import Any

from root_dash.frontend.figures.mask import mask, named
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Layer, Mask

NO_MASK = "A vector has no outlier map. The histogram shows its largest entries."


def _read(selection: Selection) -> dict[str, Any]:
    store = selection.store
    return {"layer": store.layer(selection.layer), "found": nearest(selection, "masks", store.mask)}


def _draw(theme: Theme, *, layer: Layer, found: Mask | None) -> Drawing:
    figure = mask(found, theme, sentence="" if layer.is_matrix else NO_MASK)
    lines = [] if found is None else [named(found.row_totals, "row"), named(found.col_totals, "col")]
    told = " · ".join(line for line in lines if line)
    if not figure.data:
        return Drawing(figure, hint=with_step(found, ""))
    return Drawing(figure, hint=with_step(found, told or "share of |M| > ε; bars: rows, columns"))


PANEL = Panel("mask", "Outlier map", "", _read, _draw, kind="masks", shows="step", className="wide tall")
