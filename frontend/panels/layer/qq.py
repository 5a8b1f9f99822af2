"""The quantiles of the entries at the shown step against the normal's."""

from __future__ import annotations

from functools import partial
from typing import Any

from root_dash.frontend.figures.qq import qq
from root_dash.frontend.panels.layer.tensor import TENSOR, Moments, chosen, moments
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Quantiles


def _read(selection: Selection) -> dict[str, Any]:
    found = nearest(selection, "quantiles", partial(selection.store.quantiles, tensor=chosen(selection)))
    return {"found": found, "of": moments(selection, found)}


def _draw(theme: Theme, *, found: Quantiles | None, of: Moments) -> Drawing:
    hint = with_step(found, "red: outside the 95 % band")
    return Drawing(qq(found, theme, mean=of.mean, deviation=of.deviation), hint=hint)


PANEL = Panel(
    "qq", "Q–Q against normal", "", _read, _draw,
    kind="histograms", shows="step", controls=(TENSOR,),
)  # fmt: skip
