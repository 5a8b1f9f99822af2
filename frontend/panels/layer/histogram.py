"""The distribution of the entries at the shown step, over the Gaussian of the same moments."""

from __future__ import annotations

from functools import partial
from typing import Any

from root_dash.frontend.figures.histogram import expected_reach, histogram, why_empty
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer.tensor import TENSOR, Moments, chosen, empty_since, moments
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Histogram, TensorName


def hint(found: Histogram | None, tensor: TensorName) -> str:
    """Return how to read the bars, and which entries the bars leave out."""
    if found is None:
        return ""
    lost = [f"{count(n)} {name}" for n, name in ((found.nan, "NaN"), (found.inf, "±Inf")) if n]
    red = "beyond ε" if tensor == "momentum" else "not Gaussian"
    return with_step(found, f"{' and '.join(lost)} left out" if lost else f"red: {red}")


def _read(selection: Selection) -> dict[str, Any]:
    tensor = chosen(selection)
    found = nearest(selection, "histograms", partial(selection.store.histogram, tensor=tensor))
    return {"tensor": tensor, "found": found, "of": moments(selection, found), "since": empty_since(selection, found)}


def _draw(theme: Theme, *, tensor: TensorName, found: Histogram | None, of: Moments, since: int | None) -> Drawing:
    entries = 0 if found is None else int(found.counts.sum())
    momentum = tensor == "momentum"
    figure = histogram(
        found, theme, mean=of.mean, deviation=of.deviation,
        threshold=of.threshold if momentum else expected_reach(of.mean, of.deviation, entries),
        mark="ε" if momentum else "", sentence="" if found is None else why_empty(found, since),
    )  # fmt: skip
    return Drawing(figure, hint=hint(found, tensor) if figure.data else with_step(found, ""))


PANEL = Panel(
    "histogram", "Distribution", "dashed: Gaussian of the same moments", _read, _draw,
    kind="histograms", shows="step", controls=(TENSOR,),
)  # fmt: skip
