"""The rule of numbers that are not finite: the layer of the first such number, and the layers that followed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.health.findings import Ending, Finding
from root_dash.health.signals import Columns
from root_dash.records.verdict import Measured

CALM = 8
"""Number of finite samples after which the fault has ended."""

RULE, LOSS_RULE = "non-finite-gradient", "non-finite-loss"


class NonFinite:
    """The judge of gradients, weights and losses that are not finite. The judge names the layer of origin."""

    def __init__(self) -> None:
        self.origin: list[int] = []
        """Positions of the layers that may be the origin; empty while all numbers are finite."""
        self.spread: set[int] = set()
        """Positions of all layers that the fault has reached."""
        self._open = False
        self._loss_open = False
        self._calm = self._loss_calm = 0
        self._last = self._loss_last = -1

    def judge(
        self, step: int, present: NDArray[np.bool_], columns: Columns, loss: float | None
    ) -> Iterator[Finding | Ending]:
        """Yield what begins and ends in a frame. Layers that follow the first ones are findings of their own."""
        now = self.bad(present, columns)
        with np.errstate(invalid="ignore"):
            between = present & (columns["nonfinite_steps"] > 0)
        bad = now | between
        if bad.any():
            sick = np.flatnonzero(bad).tolist()
            steps = np.where(between, columns["nonfinite_step"], step)
            first = int(steps[bad].min())
            self._last, self._calm = step, 0
            new = [i for i in sick if i not in self.spread]
            if not self._open:
                self._open = True
                self.origin = _origin(bad & (steps == first), present, columns, first == step)
                yield self._first(first, sick, columns, int(present.sum()))
                new = [i for i in new if self.origin != [i]]
            self.spread.update(sick)
            for i in new:
                yield Finding(i, RULE, "note", int(steps[i]), _counts(columns, i), _evidence(columns, i), math.inf)
        elif present.any() and self._open:
            self._calm += 1
            if self._calm >= CALM:
                yield from (Ending(i, RULE, self._last) for i in [*sorted(self.spread), None])
                self._open, self.origin, self.spread = False, [], set()
        yield from self._judge_loss(step, loss)

    def bad(self, present: NDArray[np.bool_], columns: Columns) -> NDArray[np.bool_]:
        """Return which layers have NaN or infinity in gradient or weight, (L,).

        A row of sentinels alone has no norm of the weight, which is NaN without being a fault.
        """
        with np.errstate(invalid="ignore"):
            counted = columns["grad_nan"] + columns["grad_inf"]
            weight = ~np.isnan(counted) & ~np.isfinite(columns["weight_norm"])
            bad: NDArray[np.bool_] = present & ((counted > 0) | weight)
        return bad

    def _first(self, step: int, sick: Sequence[int], columns: Columns, count: int) -> Finding:
        if len(self.origin) == 1:
            i = self.origin[0]
            if len(sick) == 1:
                others = f"; all other {count - 1} layers are finite"
            else:
                others = f"; from it {len(sick) - 1} more of {count} layers were reached"
            return Finding(i, RULE, "critical", step, _counts(columns, i) + others, _evidence(columns, i), math.inf)
        what = (
            f"{len(sick)} of {count} layers have gradients that are not finite, all first at the same recorded step: "
            "the origin is one of them"
        )
        evidence = {"layers": Measured(float(len(sick)), 0.0)}
        return Finding(None, RULE, "critical", step, what, evidence, math.inf, tuple(self.origin))

    def _judge_loss(self, step: int, loss: float | None) -> Iterator[Finding | Ending]:
        if loss is None:
            return
        if not math.isfinite(loss):
            self._loss_last, self._loss_calm = step, 0
            if not self._loss_open:
                self._loss_open = True
                evidence = {"loss": Measured(loss)}
                yield Finding(None, LOSS_RULE, "critical", step, f"loss is {loss}", evidence, math.inf)
        elif self._loss_open:
            self._loss_calm += 1
            if self._loss_calm >= CALM:
                self._loss_open = False
                yield Ending(None, LOSS_RULE, self._loss_last)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "origin": self.origin,
            "spread": sorted(self.spread),
            "open": [self._open, self._loss_open],
            "calm": [self._calm, self._loss_calm],
            "last": [self._last, self._loss_last],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self.origin, self.spread = list(state["origin"]), set(state["spread"])
        self._open, self._loss_open = state["open"]
        self._calm, self._loss_calm = state["calm"]
        self._last, self._loss_last = state["last"]


def _origin(bad: NDArray[np.bool_], present: NDArray[np.bool_], columns: Columns, now: bool) -> list[int]:
    """Return the layers of which one is the origin of what is not finite within one step.

    A weight that was not finite before the step explains every gradient. Else the backward pass tells: it goes from the
    last layer to the first, so if some last layers are finite, the fault began at the last layer that is not. If all
    layers are reached, the forward pass was, and the step does not tell where. `now` says that the step is the frame's:
    else nothing is known of the weights before it.
    """
    measured = ~np.isnan(columns["grad_nan"])
    weights = np.flatnonzero(bad & measured & ~np.isfinite(columns["weight_norm"])).tolist()
    if now and weights and len(weights) < bad.sum():
        return weights
    sick = np.flatnonzero(bad).tolist()
    later = np.flatnonzero(present & ~bad)
    if len(sick) > 1 and len(later) and later.min() > max(sick):
        return [max(sick)]
    return sick


def _counts(columns: Columns, i: int) -> str:
    nan, inf = columns["grad_nan"][i], columns["grad_inf"][i]
    if nan + inf > 0:
        parts = [f"{count:,.0f} {name}" for count, name in ((nan, "NaN"), (inf, "infinite")) if count > 0]
        return f"gradient has {' and '.join(parts)} {'entry' if nan + inf == 1 else 'entries'}"
    if columns["nonfinite_steps"][i] > 0:
        return f"gradient was not finite in {columns['nonfinite_steps'][i]:,.0f} of the steps since the frame before"
    return "weight is not finite"


def _evidence(columns: Columns, i: int) -> dict[str, Measured]:
    names = ("grad_nan", "grad_inf", *(("nonfinite_steps",) if columns["nonfinite_steps"][i] > 0 else ()))
    return {name: Measured(float(columns[name][i]), 0.0) for name in names}
