"""What is left out while the store is slower than the training: the costly kinds first, until the queue has drained.

The budget knows what recording costs the training. Backpressure knows what the store can keep up with: a disk may be
full or slow, another process may hold the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from root_dash.monitor.limits.budget import THINNED
from root_dash.records import Kind

CROWDED = 0.5
"""The share of the queue from which on the first kind is left out; the others follow up to the end of the queue."""

DRAINED = 0.25
"""The share of the queue below which all kinds are recorded again."""


@dataclass(frozen=True, slots=True)
class Backpressure:
    """Which kinds are left out for the time being, and how many recordings of each since that began."""

    kinds: tuple[Kind, ...] = ()
    left_out: Mapping[Kind, int] = field(default_factory=dict)


def next_backpressure(state: Backpressure, fill: float) -> Backpressure:
    """Return the state if `fill` of the queue is taken, from 0 to 1.

    A kind that is left out stays left out until the queue has drained: it would only fill the queue again.
    """
    if fill < DRAINED:
        return Backpressure()
    if fill < CROWDED:
        return state
    count = 1 + int((fill - CROWDED) / (1.0 - CROWDED) * len(THINNED))
    kinds = THINNED[: max(len(state.kinds), count)]
    return replace(state, kinds=kinds)


def leave_out(state: Backpressure, due: frozenset[Kind]) -> tuple[frozenset[Kind], Backpressure]:
    """Return what remains of the kinds that are due, and the state that has counted the others."""
    gone = due.intersection(state.kinds)
    counts = {kind: state.left_out.get(kind, 0) + (kind in gone) for kind in state.kinds}
    return due - gone, replace(state, left_out=counts)


def describe_backpressure(before: Backpressure, after: Backpressure) -> str | None:
    """Return a sentence for people on what changed between two states; None if nothing did."""
    if before.kinds == after.kinds:
        return None
    if after.kinds:
        return f"frames wait to be stored: {', '.join(after.kinds)} are left out until they are"
    counts = ", ".join(f"{count} of {kind}" for kind, count in before.left_out.items())
    return f"the frames that waited are stored, all is recorded again; left out were {counts}"
