"""Reading from the store, as all panels do: a missing recording is None, and a step shows the nearest recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from root_dash.exceptions import NotRecorded
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.panel import Selection
from root_dash.records import Histogram, Kind, Layer, Mask, Quantiles, Spectrum
from root_dash.records.algorithms import AlgorithmTraits, traits_of

T = TypeVar("T")
P = ParamSpec("P")

POINTS = 400
"""The most points of a curve that a panel reads."""


def recorded(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what a verb of the store reads, or None if nothing was recorded."""
    try:
        return read(*args, **kwargs)
    except NotRecorded:
        return None


def nearest(selection: Selection, kind: Kind, read: Callable[[int, int | None], T]) -> T | None:
    """Return the layer's recording at or before the selected step; the first recording if the kind began later.

    `read` is a verb of the store. Its arguments are a layer's id and a step, or None for the newest step.
    """
    layer, step = selection.layer, selection.step
    found = recorded(read, layer, step)
    if found is None and step is not None and len(steps := selection.store.steps(layer, kind)):
        found = recorded(read, layer, int(steps[0]))
    return found


def with_step(found: Histogram | Quantiles | Spectrum | Mask | None, hint: str) -> str:
    """Return the hint after the step of the shown recording, because each kind has its own cadence."""
    return hint if found is None else " · ".join(part for part in (f"step {count(found.step)}", hint) if part)


def traits(selection: Selection, layer: Layer) -> AlgorithmTraits:
    """Return what the run recorded of the algorithm that steps the layer."""
    return traits_of(selection.store.run(selection.run).optimizer, layer.algorithm)


def own_name(algorithm: AlgorithmTraits) -> str:
    """Return the name of the run's own line in a figure that also has the line "Muon", for Muon's coefficients."""
    return "this run" if algorithm.label == "Muon" else algorithm.label


def shape(layer: Layer) -> str:
    """Return a layer's shape and optimizer: 512 × 128 · root."""
    return f"{' × '.join(f'{side:,}' for side in layer.shape) or 'a number'} · {layer.algorithm}"
