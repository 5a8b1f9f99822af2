"""`Health`: the fold that turns the frames of a run, one after the other, into verdicts."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from root_dash.health.absolute import AbsoluteRules
from root_dash.health.baseline import Baselines, Judgement
from root_dash.health.causes import Causes, Scene
from root_dash.health.drift import DRIFT_RULE, Drift
from root_dash.health.findings import Ending, Finding
from root_dash.health.nonfinite import RULE as NONFINITE_RULE
from root_dash.health.nonfinite import NonFinite
from root_dash.health.peaks import Peaks
from root_dash.health.run_rules import RATE_RULE, RunRules, loss_of
from root_dash.health.signals import (
    SIGNALS,
    SPARSE_SIGNALS,
    Columns,
    Signal,
    columns_of,
    floors_of,
    signals_of,
)
from root_dash.records import Float64Array, Frame, Layer, outlying
from root_dash.records.verdict import Changes, Measured, Severity, Verdict

SPARSE_OPENING, SPARSE_SMOOTHING = 6, 3
"""Samples of spectra and masks before they are judged, and those whose median is judged: they come seldom."""

MASKS_KEPT, ROWS_KEPT = 3, 4
"""Latest masks of a layer that are compared, and worst rows and columns that are kept of each."""

SCORE_NONFINITE, SCORE_ABSOLUTE = 100.0, 10.0
"""Scores of layers with a fault that no bound is defined for."""

LOST_RULE, COLLAPSE_RULE = "frames-lost", "gradient-collapse"

_FORMAT = 2


class Health:
    """Turns a run's frames into verdicts, in bounded memory, whatever the cadence.

    ```python
    health = Health(layers)
    for frame in frames:
        for verdict in health.update(frame).begun:
            print(verdict.text)
    ```

    `update` depends on nothing but the frames before: it may be interrupted anywhere, saved with `state` and continued
    with `from_state`. It is not safe to call it from two threads at once.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Begin a run of these layers, in the order of their positions.

        Raises:
            ValueError: the positions are not 0, 1, 2, ...
        """
        _check_positions(layers, 0)
        self._layers = list(layers)
        count = len(layers)
        self._sizes = _sizes(layers)
        self._fast = Baselines(
            count,
            floors_of(SIGNALS, layers),
            _directions(SIGNALS),
            _cautions(SIGNALS),
            joint=True,
            hold=np.array([signal.hold for signal in SIGNALS]),
        )
        self._sparse = Baselines(
            count, floors_of(SPARSE_SIGNALS, layers), _directions(SPARSE_SIGNALS), _cautions(SPARSE_SIGNALS),
            opening=SPARSE_OPENING, smoothing=SPARSE_SMOOTHING,
        )  # fmt: skip
        self._drift = Drift(layers)
        self._absolute = AbsoluteRules(layers)
        self._peaks = Peaks(count)
        self._run = RunRules(count)
        self._nonfinite = NonFinite()
        self._causes = Causes([layer.name for layer in layers])
        self._worst = np.full((MASKS_KEPT, 2, count, ROWS_KEPT), -1, np.int64)
        self._sample = 0
        self.scores = np.zeros(count, np.float32)
        """Each layer's worst score in the last frame: deviation over the rule's bound, (L,)."""
        self.worst_rules = np.zeros(count, np.int16)
        """Index in `RULES` of the rule that each layer's score belongs to, (L,)."""

    @property
    def open(self) -> tuple[Verdict, ...]:
        """The verdicts that last, by `id`."""
        return tuple(sorted({v.id: v for v in self._causes.open.values()}.values(), key=lambda verdict: verdict.id))

    def update(self, frame: Frame) -> Changes:
        """Take the run's next frame and return the verdicts that it begins, changes and ends.

        Raises:
            ValueError: the frame names a layer that the run does not have: call `extend` first.
        """
        count = len(self._layers)
        if len(frame.layers) and int(frame.layers.max()) >= count:
            raise ValueError(f"frame.layers must be below {count}, the number of layers, got {int(frame.layers.max())}")
        columns = columns_of(frame.layers, frame.statistics, count)
        present = np.zeros(count, bool)
        present[frame.layers] = True
        loss = loss_of(frame.scalars)
        found: list[Finding | Ending] = list(self._nonfinite.judge(frame.step, present, columns, loss))
        bad = self._nonfinite.bad(present, columns)
        for values in columns.values():
            values[bad] = np.nan
        found += self._run.judge(frame.step, columns, self._fast.usual[:, 0], loss)
        if present.any():
            found += self._absolute.judge(frame.step, present, ~bad, columns)
            values = signals_of(SIGNALS, columns, self._sizes)
            usual = self._fast.usual
            fast = self._fast.judge(frame.step, values)
            found += self._findings(SIGNALS, self._fast, fast, columns, usual)
            found += self._drift.judge(frame.step, columns)
            found += self._peaks.judge(frame.step, columns, usual[:, 0])
            self._rate_layers(fast, bad)
            self._sample += 1
        found += self._judge_sparse(frame)
        if frame.lost:
            what, evidence = (
                f"{frame.lost} frames were lost before this one",
                {"lost": Measured(float(frame.lost), 0.0)},
            )
            found.append(Finding(None, LOST_RULE, "note", frame.step, what, evidence))
        if not found:
            return Changes()
        return self._settle(frame, found, present, bad)

    def _settle(
        self, frame: Frame, found: Sequence[Finding | Ending], present: NDArray[np.bool_], bad: NDArray[np.bool_]
    ) -> Changes:
        beyond = (self._fast.streak > 0).any(1) | self._absolute.sick() | bad
        far = np.iinfo(np.int64).max
        rise = np.where((self._fast.streak > 0) & (self._fast.rise >= 0), self._fast.rise, far).min(1)
        rise = np.where(rise == far, frame.step, rise)
        jumped = (None, RATE_RULE) in self._causes.open or any(
            isinstance(one, Finding) and one.rule == RATE_RULE for one in found
        )
        scene = Scene(self._sample, beyond, rise, int(present.sum()) or len(self._layers), jumped, self._run.violated)
        findings = [one for one in found if isinstance(one, Finding)]
        endings = [one for one in found if isinstance(one, Ending)]
        changes = self._causes.settle([one for one in findings if one.rule != LOST_RULE], endings, scene)
        lost = [self._causes.note(one, scene) for one in findings if one.rule == LOST_RULE]
        return replace(changes, begun=(*changes.begun, *lost))

    def _findings(
        self, signals: Sequence[Signal], baselines: Baselines, judged: Judgement, columns: Columns, usual: Float64Array
    ) -> Iterator[Finding | Ending]:
        for i, s in zip(*(at.tolist() for at in np.nonzero(judged.ended)), strict=True):
            for rule in filter(None, (signals[s].up, signals[s].down)):
                yield Ending(i, rule, int(baselines.last[i, s]))
        for i, s in zip(*(at.tolist() for at in np.nonzero(judged.begun)), strict=True):
            signal, deviation = signals[s], float(judged.deviation[i, s])
            value, since = float(columns[signal.statistic][i]), int(baselines.since[i, s])
            rule = signal.up if deviation > 0 else signal.down
            what, evidence = _words(signal, value, float(usual[i, s]), deviation, float(self._sizes[i]))
            what += self._places(i)
            expected = rule == COLLAPSE_RULE and self._absolute.at_times_zero(i)  # an expert with few examples
            severity: Severity = "note" if expected else "warning"
            yield Finding(i, rule, severity, since, what, evidence, float(judged.score[i, s]))

    def _judge_sparse(self, frame: Frame) -> Iterator[Finding | Ending]:
        """Judge spectra and masks, and keep the rows and columns in which outliers gather."""
        if not frame.spectra and not frame.masks:
            return
        count = len(self._layers)
        columns = {signal.statistic: np.full(count, np.nan) for signal in SPARSE_SIGNALS}
        for recorded in (frame.spectra, frame.masks):
            for position, (_, numbers) in recorded.items():
                for name in columns:
                    if name in numbers:
                        columns[name][position] = numbers[name]
        for position, (mask, _) in frame.masks.items():
            self._worst[:, :, position] = np.roll(self._worst[:, :, position], 1, axis=0)
            for side, totals in enumerate((mask.row_totals, mask.col_totals)):
                worst = np.argsort(totals)[::-1][:ROWS_KEPT]
                kept = worst[outlying(totals)[worst]]
                self._worst[0, side, position] = -1
                self._worst[0, side, position, : len(kept)] = kept
        usual = self._sparse.usual
        judged = self._sparse.judge(frame.step, signals_of(SPARSE_SIGNALS, columns, self._sizes))
        yield from self._findings(SPARSE_SIGNALS, self._sparse, judged, columns, usual)

    def _places(self, layer: int) -> str:
        """Return a clause that names the rows and columns with most outliers in all of the latest masks."""
        words = []
        for side, name in enumerate(("row", "column")):
            first, *others = self._worst[:, side, layer]
            same = [int(at) for at in first if at >= 0 and all(at in other for other in others)]
            if same:
                plural = "s" if len(same) > 1 else ""
                words.append(f"{name}{plural} {', '.join(map(str, sorted(same)))}")
        return f", with outliers gathering in {' and '.join(words)}" if words else ""

    def _rate_layers(self, judged: Judgement, bad: NDArray[np.bool_]) -> None:
        """Give each layer its worst score and the rule that it belongs to."""
        worst = judged.score.argmax(1)
        rows = np.arange(len(worst))
        score = judged.score[rows, worst]
        up = judged.deviation[rows, worst] > 0
        rules = np.where(up, _UP[worst], _DOWN[worst])
        sick = self._absolute.sick()
        score = np.where(sick, np.maximum(score, SCORE_ABSOLUTE), score)
        rules = np.where(sick & (score == SCORE_ABSOLUTE), RULES.index("absolute"), rules)
        self.scores = np.where(bad, SCORE_NONFINITE, score).astype(np.float32)
        self.worst_rules = np.where(bad, RULES.index(NONFINITE_RULE), rules).astype(np.int16)

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers that the run did not have before; their positions follow those of the layers it has.

        Raises:
            ValueError: the positions do not follow.
        """
        if not layers:
            return
        _check_positions(layers, len(self._layers))
        self._layers += layers
        new = len(layers)
        self._sizes = _sizes(self._layers)
        self._fast.grow(new, floors_of(SIGNALS, layers))
        self._sparse.grow(new, floors_of(SPARSE_SIGNALS, layers))
        self._drift.grow(layers)
        self._absolute.grow(self._layers)
        self._peaks.grow(len(self._layers))
        self._run.grow(len(self._layers))
        self._causes.names += [layer.name for layer in layers]
        empty = np.full((MASKS_KEPT, 2, new, ROWS_KEPT), -1, np.int64)
        self._worst = np.concatenate([self._worst, empty], 2)
        self.scores = np.concatenate([self.scores, np.zeros(new, np.float32)])
        self.worst_rules = np.concatenate([self.worst_rules, np.zeros(new, np.int16)])

    def state(self) -> bytes:
        """Return all that the future depends on, to be continued by `from_state`: an `.npz` archive without pickles."""
        arrays: dict[str, NDArray[Any]] = {
            f"{part}/{name}": array for part, owner in self._parts() for name, array in owner.state().items()
        }
        rest = {
            "format": _FORMAT,
            "nonfinite": self._nonfinite.state(),
            "causes": self._causes.state(),
            "sample": self._sample,
        }
        arrays |= {"worst": self._worst, "scores": self.scores, "worst_rules": self.worst_rules}
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_state(cls, layers: Sequence[Layer], state: bytes) -> Self:
        """Return the fold that `state` was taken of, for the same layers.

        Raises:
            ValueError: the state is no state of ours, of another version, or of other layers.
        """
        health = cls(layers)
        try:
            with np.load(io.BytesIO(state), allow_pickle=False) as file:
                arrays = dict(file)
            rest: dict[str, Any] = json.loads(arrays["rest"].tobytes())
        except Exception as error:  # whatever a broken archive raises
            raise ValueError(f"state must be what Health.state() returned, got {len(state)} bytes: {error}") from None
        if rest.get("format") != _FORMAT:
            raise ValueError(f"state must be of format {_FORMAT}, got {rest.get('format')}")
        if arrays["scores"].shape != (len(layers),):
            raise ValueError(f"state must be one of {len(layers)} layers, got one of {len(arrays['scores'])}")
        for part, owner in health._parts():
            prefix = f"{part}/"
            owner.restore({name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)})
        health._nonfinite.restore(rest["nonfinite"])
        health._causes.restore(rest["causes"])
        health._sample = rest["sample"]
        health._worst, health.scores, health.worst_rules = arrays["worst"], arrays["scores"], arrays["worst_rules"]
        return health

    def _parts(self) -> tuple[tuple[str, Baselines | Drift | AbsoluteRules | Peaks | RunRules], ...]:
        return (
            ("fast", self._fast),
            ("sparse", self._sparse),
            ("drift", self._drift),
            ("absolute", self._absolute),
            ("peaks", self._peaks),
            ("run", self._run),
        )


# fmt: off
RULES: tuple[str, ...] = (
    "none", "gradient-explosion", "gradient-collapse", "outlier-entries", "heavy-tails", "outlier-energy", "dead-rows",
    "update-jump", "update-collapse", "absolute", NONFINITE_RULE,
)  # fmt: on
"""Rules that `Health.worst_rules` counts; "absolute" stands for the rules of `root_dash.health.absolute`.

