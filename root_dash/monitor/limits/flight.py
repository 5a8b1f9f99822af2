"""The flight recorder: when a sentinel fires, every step is recorded for a while, whatever that costs.

It may not fire for ever. After a flight it holds back for as many steps as the flight had, and from the fourth firing
on twice as long each time, up to 4,096 times: a run in which something fires all the time has a handful of flights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.quantities.sentinels import NONE, finite
from root_dash.monitor.sentinels.rows import Held, SentinelRow
from root_dash.records import Float64Array

FLIGHT_STEPS = 32
"""Steps that are all recorded after a sentinel fired."""

FREE_FIRINGS = 3
"""Firings before the flight recorder holds back longer and longer."""

LONGEST_HOLD = 2**12
"""The largest number of flights' lengths that the flight recorder holds back for."""

FACTOR = 100.0
"""A norm or largest entry beyond so many times its own recent largest value fires."""

_UNBOUNDED = float(np.finfo(np.float64).max)

_STRIDE = 32
"""Steps after which the recent range fades a little, and before a layer's norm can fire."""

_DECAY = 0.5
"""What remains of a recent largest value after so many steps."""


@dataclass(slots=True)
class _Recent:
    """The recent range of the L layers of one optimizer."""

    watched: tuple[Held, ...]
    largest: Float64Array
    """The largest norm and the largest entry, (2, L), each fading while the layer has gradients."""
    fresh: Float64Array
    """The same of the last steps alone; `NONE` without a gradient."""
    bound: Float64Array
    """What a norm and an entry may not reach, (2, L)."""
    broken: NDArray[np.bool_]
    """Which layers' last gradient was not finite."""
    any_broken: bool = False
    rows: int = 0


class Alarm:
    """Compares what was read of each layer's gradient with the layer's own recent range."""

    def __init__(self) -> None:
        self._recent: list[_Recent] = []

    def heard(self, row: SentinelRow) -> tuple[int, str] | None:
        """Return the position of a layer that fires at a row, and why; None if none does."""
        values = row.values()
        recent = next((one for one in self._recent if one.watched is row.watched), None)
        if recent is None:
            count = len(row.watched)
            bound = np.full((2, count), _UNBOUNDED)
            fresh = np.full((2, count), NONE)
            recent = _Recent(row.watched, np.zeros((2, count)), fresh, bound, np.zeros(count, np.bool_))
            self._recent = [recent, *self._recent[:7]]  # the parameters of an optimizer change now and then
        # One comparison for nearly every row: NaN is below no bound.
        fired = None
        if np.logical_and.reduce(values < recent.bound, None):
            np.maximum(recent.fresh, values, out=recent.fresh)
            if recent.any_broken:
                recent.broken[:] = recent.any_broken = False
        else:
            fired = _fired(recent, values)
        recent.rows += 1
        if recent.rows % _STRIDE == 0:
            fading = np.maximum(recent.fresh, _DECAY * recent.largest)
            recent.largest = np.where(recent.fresh == NONE, recent.largest, fading)
            recent.fresh.fill(NONE)
            recent.bound = np.where(
                recent.largest > 0, FACTOR * np.minimum(recent.largest, _UNBOUNDED / FACTOR), _UNBOUNDED
            )
        return None if fired is None else (row.watched[fired[0]].position, fired[1])


def _fired(recent: _Recent, values: Float64Array) -> tuple[int, str] | None:
    """Return the place of a layer beyond its bound, and what it has; None if such layers were not finite before."""
    here = finite(*values)
    broken, recent.broken = ~here & ~recent.broken, ~here
    recent.any_broken = not here.all()
    values = np.where(here, values, NONE)
    loud = (values >= recent.bound).any(0)
    np.maximum(recent.fresh, values, out=recent.fresh)
    np.maximum(recent.bound, FACTOR * np.minimum(values, _UNBOUNDED / FACTOR), out=recent.bound)
    if broken.any():
        return int(broken.argmax()), "has a gradient that is not finite"
    if loud.any():
        return int(loud.argmax()), f"has a gradient beyond {FACTOR:.0f} times its recent range"
    return None


@dataclass(slots=True)
class Flight:
    """Which steps are recorded because a sentinel fired, and until when the next firing is held back."""

    began: int = 0
    until: int = 0
    reason: str = ""
    firings: int = 0
    held_until: int = 0
    seconds: float = 0.0
    """What recording took of the training thread in the flight."""

    def active(self, step: int) -> bool:
        """Return whether a step belongs to the flight."""
        return self.began > 0 and step <= self.until

    def fire(self, step: int, reason: str) -> bool:
        """Begin a flight at a step, unless one is under way or the flight recorder holds back."""
        if self.active(step) or step <= self.held_until:
            return False
        self.firings += 1
        self.began, self.until, self.reason, self.seconds = step, step + FLIGHT_STEPS - 1, reason, 0.0
        self.held_until = self.until + FLIGHT_STEPS * hold(self.firings)
        return True

    def ended(self, step: int) -> str | None:
        """Return a sentence for people on the flight that is over after a step; None if none is."""
        if not self.began or step < self.until:
            return None
        text = (
            f"{self.reason}: steps {self.began} to {min(step, self.until)} were all recorded, which took "
            f"{self.seconds:.2g} s of the training; the next firing is heard from step {self.held_until + 1} on"
        )
        self.began = 0
        return text

    def stop(self, step: int) -> str | None:
        """End a flight at a step, and return the sentence on it; None if none is under way."""
        self.until = min(step, self.until)
        return self.ended(step)


def hold(firings: int) -> int:
    """Return for how many flights' lengths firings are not heard after so many."""
    return min(1 << max(firings - FREE_FIRINGS, 0), LONGEST_HOLD)
