"""The quantiles of the entries at the shown step against the normal's."""

from __future__ import annotations

from functools import partial
from typing import Any

from root_dash.frontend.figures.histogram import why_empty
from root_dash.frontend.figures.qq import qq, standardized
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer.findings import onset
from root_dash.frontend.panels.layer.tensor import TENSOR, Moments, chosen, empty_since, has_bars, moments
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, recorded, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import IntArray, Quantiles

BACK = 10
"""Recordings that lie between the shown points and the grey ones, if nothing was found in the layer."""


def earlier(steps: IntArray, step: int, onset: int | None) -> int | None:
    """Return the step of the layer's usual self: the last recording before the onset, else some recordings back."""
    before = steps[steps < (step if onset is None or onset > step else onset)]
    if not len(before):
        return None
    return int(before[-1] if onset is not None and onset <= step else before[max(0, len(before) - BACK)])


def _read(selection: Selection) -> dict[str, Any]:
    store, tensor = selection.store, chosen(selection)
    found = nearest(selection, "quantiles", partial(store.quantiles, tensor=tensor))
    then = None if found is None else earlier(store.steps(selection.layer, "quantiles"), found.step, onset(selection))
    old = None if then is None else recorded(store.quantiles, selection.layer, then, tensor)
    bars = nearest(selection, "histograms", partial(store.histogram, tensor=tensor))
    return {
        "found": found,
        "of": moments(selection, found),
        "before": old,
        "then": moments(selection, old),
        "sentence": "" if bars is None or has_bars(bars) else why_empty(bars, empty_since(selection, bars)),
    }


def _draw(
    theme: Theme, *, found: Quantiles | None, of: Moments, before: Quantiles | None, then: Moments, sentence: str
) -> Drawing:
    ghost = None if before is None else standardized(before, then.mean, then.deviation)
    figure = qq(found, theme, mean=of.mean, deviation=of.deviation, before=ghost, sentence=sentence)
    grey = "" if ghost is None or before is None else f" · grey: step {count(before.step)}"
    return Drawing(figure, hint=with_step(found, f"red: more than 1 σ off{grey}" if figure.data else ""))


PANEL = Panel(
    "qq", "Q–Q against normal", "", _read, _draw,
    kind="histograms", shows="step", controls=(TENSOR,),
)  # fmt: skip
