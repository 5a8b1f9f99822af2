"""Whether verdicts can be trusted: python benchmarks/health.py [--folder recordings] [--record] [--full] [--thin 1]

With `--record`, small models of four families are trained under four optimizers, healthy in ten ways and sick in as
many as the zoo has, and recorded by the real recorder into `--folder`. Recordings that are there are not made again, so
that it may be interrupted; `--seconds` of CPU time end it. Then all recordings of the folder are judged, by our rules
and by those that others ship, and a table is written as JSON beside this file.

Rules were set on the split "development" alone: families MLP and GPT, seeds of their own. What counts is "held-out":
convolutions and recurrent networks, and other seeds of the first two.

- recall: sick runs with any verdict since the onset. Of notes, those about drift and missing gradients count.
- right first: the first such verdict names the sick layer, or the run if the whole run is sick.
- onset: the verdict's `since` is within three recorded samples of the first sick step.
- false alarms: verdicts of warning or worse in healthy runs and before the onset in sick ones, per million layer-steps.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from health_cases import cases, train
from health_recordings import Recording, load, save
from health_rivals import RIVALS, Alarm, first_alarms
from timing import environment, write_json

from root_dash.demo.sick import FAULTS
from root_dash.health import Health
from root_dash.records import Frame, Layer, statistic_names

OURS = "root-dash"
NEAR = 3
"""Recorded samples between the onset and `since` that still count."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a rule said of one recording."""

    alarms: tuple[Alarm, ...]
    """Warnings and worse that stand alone, and notes since the onset about drift or a missing gradient."""
    false: int
    critical: int


