"""What panels share when they read from the store: nothing recorded is None, and a step's recording is the nearest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from root_dash.exceptions import NotRecorded
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.panel import Selection
from root_dash.records import Histogram, Kind, Mask, Quantiles, Spectrum

if TYPE_CHECKING:
    from root_dash.store import Store

T = TypeVar("T")

POINTS = 400
"""The most points of a curve that a panel reads."""


def recorded(read: Callable[[], T]) -> T | None:
    """Return what a verb of the store reads, or None if nothing was recorded."""
    try:
        return read()
    except NotRecorded:
        return None


def nearest(store: Store, selection: Selection, kind: Kind, read: Callable[[int | None], T]) -> T | None:
    """Return a layer's recording at or before the selected step; the first recording if the kind began later.

    `read` takes a step, or None for the newest.
    """
    found = recorded(lambda: read(selection.step))
    if found is None and selection.step is not None and len(steps := store.steps(selection.layer, kind)):
        found = recorded(lambda: read(int(steps[0])))
    return found


def with_step(found: Histogram | Quantiles | Spectrum | Mask | None, hint: str) -> str:
    """Return the hint after the step of the recording that is shown: each kind has its own cadence."""
    return hint if found is None else f"step {count(found.step)} · {hint}"
