"""The sentence on top of the overview: what is recorded, and whether any frame was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from root_dash.frontend.numbers import count, every, plural
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.records import KINDS, Layer, Run
from root_dash.records.algorithms import traits_of


def summary(run: Run, layers: Sequence[Layer], *, thinned: bool = False) -> str:
    """Return a sentence: layers by optimizer, cadence, whether the budget thinned the cadence, frames kept and lost."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.algorithm, []).append(layer)
    traits = {algorithm: traits_of(run.optimizer, algorithm) for algorithm in groups}
    # What is orthogonalized comes first.
    ordered = sorted(groups, key=lambda algorithm: traits[algorithm].orthogonalizes is None)
    who = " and ".join(f"{_number(groups[algorithm])} under {traits[algorithm].label}" for algorithm in ordered)
    lost = "none lost" if run.lost == 0 else f"{count(run.lost)} lost"
    rarer = "at times less often, to keep the budget" if thinned else ""
    parts = [who or "no layers", cadence(run), rarer, f"{plural(run.frames, 'frame')}, {lost}"]
    return "; ".join(part for part in parts if part) + "."


def _number(layers: Sequence[Layer]) -> str:
    if all(layer.is_matrix for layer in layers):
        return plural(len(layers), "matrix", "matrices")
    return plural(len(layers), "tensor")


def cadence(run: Run) -> str:
    """Return how often each kind is recorded, kinds of the same cadence together: spectra and masks every 25."""
    kinds_by_steps: dict[int, list[str]] = {}
    for kind in KINDS:
        steps = run.cadence.get(kind)
        # Scalars come when the user logs them, and quantiles come with the histograms.
        if steps and kind not in ("scalars", "quantiles"):
            kinds_by_steps.setdefault(int(steps), []).append(kind)
    return ", ".join(f"{' and '.join(kinds)} {every(steps)}" for steps, kinds in kinds_by_steps.items())


def _read(selection: Selection) -> dict[str, Any]:
    store, run_id = selection.store, selection.run
    thinned = any(event.kind == "cadence" for event in store.events(run_id))
    return {"run": store.run(run_id), "layers": store.layers(run_id), "thinned": thinned}


def _draw(_theme: Theme, *, run: Run, layers: Sequence[Layer], thinned: bool) -> Drawing:
    return Drawing(summary(run, layers, thinned=thinned))


PANEL = Panel("summary", "", "", _read, _draw, words=True, className="summary")
