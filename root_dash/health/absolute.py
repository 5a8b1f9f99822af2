"""Rules that need no baseline: what must never be, and what follows from how the numbers are defined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from root_dash.health.findings import Ending, Finding
from root_dash.health.signals import ORTHOGONALIZED, Columns, kinds_of, rates_of
from root_dash.records import Float64Array, Layer
from root_dash.records.verdict import Measured, Severity

HOLD = 3
"""Samples in a row before a rule of this module fires, except for numbers that are not finite."""

CALM = 8
"""Samples in a row without the fault before the fault has ended."""

SEEN = 8
"""Samples with a gradient that a layer must have had before a missing gradient is a fault."""

UNEXPLAINED = 0.25
"""Change of log ‖W‖ between two samples, beyond what the updates between them can have made, that is a fault."""

LONGEST_GAP = 20
"""Steps between two samples of a weight beyond which its change is not judged."""

DECAY = 0.01
"""Largest share of a weight that weight decay takes in a step, allowed for beside the update."""

TOO_LARGE = 1.5
"""Bound of an orthogonalized update's root mean square singular value, and of its orthogonality error.

Singular values of an orthogonalized update are about 1: at most 1.06 with ROOT's sets and 1.21 with Muon's. The
orthogonality error of an update without any singular value above 1 is at most 1.
"""

FAR_TOO_LARGE = 10.0
"""The same beyond which a single sample is enough: the next step may not be finite."""

RESOLVED = 1e-5
"""Update-to-weight that single precision, whose half unit is 6e-8, takes in nearly all entries."""

SAME_GRADIENT = 0.3
"""Share of its usual gradient that a layer must have at least if its usual step is expected of it."""

FOLLOWING = 1.0 / 16.0
"""Share by which a layer's usual step and gradient follow each sample."""

SURVIVING = 0.25
"""Share of the entries with a gradient below which a weight's updates count as rounded away."""

BY_CHANCE = 1e-6
"""Chance below which so many samples of zeros in a row are none, for layers of a kind that is zero at times."""

_RULES = ("dead-layer", "no-gradient", "update-too-large", "weight-overwritten", "updates-rounded-away")


