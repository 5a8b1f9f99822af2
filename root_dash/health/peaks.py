"""The rule of spikes between frames: the largest gradient since the frame before, against the layer's own peaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from root_dash.health.findings import Ending, Finding
from root_dash.health.medians import middle_of
from root_dash.health.signals import Columns
from root_dash.records import Float64Array
from root_dash.records.verdict import Measured

PEAK_RULE = "gradient-spike"
"""A note: a single step's spike harms seldom, and healthy gradients have heavy tails."""

OPENING = 24
"""Frames with peaks before a peak is judged, whatever number of steps each speaks of."""

MARGIN = math.log(10.0)
"""Least log distance of a spike above the usual norm, above the highest peak before and above the layers' middle."""

CALM = 8
"""Frames without a spike before the spike has ended."""


class Peaks:
    """The highest peak of each layer's gradient norm so far, as a log distance above the usual norm.

    Frames that speak of more steps have higher peaks, and so have higher peaks in their past: when the number of steps
    between frames grows, the highest peak may be passed by what more steps show by chance, log(ratio) at most.
    """

    def __init__(self, count: int) -> None:
        self._highest = np.full(count, -np.inf)
        self._seen, self._calm = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._until = np.full(count, -1, np.int64)
        self._open = np.zeros(count, bool)
        self._last = np.array([-1.0, 0.0])  # the last frame's step, and the most steps that a frame has spoken of

    def judge(self, step: int, columns: Columns, usual: Float64Array) -> Iterator[Finding | Ending]:
        """Yield the spikes that begin and end in a frame; `usual` (L,) are the layers' usual log gradient norms."""
        gap, longest = step - self._last[0], self._last[1]
        first, self._last[0] = self._last[0] < 0, step
        peaks = columns["norm_peak"]
        sampled = peaks > 0
        if first or not sampled.any():
            return
        height = np.log(peaks, out=np.full(len(peaks), np.nan), where=sampled) - usual
        sampled = np.isfinite(height)
        if not sampled.any():
            return
        more = math.log(gap / longest) if longest and gap > longest else 0.0
        self._last[1] = max(gap, longest)
        known = sampled & (self._seen >= OPENING)
        above = np.where(known, height - np.maximum(self._highest, 0.0) - more, -np.inf)
        spike = above > MARGIN
        if spike.any():
            spike &= height - middle_of(height[sampled]) > MARGIN
        for i in np.flatnonzero(spike & ~self._open).tolist():
            when, value, base = columns["norm_peak_step"][i], float(peaks[i]), float(np.exp(usual[i]))
            since = int(when) if np.isfinite(when) else step
            what = (
                f"gradient norm reached {value:.3g} in a single step, {value / base:.3g} times its usual {base:.3g} "
                f"and {math.exp(above[i] + more):.3g} times its highest peak before"
            )
            yield Finding(i, PEAK_RULE, "note", since, what, {"norm_peak": Measured(value, base)}, above[i] / MARGIN)
        self._until[spike] = step
        self._calm = np.where(spike, 0, self._calm + sampled)
        self._open |= spike
        for i in np.flatnonzero(self._open & (self._calm >= CALM)).tolist():
            self._open[i] = False
            yield Ending(i, PEAK_RULE, int(self._until[i]))
        self._highest = np.where(sampled, np.fmax(self._highest, height), self._highest)
        self._seen += sampled

    def grow(self, count: int) -> None:
        """Add layers, up to `count` of them."""
        new = Peaks(count - len(self._seen))
        for name in _ARRAYS:
            setattr(self, f"_{name}", np.concatenate([getattr(self, f"_{name}"), getattr(new, f"_{name}")]))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        return {name: getattr(self, f"_{name}") for name in (*_ARRAYS, "last")}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned."""
        for name in (*_ARRAYS, "last"):
            setattr(self, f"_{name}", state[name].astype(getattr(self, f"_{name}").dtype, copy=True))


_ARRAYS = ("highest", "seen", "calm", "until", "open")