Databases hold these numbers: a new rule comes last, and no rule is ever moved or removed.
"""

_UP = np.array([RULES.index(signal.up) if signal.up else 0 for signal in SIGNALS])
_DOWN = np.array([RULES.index(signal.down) if signal.down else 0 for signal in SIGNALS])


def replay(layers: Sequence[Layer], frames: Iterable[Frame]) -> list[Verdict]:
    """Return the verdicts of a recorded run in their last form, by `id`."""
    health, verdicts = Health(layers), dict[int, Verdict]()
    for frame in frames:
        verdicts |= {verdict.id: verdict for verdict in health.update(frame).all()}
    return [verdicts[number] for number in sorted(verdicts)]


def _words(
    signal: Signal, value: float, usual: float, deviation: float, size: float
) -> tuple[str, Mapping[str, Measured]]:
    """Return the clause and the evidence of a finding by a signal, in the statistic's own unit."""
    name = signal.statistic.replace("_", " ").replace("grad ", "gradient's ")
    if signal.log:
        factor = math.exp(abs(deviation))
        direction = "above" if deviation > 0 else "below"
        what = f"{name} is {value:.3g}, {factor:.3g} times {direction} its usual range's middle"
        if signal.statistic == "grad_zero":
            what = f"{value / size:.0%} of the gradient's entries are exactly 0, and usually {1 - math.exp(usual):.0%}"
            return what, {"grad_zero": Measured(value, size * (1.0 - math.exp(usual)))}
        return what, {signal.statistic: Measured(value, value / math.exp(deviation))}
    return f"{name} is {value:.3g}, and usually {value - deviation:.3g}", {
        signal.statistic: Measured(value, value - deviation)
    }


def _directions(signals: Sequence[Signal]) -> NDArray[np.int64]:
    return np.array([signal.direction for signal in signals])


def _cautions(signals: Sequence[Signal]) -> Float64Array:
    return np.array([signal.caution for signal in signals])


def _sizes(layers: Sequence[Layer]) -> Float64Array:
    return np.array([max(layer.size, 1) for layer in layers], np.float64)


def _check_positions(layers: Sequence[Layer], first: int) -> None:
    positions = [layer.position for layer in layers]
    if positions != list(range(first, first + len(layers))):
        raise ValueError(f"layers must be in the order of their positions, from {first}, got {positions[:10]}")


__all__ = ["DRIFT_RULE", "RULES", "Health", "replay"]
