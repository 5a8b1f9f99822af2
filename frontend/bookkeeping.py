"""What is recorded, what recording costs, and whether any frame was lost: small in the header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dash import Output, html

from root_dash.frontend import ids
from root_dash.frontend.numbers import count, every, plural, value
from root_dash.frontend.panels.kept import Kept
from root_dash.records import KINDS, History, Layer, Notice, Run
from root_dash.records.algorithms import traits_of

if TYPE_CHECKING:
    from root_dash.store import Store

HEADER = {"words": Output(ids.BOOKKEEPING, "children"), "title": Output(ids.BOOKKEEPING, "title")}
"""The outputs that `header` fills, by name."""


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


def intervals(texts: Iterable[str]) -> dict[str, int]:
    """Return the interval of each kind after changes of the cadence, which events tell in these words."""
    found = (re.findall(r"(\w+) every (\d+) steps \(before", text) for text in texts)
    return {kind: int(steps) for changes in found for kind, steps in changes}


def share(cost: History, frames: Sequence[Notice]) -> float:
    """Return the share of the training's time that recording took; NaN if the steps' time is not known.

    The time of a step is the median over the frames, so that a pause between two attempts does not count.
    """
    steps = np.array([frame.step for frame in frames], np.float64)
    times = np.array([frame.time for frame in frames], np.float64)
    apart = np.diff(steps) > 0
    if not apart.any() or not len(cost.steps):
        return float("nan")
    step_time = float(np.median(np.diff(times)[apart] / np.diff(steps)[apart]))
    trained = float(cost.steps[-1] - cost.steps[0] + 1)
    return float(np.nansum(cost.values)) / trained / step_time if step_time > 0 else float("nan")


def words(run: Run, costs: float) -> list[Any]:
    """Return what stands in the header: the hook's share of the step time, and lost frames as a warning."""
    found = []
    if np.isfinite(costs):
        found.append(html.Span(f"hook {value(100 * costs, 2)} % of step time"))
    if run.lost:
        found.append(html.Span(f"{plural(run.lost, 'frame')} lost", className="warn"))
    return found


def header(store: Store, view: Mapping[str, Any] | None, cursor: Any = None) -> dict[str, Any]:
    """Return the answers of `HEADER` for the run of a view."""
    run_id = (view or {}).get("run")
    if run_id is None:
        return {"words": [], "title": ""}
    run = store.run(int(run_id))
    texts = [event.text for event in store.events(run.id) if event.kind == "cadence"]
    said = summary(run, store.layers(run.id), kept=intervals(texts) if texts else None)
    return {"words": words(run, _share(store, run.id)), "title": said}


_EVERY_STEP = 10_000_000


def _read_share(store: Store, run_id: int) -> float:
    return share(store.cost(run_id, _EVERY_STEP), store.frames(run_id))


_share = Kept(_read_share, period=30.0)