def record(folder: Path, full: bool, seconds: float) -> None:
    """Train and record the cases that the folder lacks."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    for case in cases(full):
        path = folder / f"{case.name}.npz"
        if path.exists():
            continue
        if time.process_time() - started > seconds:
            break
        save(train(case), path)
        print(f"recorded {path.stem}, {time.process_time() - started:.0f} s of CPU time so far")


def told_by_us(recording: Recording, frames: Sequence[Frame]) -> Told:
    """Judge a recording by `Health`."""
    health, alarms, critical = Health(recording.layers), list[Alarm](), 0
    end = math.inf if recording.onset is None else recording.onset
    for frame in frames:
        for verdict in health.update(frame).begun:
            slow = recording.onset is not None and verdict.rule in ("no-gradient", "slow-drift")
            if verdict.severity != "note" or (slow and verdict.since >= end - 8 * _gap(frames)):
                layer = verdict.layer
                if layer is None and recording.target in verdict.candidates:
                    layer = recording.target
                alarms.append((verdict.since, layer))
                critical += verdict.severity == "critical" and frame.step < end
    return Told(tuple(alarms), sum(step < end - 8 * _gap(frames) for step, _ in alarms), critical)


def told_by(rule: str, recording: Recording, frames: Sequence[Frame]) -> Told:
    """Judge a recording by a rival."""
    alarms = tuple(first_alarms(RIVALS[rule](frames)))
    end = math.inf if recording.onset is None else recording.onset
    return Told(alarms, sum(step < end for step, _ in alarms), 0)


def _gap(frames: Sequence[Frame]) -> int:
    return int(np.median(np.diff([frame.step for frame in frames]))) or 1


def judge(folder: Path, thin: int, only: str = "", rivals: bool = True) -> dict[str, Any]:
    """Judge all recordings of the folder: by split and rule, recall per fault, and false alarms."""
    results: dict[str, Any] = {}
    tally: dict[tuple[str, str], dict[str, list[tuple[bool, bool, float]]]] = defaultdict(lambda: defaultdict(list))
    false: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for path in sorted(folder.glob(f"{only}*.npz")):
        recording = load(path)
        split, fault = path.stem.split("_")[0], recording.config["case"]["fault"]
        frames = [frame for frame in recording.frames if (frame.step - 1) % thin == 0]
        end = math.inf if recording.onset is None else recording.onset
        layer_steps = sum(len(frame.layers) for frame in frames if frame.step < end)
        for rule in (OURS, *(RIVALS if rivals else ())):
            told = told_by_us(recording, frames) if rule == OURS else told_by(rule, recording, frames)
            counts = false[split, rule]
            for place, number in enumerate((layer_steps, told.false, told.false > 0, not fault, told.critical)):
                counts[place] += int(number)
            if fault:
                assert recording.onset is not None
                since = [alarm for alarm in told.alarms if alarm[0] >= recording.onset - 8 * thin]
                error = (since[0][0] - recording.onset) / thin if since else math.nan
                tally[split, rule][fault].append((bool(since), bool(since) and since[0][1] == recording.target, error))
    for (split, rule), faults in tally.items():
        steps, alarms, runs, healthy, critical = false[split, rule]
        low, high = interval(alarms)
        results.setdefault(split, {})[rule] = {
            "faults": {fault: summary(found) for fault, found in sorted(faults.items())},
            "abrupt": summary([one for fault, found in faults.items() if not FAULTS[fault].slow for one in found]),
            "all": summary([one for found in faults.values() for one in found]),
            "layer_steps": steps,
            "healthy_runs": healthy,
            "false_alarms": alarms,
            "runs_with_false_alarms": runs,
            "critical_false_alarms": critical,
            "false_per_million": 1e6 * alarms / max(steps, 1),
            "interval": [1e6 * low / max(steps, 1), 1e6 * high / max(steps, 1)],
        }
    return results


def summary(found: Sequence[tuple[bool, bool, float]]) -> dict[str, float]:
    """Return how many runs there were, and the shares of those found, right at first, and near in time."""
    if not found:
        return {"runs": 0, "recall": math.nan, "right_first": math.nan, "near": math.nan, "median_error": math.nan}
    errors = [error for _, _, error in found if not math.isnan(error)]
    return {
        "runs": len(found),
        "recall": float(np.mean([one[0] for one in found])),
        "right_first": float(np.mean([one[1] for one in found])),
        "near": float(np.mean([not math.isnan(error) and abs(error) <= NEAR for _, _, error in found])),
        "median_error": float(np.median(errors)) if errors else math.nan,
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


def speed(layers: int, frames: int = 300) -> dict[str, float]:
    """Time `Health.update` on frames of so many layers of 128 x 128, in CPU milliseconds, and size its state."""
    rng = np.random.default_rng(0)
    names = statistic_names("statistics")
    watched = [Layer(f"blocks.{i}.weight", (128, 128), "adamw", i) for i in range(layers)]
    usual = np.exp(rng.normal(size=(layers, len(names))))
    for name, value in (("grad_nan", 0.0), ("grad_inf", 0.0), ("grad_zero", 0.0), ("update_to_weight", 1e-3)):
        usual[:, names.index(name)] = value
    health, times = Health(watched), []
    for step in range(1, frames + 1):
        numbers = usual * np.exp(0.1 * rng.normal(size=usual.shape))
        numbers[:, names.index("weight_norm")] = 3.0
        frame = Frame(
            step, step, 0.0, np.arange(layers), numbers.astype(np.float32), scalars={"loss": 2.0 + 0.1 * rng.normal()}
        )
        started = time.process_time()
        health.update(frame)
        times.append(1e3 * (time.process_time() - started))
    state = health.state()
    return {
        "layers": layers,
        "median_ms": float(np.median(times)),
        "mean_ms": float(np.mean(times)),
        "max_ms": float(np.max(times)),
        "state_mb": len(state) / 1e6,
    }


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    for split, rules in results.items():
        print(f"\n{split}\n{'':24}{'runs':>6}{'recall':>8}{'right':>8}{'near':>8}{'error':>8}")
        for fault, numbers in (
            rules[OURS]["faults"] | {"abrupt": rules[OURS]["abrupt"], "all": rules[OURS]["all"]}
        ).items():
            shares = "".join(f"{numbers[name]:8.2f}" for name in ("recall", "right_first", "near", "median_error"))
            print(f"{fault:24}{numbers['runs']:6}{shares}")
        print(f"\n{'':24}{'recall':>8}{'right':>8}{'near':>8}{'false/M':>12}{'interval':>22}{'runs':>8}")
        for rule, numbers in rules.items():
            shares = "".join(f"{numbers['all'][name]:8.2f}" for name in ("recall", "right_first", "near"))
            low, high = numbers["interval"]
            rate = f"{numbers['false_per_million']:12.1f}{f'{low:.1f} .. {high:.1f}':>22}"
            print(f"{rule:24}{shares}{rate}{numbers['runs_with_false_alarms']:8}")
        ours = rules[OURS]
        print(f"{ours['layer_steps']:,} healthy layer-steps, {ours['healthy_runs']} healthy runs")


def main() -> None:
    """Record if asked to, judge, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "health_recordings")
    parser.add_argument("--record", action="store_true", help="train what the folder lacks")
    parser.add_argument("--full", action="store_true", help="more seeds and longer runs: hours of CPU time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of CPU time to record for")
    parser.add_argument("--thin", type=int, default=1, help="judge every so many-th step alone")
    parser.add_argument("--only", default="", help="judge this split alone")
    parser.add_argument("--alone", action="store_true", help="leave out the rules that others ship")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.folder, arguments.full, arguments.seconds)
    results = judge(arguments.folder, arguments.thin, arguments.only, not arguments.alone)
    show(results)
    speeds = [speed(layers) for layers in (150, 1500)]
    for one in speeds:
        print(", ".join(f"{name} {value:.4g}" for name, value in one.items()))
    content = {"environment": environment(torch.device("cpu")), "results": results, "speed": speeds}
    write_json(__file__, f"every {arguments.thin}. step", content)


if __name__ == "__main__":
    main()
