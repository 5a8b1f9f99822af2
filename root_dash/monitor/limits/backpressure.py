"""What is left out while the store is slower than the training: the costly kinds first, until the queue has drained.

The budget knows what recording costs the training; this knows what the store can keep up with: a disk that is full or
slow, a database that another process holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from root_dash.monitor.limits.budget import THINNED
from root_dash.records import Kind

CROWDED = 0.5
"""The share of the queue's room from which on the first kind is left out; the others follow up to its end."""

DRAINED = 0.25
"""The share below which all are recorded again."""


@dataclass(frozen=True, slots=True)
class Crowding:
    """Which kinds are left out for the time being, and how many recordings of each have been since that began."""

    kinds: tuple[Kind, ...] = ()
    left_out: Mapping[Kind, int] = field(default_factory=dict)


def crowded(state: Crowding, fill: float) -> Crowding:
    """The state where `fill` of the queue's room is taken, from 0 to 1.

    Once left out, a kind stays so until the queue has drained: it would only fill it again.
    """
    if fill < DRAINED:
        return Crowding()
    if fill < CROWDED:
        return state
    count = 1 + int((fill - CROWDED) / (1.0 - CROWDED) * len(THINNED))
    kinds = THINNED[: max(len(state.kinds), count)]
    return replace(state, kinds=kinds)


def leave_out(state: Crowding, due: frozenset[Kind]) -> tuple[frozenset[Kind], Crowding]:
    """What remains of the kinds that are due, and the state that has counted the others."""
    gone = due.intersection(state.kinds)
    counts = {kind: state.left_out.get(kind, 0) + (kind in gone) for kind in state.kinds}
    return due - gone, replace(state, left_out=counts)


def told(before: Crowding, after: Crowding) -> str | None:
    """A sentence on what changed between two states, for people; None where nothing did."""
    if before.kinds == after.kinds:
        return None
    if after.kinds:
        return f"frames wait to be stored: {', '.join(after.kinds)} are left out until they are"
    counts = ", ".join(f"{count} of {kind}" for kind, count in before.left_out.items())
    return f"the frames that waited are stored, all is recorded again; left out were {counts}"
