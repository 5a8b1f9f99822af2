"""Rules of the whole run: learning rate, loss, and what all gradients do together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from root_dash.health.baseline import CALM, MAD_TO_SIGMA, Baselines
from root_dash.health.findings import Ending, Finding
from root_dash.health.medians import middle_of
from root_dash.health.signals import Columns, rates_of
from root_dash.records import Float64Array
from root_dash.records.verdict import Measured

LOSS_NAMES = ("loss", "train_loss", "train/loss", "training_loss")
"""Names of scalars under which the training loss is looked for, the first one first."""

RATE_RULE, LOSS_RULE, DIVERGENCE_RULE, GRADIENTS_RULE, BATCHES_RULE = (
    "learning-rate-jump", "loss-spike", "divergence", "gradients-jump", "bad-batches",
)  # fmt: skip

RATE_JUMP = math.log(3.0)
"""Rise of the log learning rate above the highest before, within one sample, that is a jump."""

SPIKE_SAMPLES = 8
"""Samples within which a learning rate that jumped is back, if the jump was a spike."""

SPIKE_BACK, SPIKE_MOVED = 0.7, 0.3
"""Share of a jump that a single sample takes back if the jump was a spike, and the share by which the rate may move in
one sample meanwhile. A restart falls gradually, however short it is."""

RATE_SAMPLES = 8
"""Samples before a learning rate is judged: a warm-up may begin steeply."""

FEWEST = 3
"""Layers below which the middle one may be the sick one: what all gradients do is not known."""

RATE_CALM = 2
"""Samples with an ordinary learning rate before a jump has ended."""

DIVERGED = 1.5
"""Multiple of the loss at the beginning of the run above which a loss has diverged."""


BATCH_WINDOW, BATCH_OPENING, BATCH_RUN = 64, 24, 4
"""Samples that loss and gradients are compared with, the fewest of them, and samples in a row that make a fault."""

BATCH_CENTRE = 16
"""Samples whose median is subtracted first: a loss that falls is compared with its latest values before the run."""

BATCH_NOISE = 1e-3
"""Deviation that is added to the usual one: a loss that hardly changes is not exact."""

BATCH_MARGIN, BATCH_LEAST = 0.1, 2.5
"""Share of the window's range above its middle by which all of the samples in a row pass its largest, and the least
sum of both deviations, in standard deviations."""


class RunRules:
    """The rules of this module. The learning rate is the one that the layers' updates were really scaled by."""

    def __init__(self, count: int) -> None:
        # Columns: log loss, middle of the layers' log gradient norms less their usual ones.
        self._baselines = Baselines(1, np.array([math.log(1.3), math.log(2.0)]), np.array([1, 1]))
        self._past = np.full((BATCH_CENTRE + BATCH_RUN - 1, 2), np.nan)
        self._residuals = np.full((BATCH_WINDOW, 2), np.nan)
        self._sums = np.full(BATCH_WINDOW + BATCH_RUN, np.nan)
        self._sum_steps = np.full(BATCH_RUN, -1, np.int64)
        self._batches = np.array([0, 0, -1])  # whether bad batches last, calm samples, last bad step
        self._rate_highest = np.full(count, -np.inf)
        self._rate_last = np.full(count, np.nan)
        self._rate_seen = np.zeros(count, np.int64)
        self._spike = np.array([0.0, -1.0, -1.0, 0.0, 0.0])  # jump, first and last step, samples, rate
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
                [[math.nan if loss is None else np.log(loss), middle_of(moved) if len(moved) >= FEWEST else math.nan]]
            )
        logs[~np.isfinite(logs)] = np.nan
        values = np.exp(logs)
        self._note_beginning(loss)
        yield from self._judge_batches(step, logs[0])
        usual = np.exp(self._baselines.usual[0])
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

    def _judge_batches(self, step: int, logs: Float64Array) -> Iterator[Finding | Ending]:
        """Find batches whose losses and gradients together lie above all of the samples before.

        Of n + k exchangeable samples the last k are the largest with a chance of 1 / C(n + k, k): 1 in 814,385 for
        n = 64 and k = 4, whatever the distribution (Wilcoxon, 1945).
        """
        if not np.isfinite(logs).any():
            return
        middle = _medians(self._past[:BATCH_CENTRE])
        spread = MAD_TO_SIGMA * _medians(np.abs(self._residuals))
        known = np.isfinite(self._residuals).sum(0) >= BATCH_OPENING
        scores = np.where(known, (logs - middle) / (spread + BATCH_NOISE), np.nan)
        self._residuals = np.concatenate([self._residuals[1:], (logs - middle)[None]])
        self._past = np.concatenate([self._past[1:], logs[None]])
        if not np.isfinite(scores).any():
            return
        self._sums = np.append(self._sums[1:], np.nansum(scores))
        self._sum_steps = np.append(self._sum_steps[1:], step)
        before, last = self._sums[:-BATCH_RUN], self._sums[-BATCH_RUN:]
        before = before[np.isfinite(before)]
        lasts = bool(self._batches[0])
        if lasts:
            bad = self._sums[-1] > BATCH_LEAST
            self._batches[1] = 0 if bad else self._batches[1] + 1
            self._batches[2] = step if bad else self._batches[2]
            if self._batches[1] >= CALM:
                self._batches[0] = 0
                yield Ending(None, BATCHES_RULE, int(self._batches[2]))
        elif len(before) >= BATCH_OPENING:
            highest = before.max()
            bound = max(highest + BATCH_MARGIN * (highest - middle_of(before)), BATCH_LEAST)
            if last.min() > bound:
                self._batches[:] = 1, 0, step
                rises = np.exp(logs - middle)
                named = [(name, rise) for name, rise in zip(("loss", "gradients"), rises, strict=True) if rise > 1]
                what = (
                    f"{' and '.join(f'{name} {rise:.3g} times' for name, rise in named)} the usual, and above all of "
                )
                what += f"the last {len(before)} samples, for {BATCH_RUN} in a row"
                evidence = {name: Measured(float(rise), 1.0) for name, rise in named}
                yield Finding(
                    None, BATCHES_RULE, "warning", int(self._sum_steps[0]), what, evidence, float(last.min() / bound)
                )

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
            rate = rates_of(columns)
            logs = np.log(rate)
            excess, change = logs - self._rate_highest, logs - self._rate_last
        sampled = np.isfinite(logs)
        if not sampled.any():
            return
        self._rate_last = np.where(sampled, logs, self._rate_last)
        known = sampled & (self._rate_seen >= RATE_SAMPLES)
        jumped = bool(known.any()) and middle_of(excess[known]) > RATE_JUMP
        lasts = bool(self._numbers[2])
        change = change[known & np.isfinite(change)]
        spike = self._follow_spike(step, middle_of(change), math.exp(middle_of(logs[sampled]))) if len(change) else None
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
        if spike is not None and not lasts:
            self._numbers[2:5] = 1.0, self._spike[2], 1.0
            yield spike
        elif lasts and known.any():
            self._numbers[4] += 1
            if self._numbers[4] >= RATE_CALM:
                self._numbers[2] = 0.0
                yield Ending(None, RATE_RULE, int(self._numbers[3]))
        self._rate_highest = np.where(sampled, np.fmax(self._rate_highest, logs), self._rate_highest)
        self._rate_seen += sampled

    def _follow_spike(self, step: int, change: float, rate: float) -> Finding | None:
        """Return a finding if the learning rate is back from a jump to no more than its highest value.

        A schedule that restarts stays up, and falls gradually. `change` is the log rate's since the sample before.
        """
        jump, since, _, samples, high = self._spike.tolist()
        if jump and change < -SPIKE_BACK * jump:
            self._spike[0] = 0.0
            what = f"learning rate was {math.exp(jump):.3g} times as high as before, {high:.3g}, and fell back"
            evidence = {"lr": Measured(high, high / math.exp(jump))}
            return Finding(None, RATE_RULE, "warning", int(since), what, evidence, math.exp(jump) / 3.0)
        if change > RATE_JUMP:
            self._spike[:] = change, step, step, 0.0, rate
        elif jump:
            self._spike[2:4] = step, samples + 1
            if samples + 1 >= SPIKE_SAMPLES or abs(change) > SPIKE_MOVED * jump:
                self._spike[0] = 0.0
        return None

    def grow(self, count: int) -> None:
        """Add layers, up to `count` of them."""
        new = count - len(self._rate_highest)
        self._rate_highest = np.concatenate([self._rate_highest, np.full(new, -np.inf)])
        self._rate_last = np.concatenate([self._rate_last, np.full(new, np.nan)])
        self._rate_seen = np.concatenate([self._rate_seen, np.zeros(new, np.int64)])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        own: dict[str, NDArray[np.generic]] = {
            "rate_highest": self._rate_highest, "rate_seen": self._rate_seen, "numbers": self._numbers,
            "past": self._past, "residuals": self._residuals, "sums": self._sums, "sum_steps": self._sum_steps,
            "batches": self._batches, "rate_last": self._rate_last, "spike": self._spike,
        }  # fmt: skip
        return own | {f"baselines.{name}": array for name, array in self._baselines.state().items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned."""
        self._rate_highest = state["rate_highest"].astype(np.float64)
        self._rate_seen = state["rate_seen"].astype(np.int64)
        self._rate_last, self._spike = state["rate_last"].astype(np.float64), state["spike"].astype(np.float64)
        self._numbers = state["numbers"].astype(np.float64)
        self._past, self._sums = state["past"].astype(np.float64), state["sums"].astype(np.float64)
        self._residuals = state["residuals"].astype(np.float64)
        self._sum_steps, self._batches = state["sum_steps"].astype(np.int64), state["batches"].astype(np.int64)
        prefix = "baselines."
        self._baselines.restore(
            {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        )


def _medians(values: Float64Array) -> Float64Array:
    """Return the medians of the columns of (n, C), (C,): of what is no NaN, and NaN if nothing is."""
    found = [column[np.isfinite(column)] for column in values.T]
    return np.array([middle_of(column) if len(column) else math.nan for column in found])


def loss_of(scalars: Mapping[str, float]) -> float | None:
    """Return the training loss among a frame's scalars; None if none of `LOSS_NAMES` was logged."""
    return next((float(scalars[name]) for name in LOSS_NAMES if name in scalars), None)
