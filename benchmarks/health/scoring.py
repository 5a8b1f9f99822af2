"""How right the verdicts about a recording are: found, named, dated, and false."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.health.recordings import Recording
from benchmarks.health.rivals import RIVALS, first_alarms
from benchmarks.health.thinning import thinned
from root_dash.demo.sick import FAULTS
from root_dash.health import Health, Verdict
from root_dash.records import Frame, statistic_names

OURS = "root-dash"
NEAR = 3
"""Recorded samples between the onset and `since` that still count."""

NOTES = ("no-gradient", "slow-drift", "small-updates")
"""Rules whose verdicts are notes, and count as found."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a rule said of one recording."""

    fault: str
    found: bool
    right: bool
    error: float
    """Recorded samples from the onset to `since`; NaN if nothing was found."""
    layer_steps: int
    """Recorded layer-steps of health."""
    false: int
    """Verdicts of warning or worse begun in health."""
    critical: int
    first: tuple[Verdict, ...] = ()
    """The first verdicts of ours that count, for people."""


def score(recording: Recording, every: int = 1, rule: str = OURS, twin: Recording | None = None) -> Score:
    """Judge a recording by a rule, at every so many-th step.

    With its healthy twin, a slow fault begins when the layer leaves the twin's range, for the error of the onset.
    """
    frames = thinned(recording.frames, every, len(recording.layers))
    onset = math.inf if recording.onset is None else recording.onset
    left = onset if twin is None else departure(recording, twin)
    steps = [frame.step for frame in frames if len(frame.layers)]
    first_sick = next((step for step in steps if step >= left), math.inf)
    if rule != OURS:
        alarms = first_alarms(RIVALS[rule]([frame for frame in frames if len(frame.layers)]))
        begun = [(step, step, layer, True, None) for step, layer in alarms]
    else:
        begun = list(_ours(recording, frames))
    early = [one for one in begun if one[0] < onset and one[3]]
    found = [one for one in begun if one[0] >= onset]
    fault: str = recording.config["case"]["fault"]
    target = recording.target
    error = math.nan
    if fault and found:
        since = found[0][1]
        error = min(abs(since - left), abs(since - first_sick)) / every
    return Score(
        fault=fault,
        found=bool(found),
        right=bool(found) and found[0][2] == target,
        error=error,
        layer_steps=sum(len(frame.layers) for frame in frames if frame.step < onset),
        false=len(early),
        critical=sum(one[4] is not None and one[4].severity == "critical" for one in early),
        first=tuple(one[4] for one in (found if fault else early)[:3] if one[4] is not None),
    )


def departure(sick: Recording, twin: Recording) -> float:
    """Return the first step from which the sick layer's smoothed gradient norm stays outside of its twin's range.

    The range are the twin's smallest and largest norms, each the median of five, from 32 samples before the step to 32
    after it. Infinite if the layer never leaves its twin's range.
    """
    at = statistic_names("statistics").index("grad_norm")
    norms = []
    for one in (sick, twin):
        steps = [float(f.statistics[np.flatnonzero(f.layers == sick.target)[0], at]) for f in one.frames]
        norms.append(np.median(np.lib.stride_tricks.sliding_window_view(np.pad(steps, 2, "edge"), 5), axis=1))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(norms[1], 32, "edge"), 65)
    inside = (norms[0] >= around.min(1)) & (norms[0] <= around.max(1))
    inside[: (sick.onset or 1) - 1] = True
    last = int(np.flatnonzero(inside).max()) + 1
    return float(sick.frames[last].step) if last < len(inside) else math.inf


def _ours(recording: Recording, frames: Sequence[Frame]) -> list[tuple[int, int, int | None, bool, Verdict | None]]:
    """Return when our verdicts began, since when, in which layer, and whether each is a warning or worse."""
    health, begun = Health(recording.layers), []
    for frame in frames:
        for verdict in health.update(frame).begun:
            warned = verdict.severity != "note"
            if not warned and verdict.rule not in NOTES:
                continue
            layer = verdict.layer
            if layer is None and recording.target in verdict.candidates:
                layer = recording.target
            begun.append((frame.step, verdict.since, layer, warned, verdict))
    return begun


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """Return how many runs there were, and the shares of those found, right at first, and near in time."""
    if not scores:
        return {"runs": 0, "recall": math.nan, "right_first": math.nan, "near": math.nan, "median_error": math.nan}
    errors = [one.error for one in scores if one.found]
    return {
        "runs": len(scores),
        "recall": float(np.mean([one.found for one in scores])),
        "right_first": float(np.mean([one.right for one in scores])),
        "near": float(np.mean([one.found and one.error <= NEAR for one in scores])),
        "median_error": float(np.median(errors)) if errors else math.nan,
    }


def table(scores: Sequence[Score]) -> dict[str, Any]:
    """Return the summaries of all faults, and the rate of false alarms with its exact 95 % interval."""
    sick = [one for one in scores if one.fault]
    steps, false = sum(one.layer_steps for one in scores), sum(one.false for one in scores)
    low, high = interval(false)
    million = max(steps, 1) / 1e6
    return {
        "faults": {fault: summary([one for one in sick if one.fault == fault]) for fault in FAULTS},
        "abrupt": summary([one for one in sick if not FAULTS[one.fault].slow]),
        "slow": summary([one for one in sick if FAULTS[one.fault].slow]),
        "all": summary(sick),
        "layer_steps": steps,
        "healthy_runs": len(scores) - len(sick),
        "false_alarms": false,
        "runs_with_false_alarms": sum(one.false > 0 for one in scores),
        "critical_false_alarms": sum(one.critical for one in scores),
        "false_per_million": false / million,
        "interval": [low / million, high / million],
    }


def interval(count: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a Poisson rate, given a count (Garwood, Biometrika 28, 1936)."""

    def below(rate: float, most: int) -> float:
        return sum(math.exp(-rate + k * math.log(rate) - math.lgamma(k + 1)) for k in range(most + 1))

    def solve(most: int, share: float) -> float:
        low, high = 1e-9, 10.0 * (most + 10)
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if below(middle, most) > share else (low, middle)
        return low

    return (solve(count - 1, 0.975) if count else 0.0), solve(count, 0.025)
