"""The tensor whose entries the first row of a layer's page shows, and what is known of its entries at a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from root_dash.frontend.panels.controls import segmented
from root_dash.frontend.panels.layer.findings import lasting, nonfinite
from root_dash.frontend.panels.panel import Selection
from root_dash.frontend.panels.reading import recorded
from root_dash.records import TENSORS, Histogram, History, Quantiles, TensorName

TENSOR = segmented("tensor", "whose entries the first row shows", {tensor: tensor for tensor in TENSORS})


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, standard deviation and outlier threshold of a tensor's entries; NaN for what was not recorded."""

    mean: float = np.nan
    deviation: float = np.nan
    threshold: float = np.nan


def chosen(selection: Selection) -> TensorName:
    """Return the chosen tensor."""
    return cast(TensorName, selection.values[TENSOR.id])


def moments(selection: Selection, found: Histogram | Quantiles | None) -> Moments:
    """Return the moments of the chosen tensor at the step of a recording; at the selected step if there is none.

    The momentum's deviation follows from its norm, about a mean of zero. Only the momentum has a threshold.
    """
    store, step = selection.store, selection.step if found is None else found.step
    numbers = recorded(store.statistics, selection.layer, step) or {}
    if chosen(selection) == "gradient":
        return Moments(numbers.get("grad_mean", np.nan), numbers.get("grad_std", np.nan))
    size = max(store.layer(selection.layer).size, 1)
    deviation = numbers.get("momentum_norm", np.nan) / size**0.5
    return Moments(0.0, deviation, numbers.get("threshold", np.nan))


def empty_since(selection: Selection, found: Histogram | None) -> int | None:
    """Return since when all entries of the gradient are 0, or some are not finite, if so at a recording's step."""
    if found is None or chosen(selection) != "gradient" or has_bars(found):
        return None
    size = float(selection.store.layer(selection.layer).size)
    zero = recorded(selection.store.history, selection.layer, "grad_zero")
    history = zero if not found.nan + found.inf else nonfinite(selection)
    if history is not None:
        kept = history.steps <= found.step
        history = History(history.name, history.steps[kept], history.values[kept])
    return lasting(history, 1.0 if found.nan + found.inf else size)


def has_bars(found: Histogram) -> bool:
    """Return whether a histogram has entries beside zero."""
    counts = np.asarray(found.counts)
    return bool(counts.sum() > counts[len(counts) // 2])
