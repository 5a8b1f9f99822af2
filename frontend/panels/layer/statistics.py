"""Six statistics over the steps, a small panel each, with the value at the shown step beside the name."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from dash import html

from root_dash.frontend.figures.history import history
from root_dash.frontend.numbers import value
from root_dash.frontend.panels.layer.findings import nonfinite, onset
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import POINTS, recorded
from root_dash.frontend.theme import Theme
from root_dash.records import History, Layer, Statistic, statistic

_MATRIX = ("grad_norm", "update_to_weight", "grad_kurtosis", "outlier_energy", "stable_rank", "mask_overlap")
_VECTOR = ("grad_norm", "update_to_weight", "grad_kurtosis", "grad_abs_max", "alignment", "weight_norm")


def names_of(layer: Layer) -> tuple[str, ...]:
    """Return the names of the six statistics of a layer."""
    return _MATRIX if layer.is_matrix else _VECTOR


def title(shown: Statistic, found: History | None, step: int | None) -> list[Any]:
    """Return a statistic's name and, beside the name, the value at the shown step."""
    now = ""
    if found is not None and np.isfinite(found.values).any():
        at = len(found.steps) if step is None else int(np.searchsorted(found.steps, step, side="right"))
        number = float(found.values[max(at - 1, 0)])
        now = "NaN" if np.isnan(number) else value(number)
    return [html.Span(shown.label), html.Span(now, className="now")]


def _read(slot: int, selection: Selection) -> dict[str, Any]:
    store = selection.store
    names = names_of(store.layer(selection.layer))
    return {
        "shown": statistic(names[slot]),
        "found": recorded(store.history, selection.layer, names[slot], POINTS),
        "step": selection.step,
        "since": onset(selection),
        "broken": nonfinite(selection, POINTS),
    }


def _draw(
    theme: Theme, *, shown: Statistic, found: History | None, step: int | None, since: int | None,
    broken: History | None,
) -> Drawing:  # fmt: skip
    return Drawing(history(found, shown, theme, onset=since, nonfinite=broken), title=title(shown, found, step))


PANELS = tuple(
    Panel(
        f"statistic-{slot}", "\u00a0", "", partial(_read, slot), _draw,
        kind="statistics", shows="both", label="a statistic of the layer over the steps", className="small",
    )
    for slot in range(len(_MATRIX))
)  # fmt: skip