class AbsoluteRules:
    """The rules of this module, for all layers at once; a layer's row is its position."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._describe(layers)
        self._arrays = self._empty(len(layers))

    def _describe(self, layers: Sequence[Layer]) -> None:
        self._sizes = np.array([layer.size for layer in layers], np.float64)
        self._kinds = kinds_of(layers)
        self._root_rank = np.array([min(layer.rows, layer.cols) ** 0.5 for layer in layers])
        self._orthogonalized = np.array([layer.algorithm in ORTHOGONALIZED for layer in layers], bool)

    @staticmethod
    def _empty(count: int) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {
            "seen": np.zeros(count, np.int64),
            "zeros": np.zeros(count, np.int64),
            "longest_zero": np.zeros(count, np.int64),
            "longest_absence": np.zeros(count, np.int64),
            "weight": np.full(count, np.nan),
            "moved": np.full(count, np.nan),
            "weight_step": np.full(count, -1, np.int64),
            "unexplained": np.zeros(count),
            "usual_step": np.full(count, np.nan),
            "usual_gradient": np.full(count, np.nan),
        }
        for rule in _RULES:
            arrays[f"{rule}.streak"] = np.zeros(count, np.int64)
            arrays[f"{rule}.calm"] = np.zeros(count, np.int64)
            arrays[f"{rule}.first"] = np.full(count, -1, np.int64)
            arrays[f"{rule}.last"] = np.full(count, -1, np.int64)
            arrays[f"{rule}.open"] = np.zeros(count, bool)
        return arrays

    def judge(
        self, step: int, recorded: NDArray[np.bool_], finite: NDArray[np.bool_], columns: Columns
    ) -> Iterator[Finding | Ending]:
        """Yield what the rules find in a frame.

        `recorded` (L,) says which layers have statistics in the frame, `finite` (L,) which have finite ones.
        """
        present = recorded & finite
        zero = present & ((columns["grad_zero"] >= self._sizes) | (columns["grad_norm"] == 0.0))
        seen = self._int("seen")
        streak = self._int("dead-layer.streak")
        longest, zeros = self._int("longest_zero"), self._int("zeros")
        # A mixture of experts leaves experts without tokens: what has been zero before may be zero as long again.
        longest[:] = np.where(present & ~zero, np.maximum(longest, streak), longest)
        absence = self._int("longest_absence")
        absence[:] = np.where(recorded, np.maximum(absence, self._int("no-gradient.streak")), absence)
        seen += present & ~zero
        known = seen >= SEEN
        hold, sparse = np.maximum(HOLD, 3 * longest), zero
        if zero.any():
            share = (zeros + 1) / (seen + zeros + 2)  # of samples in which the layer is zero, by Laplace's rule
            by_chance = np.ceil(math.log(BY_CHANCE) / np.log(share)).astype(np.int64)
            sparse = np.bincount(self._kinds, zeros > 0)[self._kinds] - (zeros > 0) > 0
            hold = np.where(sparse | (zeros > 1), np.maximum(hold, by_chance), hold)
        zeros += zero & known & (streak == 0)
        yield from self._hold(
            step, "dead-layer", zero & known, present, hold,
            lambda i: (
                "gradient is exactly 0 in all entries" + (", as it was at times in layers of the same kind: an expert "
                "that gets no example has this" if sparse[i] else ""),
                {"grad_zero": Measured(float(self._sizes[i]), 0.0)},
            ), lambda i: "note" if sparse[i] else "warning",
        )  # fmt: skip
        absent = ~recorded & known
        yield from self._hold(
            step, "no-gradient", absent, np.ones(len(absent), bool), np.maximum(HOLD, 3 * absence),
            lambda i: ("gradient is missing: the layer is frozen or unused", {}), "note",
        )  # fmt: skip
        with np.errstate(invalid="ignore"):
            size = columns["update_norm"] / self._root_rank
            error = columns["orthogonality_error"]
            too_large = self._orthogonalized & present & ((size > TOO_LARGE) | (error > TOO_LARGE))
        hold = np.where((size > FAR_TOO_LARGE) | (error > FAR_TOO_LARGE), 1, HOLD)
        if (too_large & (self._int("update-too-large.streak") + 1 >= hold)).any():
            hold[:] = 1  # a coefficient set is shared: once one layer is sick, one sample of another is enough
        yield from self._hold(
            step, "update-too-large", too_large, present, hold,
            lambda i: (
                f"orthogonalized update has a root mean square singular value of {size[i]:.3g} and an orthogonality "
                f"error of {error[i]:.3g}, and both should be at most about 1",
                {"update_norm": Measured(float(size[i] * self._root_rank[i]), float(self._root_rank[i])),
                 "orthogonality_error": Measured(float(error[i]), 1.0)},
            ), "critical",
        )  # fmt: skip
        yield from self._rounding(step, present, columns)
        yield from self._weights(step, present, columns)

    def _rounding(self, step: int, present: NDArray[np.bool_], columns: Columns) -> Iterator[Finding | Ending]:
        """Find weights that are stored too coarsely for their updates: most of these are rounded away.

        If nothing is left of an update, nothing is measured of the update either: then the layer's usual step at the
        present learning rate is what is expected, if its gradient is hardly smaller than usual.
        """
        changed, moved, gradient = columns["changed_share"], columns["update_to_weight"], columns["grad_norm"]
        usual, usual_gradient = self._float("usual_step"), self._float("usual_gradient")
        with np.errstate(invalid="ignore", divide="ignore"):
            possible = 1.0 - columns["grad_zero"] / self._sizes
            rate = rates_of(columns)
            expected = np.where(gradient > SAME_GRADIENT * usual_gradient, usual * rate, 0.0)
            expected = np.fmax(moved, expected)
            judged = present & np.isfinite(changed) & (expected > RESOLVED) & (possible > 0)
            lost = judged & (changed < SURVIVING * possible)
            relative = moved / rate
        for average, value in ((usual, relative), (usual_gradient, gradient)):
            learned = present & ~lost & np.isfinite(value) & (value > 0)
            following = np.where(np.isnan(average), value, average + FOLLOWING * (value - average))
            average[:] = np.where(learned, following, average)
        yield from self._hold(
            step, "updates-rounded-away", lost, judged, HOLD,
            lambda i: (
                f"{changed[i]:.0%} of the weight's entries change in a step, although the update is "
                f"{expected[i]:.2g} of the weight: its data type is too coarse for its updates",
                {"changed_share": Measured(float(changed[i]), float(possible[i])),
                 "update_to_weight": Measured(float(moved[i]), float(expected[i]))},
            ), "warning",
        )  # fmt: skip

    def _weights(self, step: int, present: NDArray[np.bool_], columns: Columns) -> Iterator[Finding | Ending]:
        """Find weights that something else than their optimizer has changed."""
        before, moved_before = self._float("weight"), self._float("moved")
        last = self._int("weight_step")
        weight, moved = columns["weight_norm"], columns["update_to_weight"]
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = step - last
            change = np.abs(np.log(weight / before))
            allowed = gap * (3.0 * np.fmax(moved, moved_before) + DECAY)
            unexplained = change - allowed
        judged = present & (last >= 0) & (gap > 0) & (gap <= LONGEST_GAP) & np.isfinite(unexplained)
        extreme = self._float("unexplained")
        odd = judged & (unexplained > UNEXPLAINED) & (unexplained > 3.0 * extreme)
        extreme[:] = np.where(judged & ~odd, np.maximum(extreme, unexplained), extreme)
        old = before.copy()
        taken = present & np.isfinite(weight)
        before[:] = np.where(taken, weight, before)
        moved_before[:] = np.where(taken, moved, moved_before)
        last[:] = np.where(taken, step, last)
        yield from self._hold(
            step, "weight-overwritten", odd, present, np.ones(len(odd), np.int64),
            lambda i: (
                f"weight norm went from {old[i]:.3g} to {weight[i]:.3g} within {gap[i]} steps, and "
                f"updates can have changed it by a factor of {np.exp(allowed[i]):.3g} at most: something else wrote "
                "into the weight",
                {"weight_norm": Measured(float(weight[i]), float(old[i]))},
            ), "critical",
        )  # fmt: skip

    def _hold(
        self,
        step: int,
        rule: str,
        sick: NDArray[np.bool_],
        judged: NDArray[np.bool_],
        hold: NDArray[np.int64] | int,
        describe: Callable[[int], tuple[str, Mapping[str, Measured]]],
        severity: Severity | Callable[[int], Severity],
    ) -> Iterator[Finding | Ending]:
        """Yield the findings and endings of one rule, given in which layers the sample is sick, (L,)."""
        streak, calm = self._int(f"{rule}.streak"), self._int(f"{rule}.calm")
        first, last = self._int(f"{rule}.first"), self._int(f"{rule}.last")
        open_ = self._bool(f"{rule}.open")
        if not sick.any():  # nearly always: a frame has little time
            streak[judged] = 0
            calm += judged
            if open_.any():
                yield from self._end(rule)
            return
        first[:] = np.where(sick & (streak == 0), step, first)
        last[:] = np.where(sick, step, last)
        streak[:] = np.where(sick, streak + 1, np.where(judged, 0, streak))
        calm[:] = np.where(sick, 0, np.where(judged, calm + 1, calm))
        for i in np.flatnonzero((streak >= hold) & ~open_ & sick).tolist():
            open_[i] = True
            what, evidence = describe(i)
            one = severity(i) if callable(severity) else severity
            yield Finding(i, rule, one, int(first[i]), what, evidence, float("inf"))
        yield from self._end(rule)

    def _end(self, rule: str) -> Iterator[Ending]:
        """End a rule's faults in layers that have been calm for long enough."""
        open_ = self._bool(f"{rule}.open")
        for i in np.flatnonzero(open_ & (self._int(f"{rule}.calm") >= CALM)).tolist():
            open_[i] = False
            yield Ending(i, rule, int(self._int(f"{rule}.last")[i]))

    def sick(self) -> NDArray[np.bool_]:
        """Return which layers have a fault by a rule of this module that is more than a note, (L,)."""
        rules = [rule for rule in _RULES if rule != "no-gradient"]
        sick: NDArray[np.bool_] = np.any([self._bool(f"{rule}.open") for rule in rules], axis=0)
        return sick

    def at_times_zero(self, layer: int) -> bool:
        """Return whether a layer's gradient was exactly 0 more than once and came back."""
        return bool(self._int("zeros")[layer] > 1)

    def grow(self, layers: Sequence[Layer]) -> None:
        """Add layers; `layers` are all of them, the old ones first."""
        new = self._empty(len(layers) - len(self._sizes))
        self._describe(layers)
        self._arrays = {name: np.concatenate([array, new[name]]) for name, array in self._arrays.items()}

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        return self._arrays

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned."""
        self._arrays = {name: state[name].astype(array.dtype, copy=True) for name, array in self._arrays.items()}

    def _int(self, name: str) -> NDArray[np.int64]:
        array: NDArray[np.int64] = self._arrays[name]  # type: ignore[assignment]
        return array

    def _bool(self, name: str) -> NDArray[np.bool_]:
        array: NDArray[np.bool_] = self._arrays[name]  # type: ignore[assignment]
        return array

    def _float(self, name: str) -> Float64Array:
        array: Float64Array = self._arrays[name]  # type: ignore[assignment]
        return array
