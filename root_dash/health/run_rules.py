"""Rules of the whole run: learning rate, loss, and what all gradients do together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from root_dash.health.baseline import Baselines
from root_dash.health.findings import Ending, Finding
from root_dash.health.signals import Columns
from root_dash.records import Float64Array
from root_dash.records.verdict import Measured

LOSS_NAMES = ("loss", "train_loss", "train/loss", "training_loss")
"""Names of scalars under which the training loss is looked for, the first one first."""

RATE_RULE, LOSS_RULE, DIVERGENCE_RULE, GRADIENTS_RULE = (
    "learning-rate-jump", "loss-spike", "divergence", "gradients-jump",
)  # fmt: skip

RATE_JUMP = math.log(3.0)
"""Rise of the log learning rate above the highest before, within one sample, that is a jump."""

RATE_SAMPLES = 8
"""Samples before a learning rate is judged: a warm-up may begin steeply."""

RATE_CALM = 2
"""Samples with an ordinary learning rate before a jump has ended."""

DIVERGED = 1.5
"""Multiple of the loss at the beginning of the run above which a loss has diverged."""


class RunRules:
    """The rules of this module. The learning rate is the one that the layers' updates were really scaled by."""

    def __init__(self, count: int) -> None:
        # Columns: log loss, middle of the layers' log gradient norms less their usual ones.
        self._baselines = Baselines(
            1, np.array([math.log(1.3) / 0.7, math.log(2.0)]), np.array([1, 1]), np.array([0.7, 1.0])
        )
        self._rate_highest = np.full(count, -np.inf)
        self._rate_seen = np.zeros(count, np.int64)
        self._numbers = np.array([np.nan, 0.0, 0.0, -1.0, 0.0, 0.0])
        # beginning of the loss, its samples, whether a rate jump lasts, its last step, its calm samples, diverged

    @property
    def rising(self) -> int | None:
        """Step since which loss or gradients rise; None if they do not."""
        rises = self._baselines.rise[0][self._baselines.rise[0] >= 0]
        return int(rises.min()) if len(rises) else None

    @property
    def violated(self) -> bool:
        """Whether loss or gradients of the run lie beyond their bounds."""
        return bool((self._baselines.streak > 0).any())

    def judge(
        self, step: int, columns: Columns, usual_norm: Float64Array, loss: float | None
    ) -> Iterator[Finding | Ending]:
        """Yield what begins and ends in a frame; `usual_norm` (L,) are the layers' usual log gradient norms."""
        yield from self._judge_rate(step, columns)
        # Of all layers the middle one: neither one layer's fault nor one that is frozen changes it.
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.log(columns["grad_norm"]) - usual_norm
            moved = moved[np.isfinite(moved)]
            logs = np.array(
                [[math.nan if loss is None else np.log(loss), np.median(moved) if len(moved) else math.nan]]
            )
        logs[~np.isfinite(logs)] = np.nan
        values = np.exp(logs)
        self._note_beginning(loss)
        usual = np.exp(self._baselines.median[0])
        judged = self._baselines.judge(step, logs)
        names = (
            ("loss", LOSS_RULE, "loss"),
            ("gradients", GRADIENTS_RULE, "the typical layer's gradient norm, over its usual,"),
        )
        for column, (name, rule, words) in enumerate(names):
            value, base, since = float(values[0, column]), float(usual[column]), int(self._baselines.since[0, column])
            if judged.begun[0, column]:
                what = f"{words} rose to {value:.3g}, {value / base:.3g} times its usual {base:.3g}"
                evidence = {name: Measured(value, base)}
                yield Finding(None, rule, "warning", since, what, evidence, float(judged.score[0, column]))
            if judged.ended[0, column]:
                yield Ending(None, rule, int(self._baselines.last[0, column]))
        yield from self._judge_divergence(step, loss)

    def _note_beginning(self, loss: float | None) -> None:
        """Keep the largest of the first finite losses, the beginning from which a divergence is told."""
        if loss is not None and math.isfinite(loss) and self._numbers[1] < 5:
            self._numbers[0] = np.fmax(self._numbers[0], loss)
            self._numbers[1] += 1

    def _judge_divergence(self, step: int, loss: float | None) -> Iterator[Finding | Ending]:
        if loss is None or self._numbers[1] < 5 or not self._numbers[0] > 0:
            return
        limit = DIVERGED * self._numbers[0]
        if self._baselines.open[0, 0] and loss > limit and not self._numbers[5]:
            self._numbers[5] = 1.0
            what = f"loss is {loss:.3g}, {loss / self._numbers[0]:.3g} times what it was at the beginning"
            evidence = {"loss": Measured(loss, float(self._numbers[0]))}
            since = int(self._baselines.since[0, 0])
            yield Finding(None, DIVERGENCE_RULE, "critical", since, what, evidence, loss / limit)
        elif self._numbers[5] and not self._baselines.open[0, 0]:
            self._numbers[5] = 0.0
            yield Ending(None, DIVERGENCE_RULE, int(self._baselines.last[0, 0]))

    def _judge_rate(self, step: int, columns: Columns) -> Iterator[Finding | Ending]:
        """Find a jump of the learning rate: update-to-weight x weight norm / update norm, exact in every layer."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = columns["update_to_weight"] * columns["weight_norm"] / columns["update_norm"]
            logs = np.log(rate)
            excess = logs - self._rate_highest
        sampled = np.isfinite(logs)
        known = sampled & (self._rate_seen >= RATE_SAMPLES)
        jumped = bool(known.any()) and float(np.median(excess[known])) > RATE_JUMP
        lasts = bool(self._numbers[2])
        if jumped:
            self._numbers[3], self._numbers[4] = step, 0
            if not lasts:
                self._numbers[2] = 1.0
                middle = int(np.flatnonzero(known)[np.argsort(excess[known])[known.sum() // 2]])
                value, base = float(rate[middle]), float(np.exp(self._rate_highest[middle]))
                what = f"learning rate rose to {value / base:.3g} times the highest before"
                evidence = {"lr": Measured(value, base)}
                yield Finding(None, RATE_RULE, "warning", step, what, evidence, float(value / base) / 3.0)
            return  # not learned while it lasts
        if lasts and known.any():
            self._numbers[4] += 1
            if self._numbers[4] >= RATE_CALM:
                self._numbers[2] = 0.0
                yield Ending(None, RATE_RULE, int(self._numbers[3]))
        self._rate_highest = np.where(sampled, np.fmax(self._rate_highest, logs), self._rate_highest)
        self._rate_seen += sampled

    def grow(self, count: int) -> None:
        """Add layers, up to `count` of them."""
        new = count - len(self._rate_highest)
        self._rate_highest = np.concatenate([self._rate_highest, np.full(new, -np.inf)])
        self._rate_seen = np.concatenate([self._rate_seen, np.zeros(new, np.int64)])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        own: dict[str, NDArray[np.generic]] = {
            "rate_highest": self._rate_highest, "rate_seen": self._rate_seen, "numbers": self._numbers,
        }  # fmt: skip
        return own | {f"baselines.{name}": array for name, array in self._baselines.state().items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned."""
        self._rate_highest = state["rate_highest"].astype(np.float64)
        self._rate_seen = state["rate_seen"].astype(np.int64)
        self._numbers = state["numbers"].astype(np.float64)
        prefix = "baselines."
        self._baselines.restore(
            {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        )


def loss_of(scalars: Mapping[str, float]) -> float | None:
    """Return the training loss among a frame's scalars; None if none of `LOSS_NAMES` was logged."""
    return next((float(scalars[name]) for name in LOSS_NAMES if name in scalars), None)
