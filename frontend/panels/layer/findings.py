"""What was found in a layer: its verdicts, their onset, and since when its gradient is zero or not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from root_dash.exceptions import NotRecorded
from root_dash.frontend.panels.panel import Selection
from root_dash.frontend.panels.reading import recorded
from root_dash.records import History
from root_dash.records.verdict import SEVERITIES, Verdict


def of_layer(verdicts: Sequence[Verdict], place: int) -> list[Verdict]:
    """Return the verdicts on a layer, or for which the layer is a candidate: what lasts and is worst comes first."""
    own = [verdict for verdict in verdicts if verdict.layer == place or place in verdict.candidates]
    return sorted(
        own, key=lambda one: (one.under is not None, one.until is not None, -SEVERITIES.index(one.severity), one.since)
    )


def found(selection: Selection) -> list[Verdict]:
    """Return the verdicts on the selected layer, as `of_layer` sorts them.

    Raises:
        NotRecorded: the run has no such layer.
    """
    store = selection.store
    ids = [layer.id for layer in store.layers(selection.run)]
    if selection.layer not in ids:
        raise NotRecorded(f"run {selection.run} has no layer {selection.layer}")
    return of_layer(selection.judgement.verdicts, ids.index(selection.layer))


def onset(selection: Selection) -> int | None:
    """Return the first sick step of the selected layer's first verdict; None if nothing was found."""
    verdicts = found(selection)
    return verdicts[0].since if verdicts else None


def nonfinite(selection: Selection, points: int | None = None) -> History | None:
    """Return how many entries of the layer's gradient were NaN or infinite, over the steps; at most so many points."""
    nan, inf = (recorded(selection.store.history, selection.layer, name, points) for name in ("grad_nan", "grad_inf"))
    if nan is None or inf is None:
        return None
    # The points of the two may differ: each has its own extremes.
    steps = np.union1d(nan.steps[nan.values > 0], inf.steps[inf.values > 0])
    every = np.union1d(nan.steps, inf.steps)
    return History("nonfinite", every, np.isin(every, steps).astype(np.float64), nan.total)


def lasting(history: History | None, least: float) -> int | None:
    """Return since which step every recorded value is at least so large; None if the newest value is not."""
    if history is None or not len(history.steps):
        return None
    below = np.flatnonzero(~(history.values >= least))
    first = int(below[-1]) + 1 if len(below) else 0
    return int(history.steps[first]) if first < len(history.steps) else None
