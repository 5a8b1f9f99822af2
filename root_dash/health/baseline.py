"""Baselines: what is usual for each layer and signal, learned from the layer's own past.

A signal is a number per layer and sample, on a scale on which differences compare: mostly the logarithm of a statistic.
The usual value is the median of the last `WINDOW` healthy samples, the usual deviation their median absolute deviation
(MAD), as robust statistics have it (Huber, *Robust Statistics*, 1981). Four numbers bound what is still healthy, and
the largest of them counts:

- a multiple of the MAD;
- a multiple of the largest deviation that the signal has shown and that turned out to be nothing;
- a multiple of the typical deviation of all layers in the same sample, since what all layers do is no layer's fault;
- a floor: a smaller change is no fault, however rare it is.

A sample beyond the bound is not learned, so a fault does not become its own baseline.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.health.medians import median_of_few
from root_dash.records import Float64Array

WINDOW = 64
"""Healthy samples that median and MAD are taken of."""

OPENING = 24
"""Healthy samples before a baseline judges."""

SMOOTHING = 5
"""Samples whose median is what is judged: a single sample, however odd, is no fault."""

WIDENING = 1.0
"""The bound of a baseline that has seen n samples is wider by the factor 1 + `WIDENING` `OPENING` / n."""

HOLD = 2
"""Smoothed samples in a row beyond the bound before a fault is one."""

CALM = 8
"""Samples in a row within half the bound before a fault has ended."""

RELEARN = 256
"""Samples beyond the bound after which the new level is taken as the usual one and learned from the beginning."""

STAGGER = 16
"""Samples between two computations of a layer's median and MAD. The layers take turns."""

MAD_TO_SIGMA = 1.4826
"""Factor from a MAD to the standard deviation, for a normal distribution."""

BY_MAD, BY_EXTREME, BY_PEERS = 5.0, 1.3, 5.0
"""Multiples of the standard deviation, of the largest harmless deviation, and of all layers' typical deviation."""

FORGETTING = 1.0 / 1000.0
"""Share of the largest harmless deviation that each sample forgets."""

JOINT, JOINT_COLUMNS = 0.7, 3
"""Score that is beyond what is usual if so many signals of one row have it in the same sample."""

FOLLOWING = 1.0 / 16.0
"""Share of what all rows do together that the shared level follows in each sample.

Without the level each row's median would follow a common shift by itself, half a window later, and rows that are a
little later than most would look sick.
"""

TRACKING = 1.0 / 16.0
"""Share of what is left that a row's own trend follows in each healthy sample."""

HALF = 0.5
"""Score from which on a deviation counts as rising, and below which a fault calms down."""

FEWEST_PEERS = 4
"""Layers with a sample, below which layers are not compared with each other."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the baselines say of one sample; arrays are (rows, columns) of the baselines."""

    score: Float64Array
    """Deviation over its bound: above 1 is beyond what is usual; 0 if there is no sample or no baseline yet."""
    deviation: Float64Array
    """Signed deviation that counts: from the row's own median, less what all rows did; 0 if there is none."""
    begun: Bools
    """Faults that the sample begins: the last of `HOLD` samples in a row."""
    ended: Bools
    """Faults that the sample ends."""


