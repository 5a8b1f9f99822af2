"""The sentence on top of the overview: what is recorded, and whether any frame was lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from root_dash.frontend.numbers import count, every, plural
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.records import KINDS, Layer, Run
from root_dash.records.algorithms import traits_of


def summary(run: Run, layers: Sequence[Layer], *, kept: Mapping[str, int] | None = None) -> str:
    """Return a sentence: layers by optimizer, the cadence that is kept, frames kept and lost.

    `kept` is the interval in steps of each kind that the budget thinned, if it thinned any at any time.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.algorithm, []).append(layer)
    traits = {algorithm: traits_of(run.optimizer, algorithm) for algorithm in groups}
    # What is orthogonalized comes first.
    ordered = sorted(groups, key=lambda algorithm: traits[algorithm].orthogonalizes is None)
    who = " and ".join(f"{_number(groups[algorithm])} under {traits[algorithm].label}" for algorithm in ordered)
    lost = "none lost" if run.lost == 0 else f"{count(run.lost)} lost"
    rarer = ""
    if kept is not None:
        asked = cadence(run, {})
        rarer = "at times less often, to keep the budget" if cadence(run, kept) == asked else f"asked for: {asked}"
    parts = [who or "no layers", cadence(run, kept or {}), rarer, f"{plural(run.frames, 'frame')}, {lost}"]
    return "; ".join(part for part in parts if part) + "."


def _number(layers: Sequence[Layer]) -> str:
    if all(layer.is_matrix for layer in layers):
        return plural(len(layers), "matrix", "matrices")
    return plural(len(layers), "tensor")


def cadence(run: Run, kept: Mapping[str, int]) -> str:
    """Return how often each kind is recorded, kinds of the same cadence together: spectra and masks every 25.

    `kept` has the intervals of kinds that are not those of the run.
    """
    kinds_by_steps: dict[int, list[str]] = {}
    for kind in KINDS:
        steps = run.cadence.get(kind) and kept.get(kind, run.cadence[kind])
        # Scalars come when the user logs them, and quantiles come with the histograms.
        if steps and kind not in ("scalars", "quantiles"):
            kinds_by_steps.setdefault(int(steps), []).append(kind)
    return ", ".join(f"{' and '.join(kinds)} {every(steps)}" for steps, kinds in kinds_by_steps.items())


def _read(selection: Selection) -> dict[str, Any]:
    store, run_id = selection.store, selection.run
    texts = [event.text for event in store.events(run_id) if event.kind == "cadence"]
    kept = intervals(texts) if texts else None
    return {"run": store.run(run_id), "layers": store.layers(run_id), "kept": kept}


def intervals(texts: Iterable[str]) -> dict[str, int]:
    """Return the interval of each kind after changes of the cadence, which events tell in these words."""
    found = (re.findall(r"(\w+) every (\d+) steps \(before", text) for text in texts)
    return {kind: int(steps) for changes in found for kind, steps in changes}


def _draw(_theme: Theme, *, run: Run, layers: Sequence[Layer], kept: Mapping[str, int] | None) -> Drawing:
    return Drawing(summary(run, layers, kept=kept))


PANEL = Panel("summary", "", "", _read, _draw, words=True, className="summary")
