"""The distribution of the entries at the shown step, over the Gaussian of the same moments."""

from __future__ import annotations

from functools import partial
from typing import Any

from root_dash.frontend.figures.histogram import histogram
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer.tensor import TENSOR, Moments, chosen, moments
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Histogram


def hint(found: Histogram | None, threshold: float) -> str:
    """Return how to read the bars, and which entries the bars leave out."""
    if found is None:
        return ""
    lost = [f"{count(n)} {name}" for n, name in ((found.nan, "NaN"), (found.inf, "±Inf")) if n]
    if lost:
        return with_step(found, f"{' and '.join(lost)} left out")
    return with_step(found, f"dashed: Gaussian{'; red: beyond ε' if threshold > 0 else ''}")


def _read(selection: Selection) -> dict[str, Any]:
    found = nearest(selection, "histograms", partial(selection.store.histogram, tensor=chosen(selection)))
    return {"found": found, "of": moments(selection, found)}


def _draw(theme: Theme, *, found: Histogram | None, of: Moments) -> Drawing:
    figure = histogram(found, theme, mean=of.mean, deviation=of.deviation, threshold=of.threshold)
    return Drawing(figure, hint=hint(found, of.threshold))


PANEL = Panel(
    "histogram", "Distribution", "dashed: Gaussian of the same moments", _read, _draw,
    kind="histograms", shows="step", controls=(TENSOR,),
)  # fmt: skip
