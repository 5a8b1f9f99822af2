"""The quantiles of the entries at the shown step against the normal's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from root_dash.frontend.figures.qq import qq
from root_dash.frontend.panels.layer.tensor import TENSOR, Moments, chosen, moments
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Quantiles

if TYPE_CHECKING:
    from root_dash.store import Store


def _read(store: Store, selection: Selection) -> dict[str, Any]:
    layer, tensor = selection.layer, chosen(selection)
    found = nearest(store, selection, "quantiles", lambda step: store.quantiles(layer, step, tensor))
    return {"found": found, "of": moments(store, selection, selection.step if found is None else found.step)}


def _draw(theme: Theme, *, found: Quantiles | None, of: Moments) -> Drawing:
    hint = with_step(found, "red: outside the 95 % band")
    return Drawing(qq(found, theme, mean=of.mean, deviation=of.deviation), hint=hint)


PANEL = Panel(
    "qq", "Q–Q against normal", "", _read, _draw,
    kind="histograms", shows="step", controls=(TENSOR,),
)  # fmt: skip