class Baselines:
    """The baselines of R rows, which are layers, and C columns, which are signals.

    Every array is updated in place and has a fixed size. `state` and `restore` carry them over to another process.
    """

    def __init__(
        self,
        rows: int,
        floor: Float64Array,
        direction: NDArray[np.int64],
        caution: Float64Array | float = 1.0,
        *,
        opening: int = OPENING,
        smoothing: int = SMOOTHING,
        joint: bool = False,
        hold: NDArray[np.int64] | int = HOLD,
        tracking: float = TRACKING,
    ) -> None:
        """Begin without any sample.

        `floor` (C,) or (R, C) is the least bound, `caution` (C,) a factor of all bounds. `direction` (C,) is 1 if only
        rises count, -1 if only falls do, 0 if both do.
        `hold` (C,) is how many smoothed samples in a row make a fault. With `joint`, several columns that deviate at
        once count for more than each of them.
        """
        columns = len(direction)
        shape = (rows, columns)
        self.floor = np.broadcast_to(floor, shape).astype(np.float64)
        self.direction = direction
        self.caution = np.broadcast_to(np.asarray(caution, np.float64), (columns,))
        self._opening, self._smoothing, self._joint = opening, smoothing, joint
        self._tracking = tracking
        self._hold = np.broadcast_to(np.asarray(hold, np.int64), (columns,))
        self._ring = np.full((WINDOW, *shape), np.inf, np.float32)
        self._recent = np.zeros((smoothing, *shape))
        self._steps = np.full((smoothing, *shape), -1, np.int64)
        self._count = np.zeros(shape, np.int64)
        self._level = np.zeros(columns)
        self._track = np.zeros(shape)
        self.median = np.full(shape, np.nan)
        self.sigma = np.full(shape, np.nan)
        self._extreme = np.zeros(shape)
        self._pending = np.zeros(shape)
        self._streak = np.zeros(shape, np.int64)
        self._sign = np.zeros(shape)
        self._calm = np.zeros(shape, np.int64)
        self._rise = np.full(shape, -1, np.int64)
        self.since = np.full(shape, -1, np.int64)
        self.last = np.full(shape, -1, np.int64)
        self.open = np.zeros(shape, bool)
        self._violations = np.zeros(shape, np.int64)
        self._tick = np.zeros(1, np.int64)

    @property
    def usual(self) -> Float64Array:
        """Usual values, (R, C); NaN before they are known."""
        return self.median + self._level + self._track

    @property
    def streak(self) -> NDArray[np.int64]:
        """Samples in a row beyond the bound, (R, C)."""
        return self._streak

    @property
    def rise(self) -> NDArray[np.int64]:
        """Step of the first of the latest samples that lie beyond half the bound, (R, C); -1 if the last does not."""
        return self._rise

    def judge(self, step: int, values: Float64Array) -> Judgement:
        """Compare one sample (R, C), NaN where there is none, with the baselines, and learn from it."""
        values, begins = self._smoothed(step, values)
        values = values - self._level
        sampled = np.isfinite(values)
        known = sampled & (self._count >= self._opening)
        if not known.all():
            self._track = np.where(sampled & (self._count == 0), values, self._track)
        values -= self._track
        deviation, peers, common = self._deviation(values, known)
        count = np.maximum(self._count, 1)
        bound = (
            self.caution
            * (1.0 + WIDENING * self._opening / count)
            * np.maximum(
                np.maximum(BY_MAD * self.sigma, BY_EXTREME * self._extreme), np.maximum(self.floor, BY_PEERS * peers)
            )
        )
        size = np.abs(deviation)
        score = np.divide(size, bound, out=np.zeros(size.shape), where=known)
        if self._joint:
            high = score > JOINT
            if high.any():
                together = high & (high.sum(1, keepdims=True) >= JOINT_COLUMNS)
                score = np.where(together, score / JOINT, score)
        if self.open.any() or score.max() >= HALF:
            begun, ended, learned, relearned = self._follow(step, begins, score, deviation, sampled, known)
        else:
            begun = ended = relearned = np.zeros(known.shape, bool)
            learned = sampled
            self._rest(known)
        self._learn(values, learned, size, known, bound)
        if self._tracking:
            share = np.maximum(self._tracking, 1.0 / np.maximum(self._count, 1))
            np.add(self._track, share * (values - common), out=self._track, where=learned)
        self._reset(relearned)
        return Judgement(score, deviation, begun, ended)

    def _smoothed(self, step: int, values: Float64Array) -> tuple[Float64Array, NDArray[np.int64]]:
        """Return the medians of the last `SMOOTHING` samples (R, C), NaN without one, and the middle one's step."""
        sampled = np.isfinite(values)
        held: NDArray[Any]
        for held, new in ((self._recent, values), (self._steps, step)):
            for older, newer in itertools.pairwise(held):
                np.copyto(older, newer, where=sampled)
            np.copyto(held[-1], new, where=sampled)
        full = sampled & (self._steps[0] >= 0)
        return np.where(full, median_of_few(self._recent), np.nan), self._steps[self._smoothing // 2]

    def _deviation(self, values: Float64Array, known: Bools) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return the signed deviations (R, C), their typical size in the sample (C,), and what all rows did, (C,)."""
        own = np.where(known, values - np.where(known, self.median, 0.0), 0.0)
        peers = common = np.zeros(values.shape[1])
        counts = np.count_nonzero(known, axis=0)
        enough = counts >= FEWEST_PEERS
        if enough.any():
            common = np.where(enough, _middle(own, known, counts), 0.0)
            self._level = self._level + FOLLOWING * common
            relative = own - common
            peers = np.where(enough, _middle(np.abs(relative), known, counts), 0.0)
            own = np.where(np.abs(relative) < np.abs(own), relative, own)
        own = np.where(known, own, 0.0)
        return np.where(self.direction * own < 0, 0.0, own), peers, common

    def _follow(
        self,
        step: int,
        begins: NDArray[np.int64],
        score: Float64Array,
        deviation: Float64Array,
        sampled: Bools,
        known: Bools,
    ) -> tuple[Bools, Bools, Bools, Bools]:
        """Count samples in a row, and return what begins, what ends, what is learned, and what is learned anew."""
        beyond = score > 1.0
        sign = np.sign(deviation)
        same = beyond & (sign == self._sign)
        streak = np.where(same, self._streak + 1, np.where(beyond, 1, 0))
        self._streak = np.where(known, streak, self._streak)
        self._calm = np.where(known, np.where(score < HALF, self._calm + 1, 0), self._calm)
        rising = score > HALF
        keeps = (self._rise >= 0) & (sign == self._sign)
        self._rise = np.where(known, np.where(rising, np.where(keeps, self._rise, begins), -1), self._rise)
        self._sign = np.where(known, np.where(rising, sign, 0.0), self._sign)
        self.last = np.where(beyond, step, self.last)
        self._violations = np.where(known, np.where(self.open & beyond, self._violations + 1, 0), self._violations)
        begun = (self._streak >= self._hold) & ~self.open & known
        self.since = np.where(begun, self._rise, self.since)
        self.open |= begun
        relearned = self.open & (self._violations >= RELEARN)
        ended = (self.open & (self._calm >= CALM)) | relearned
        self.open &= ~ended
        return begun, ended, sampled & ~beyond & ~self.open, relearned

    def _rest(self, known: Bools) -> None:
        """Do what `_follow` does in a sample in which nothing is open or near its bound: most samples are such."""
        self._calm += known
        for array, value in ((self._streak, 0), (self._rise, -1), (self._sign, 0), (self._violations, 0)):
            np.copyto(array, value, where=known)

    def _learn(
        self, values: Float64Array, learned: Bools, size: Float64Array, known: Bools, bound: Float64Array
    ) -> None:
        """Take healthy samples into the window, and harmless deviations into the largest of them."""
        # A deviation is known to be harmless once it is over. A fault that grows slowly would else widen its own bound.
        healthy = known & ~self.open
        over = healthy & (size <= 0.5 * bound)
        np.maximum(self._pending, size, out=self._pending, where=healthy & ~over)
        shown = np.minimum(np.maximum(size, self._pending), 3.0 * bound)
        np.maximum(self._extreme * (1.0 - FORGETTING), shown, out=self._extreme, where=over)
        np.copyto(self._pending, 0.0, where=over | self.open)
        first = int(self._count.flat[0])
        if learned.all() and (self._count == first).all():
            self._ring[first % WINDOW] = values
        else:
            at = np.flatnonzero(learned)
            self._ring.reshape(WINDOW, -1)[self._count.ravel()[at] % WINDOW, at] = values.ravel()[at]
        self._count += learned
        self._tick += 1
        opens = learned & (self._count == self._opening)
        due = np.arange(int(self._tick[0]) % STAGGER, len(values), STAGGER)
        due = due[(self._count[due] >= self._opening).any(1)]
        if opens.any():
            due = np.union1d(due, np.flatnonzero(opens.any(1)))
        if len(due):
            self._compute(due)
            np.copyto(self._extreme, 3.0 * self.sigma / BY_EXTREME, where=opens)

    def _compute(self, rows: NDArray[np.int64]) -> None:
        """Compute median and deviation of some rows from their windows."""
        window = np.ascontiguousarray(self._ring[:, rows].reshape(WINDOW, -1).T)  # a sort of what lies together is fast
        counts = self._count[rows]
        filled = np.minimum(counts.ravel(), WINDOW)
        median = _median_of_first(np.sort(window).astype(np.float64), filled)
        spread = _median_of_first(np.sort(np.abs(window - np.where(filled > 0, median, 0.0)[:, None])), filled)
        self.median[rows] = np.where(filled > 0, median, np.nan).reshape(counts.shape)
        self.sigma[rows] = np.where(filled > 0, MAD_TO_SIGMA * spread, np.nan).reshape(counts.shape)

    def _reset(self, which: Bools) -> None:
        if which.any():
            self._ring[:, which] = np.inf
            for array, value in ((self._count, 0), (self._streak, 0), (self._violations, 0), (self._calm, 0)):
                array[which] = value
            self._extreme[which] = self._pending[which] = 0.0
            self.median[which] = self.sigma[which] = np.nan
            self._rise[which] = -1

    def grow(self, rows: int, floor: Float64Array) -> None:
        """Add rows at the end, which have seen nothing yet; `floor` is (C,) or (rows, C)."""
        new = Baselines(
            rows,
            floor,
            self.direction,
            self.caution,
            opening=self._opening,
            smoothing=self._smoothing,
            joint=self._joint,
            hold=self._hold,
            tracking=self._tracking,
        )
        for name, array in self.state().items():
            if name not in ("tick", "level"):
                axis = 1 if array.ndim == 3 else 0
                setattr(self, _ATTRIBUTES[name], np.concatenate([array, new.state()[name]], axis))
        self.floor = np.concatenate([self.floor, new.floor])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        return {name: getattr(self, attribute) for name, attribute in _ATTRIBUTES.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned.

        Raises:
            ValueError: an array has another shape: the state is one of other layers.
        """
        for name, attribute in _ATTRIBUTES.items():
            now: NDArray[np.generic] = getattr(self, attribute)
            if state[name].shape != now.shape:
                raise ValueError(f"state[{name!r}] must have the shape {now.shape}, got {state[name].shape}")
            setattr(self, attribute, state[name].astype(now.dtype, copy=True))


_ATTRIBUTES = {
    "ring": "_ring",
    "recent": "_recent",
    "steps": "_steps",
    "count": "_count",
    "level": "_level",
    "track": "_track",
    "median": "median",
    "sigma": "sigma",
    "extreme": "_extreme",
    "pending": "_pending",
    "streak": "_streak",
    "sign": "_sign",
    "calm": "_calm",
    "rise": "_rise",
    "since": "since",
    "last": "last",
    "open": "open",
    "violations": "_violations",
    "tick": "_tick",
}


def _middle(values: Float64Array, known: Bools, counts: NDArray[np.int64]) -> Float64Array:
    """Return the medians over the rows of what is known, (R, C) -> (C,); not meaningful for a column without any."""
    return _median_of_first(np.sort(np.ascontiguousarray(np.where(known, values, np.inf).T)), counts)


def _median_of_first(ordered: Float64Array, counts: NDArray[np.int64]) -> Float64Array:
    """Return medians (N,) of the first `counts` (N,) of values (N, n) in ascending order; 0 if there are none."""
    at, most = np.arange(len(counts)), ordered.shape[1] - 1
    low, high = ordered[at, np.maximum(counts - 1, 0) // 2], ordered[at, np.minimum(counts // 2, most)]
    with np.errstate(invalid="ignore"):
        middle = 0.5 * (low + high)
    medians: Float64Array = np.where((counts > 0) & np.isfinite(middle), middle, 0.0)
    return medians
