"""Whether verdicts can be trusted: python -m benchmarks.health [--folder recordings] [--record] [--thin 1]

With `--record`, small models of many families are trained under four optimizers and recorded into `--folder`: sick ones
and healthy ones under the real recorder (`trainings.py`), and ensembles of healthy ones (`ensembles.py`), of which
millions of layer-steps cost minutes. Recordings that are there are not made again, so that it may be interrupted;
`--seconds` of CPU time end it. Then all recordings of the folder are judged, by our rules and by those that others
ship, and a table is written as JSON beside this file.

- recall: sick runs with any verdict that began since the onset. Notes count if they are about drift or a missing
  gradient.
- right first: the first such verdict names the sick layer, or the run if the whole run is sick.
- onset: the verdict's `since` is within three recorded samples of the first sick step, or, of a slow drift, of the step
  at which the layer's gradient leaves the range that it has in a healthy twin of the training.
- false alarms: verdicts of warning or worse that began in health, which is also what lies before an onset, per million
  recorded layer-steps.

Another `--seed` gives other models, data, schedules and onsets: what rules were set on is no measure of them.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.health.cases import Case, healthy, sick
from benchmarks.health.ensembles import VECTORIZED, train_ensemble
from benchmarks.health.recordings import load, save
from benchmarks.health.rivals import RIVALS
from benchmarks.health.scoring import OURS, score, table
from benchmarks.health.trainings import train
from benchmarks.timing import environment, write_json
from root_dash.health import Health
from root_dash.records import Frame, Layer, statistic_names

ENSEMBLE, ENSEMBLE_STEPS = 12, 520
"""Trainings of an ensemble, and their steps."""


def record(folder: Path, seed: int, repeats: int, ensembles: int, seconds: float) -> None:
    """Train and record what the folder lacks: `repeats` of each fault, and so many ensembles of each family."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    split = f"seed-{seed}"
    jobs: list[Case | tuple[str, int]] = [*sick(split, seed, repeats)]
    jobs += [(family, seed + number) for number in range(ensembles) for family in VECTORIZED]
    jobs += healthy(split, seed, 1)
    for job in jobs:
        if time.process_time() - started > seconds:
            break
        name = job.name if isinstance(job, Case) else f"{split}_{job[0]}_ensemble_{job[1]}"
        mark = folder / f"{name}.{'npz' if isinstance(job, Case) else 'done'}"
        if mark.exists():
            continue
        if isinstance(job, Case):
            save(train(job), mark)
        else:
            for recording in train_ensemble(job[0], job[1], ENSEMBLE, ENSEMBLE_STEPS, split):
                save(recording, folder / f"{Case(**recording.config['case']).name}.npz", compressed=False)
            mark.touch()
        print(f"recorded {name}, {time.process_time() - started:.0f} s of CPU time so far", flush=True)


def judge(folder: Path, thin: int, only: str, rivals: bool) -> dict[str, Any]:
    """Judge all recordings of the folder by all rules."""
    paths = [path for path in sorted(folder.glob(f"{only}*.npz")) if not path.stem.endswith("_twin")]
    scores: dict[str, list[Any]] = {rule: [] for rule in (OURS, *(RIVALS if rivals else ()))}
    for path in paths:
        recording, beside = load(path), path.with_name(f"{path.stem}_twin.npz")
        twin = load(beside) if beside.exists() else None
        for rule, found in scores.items():
            found.append(score(recording, thin, rule, twin))
    return {rule: table(found) for rule, found in scores.items()}


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
    return {
        "layers": layers,
        "median_ms": float(np.median(times)),
        "mean_ms": float(np.mean(times)),
        "max_ms": float(np.max(times)),
        "state_mb": len(health.state()) / 1e6,
    }


def show(rules: dict[str, Any]) -> None:
    """Print the tables."""
    ours = rules[OURS]
    print(f"{'':24}{'runs':>6}{'recall':>8}{'right':>8}{'near':>8}{'error':>8}")
    for fault, numbers in {**ours["faults"], **{name: ours[name] for name in ("abrupt", "slow", "all")}}.items():
        shares = "".join(f"{numbers[name]:8.2f}" for name in ("recall", "right_first", "near", "median_error"))
        print(f"{fault:24}{numbers['runs']:6}{shares}")
    print(f"\n{'':24}{'recall':>8}{'right':>8}{'near':>8}{'false/M':>12}{'interval':>22}{'runs':>8}")
    for rule, numbers in rules.items():
        shares = "".join(f"{numbers['all'][name]:8.2f}" for name in ("recall", "right_first", "near"))
        low, high = numbers["interval"]
        rate = f"{numbers['false_per_million']:12.1f}{f'{low:.1f} .. {high:.1f}':>22}"
        print(f"{rule:24}{shares}{rate}{numbers['runs_with_false_alarms']:8}")
    print(f"{ours['layer_steps']:,} healthy layer-steps, {ours['healthy_runs']} healthy runs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Record if asked to, judge, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "recorded")
    parser.add_argument("--record", action="store_true", help="train what the folder lacks")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--repeats", type=int, default=6, help="sick trainings per fault")
    parser.add_argument("--ensembles", type=int, default=2, help="healthy ensembles per family")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of CPU time to record for")
    parser.add_argument("--thin", type=int, default=1, help="judge every so many-th step alone")
    parser.add_argument("--only", default="", help="judge recordings whose name begins so")
    parser.add_argument("--alone", action="store_true", help="leave out the rules that others ship")
    options = parser.parse_args(arguments)
    if options.record:
        record(options.folder, options.seed, options.repeats, options.ensembles, options.seconds)
    results = judge(options.folder, options.thin, options.only, not options.alone)
    show(results)
    speeds = [speed(layers) for layers in (150, 1500)]
    for one in speeds:
        print(", ".join(f"{name} {value:.4g}" for name, value in one.items()))
    content = {"environment": environment(torch.device("cpu")), "results": results, "speed": speeds}
    write_json("health", f"every {options.thin}. step", content)


if __name__ == "__main__":
    main()
