"""Does a NaN slip between two frames, and what do sentinels and the default budget cost a small model?

    python benchmarks/sentinels.py trials [N]  # one NaN entry at a random step, 100 times or N times
    python benchmarks/sentinels.py overhead    # processor time of a step, watched and alone in turns

The model is an MLP whose step takes about 2 ms, the smallest that anybody watches: its sentinels cost more than the
budget, so that little else is recorded.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

import root_dash
from root_dash import ROOT

TRIALS, STEPS = 100, 40
BLOCKS, BLOCK_STEPS = 32, 64
WARM_BLOCKS = 8
"""Blocks that are not counted: the budget has not settled, and caches are cold."""

Build = Callable[[nn.Module], Optimizer]
BUILDS: dict[str, Build] = {
    "AdamW": lambda model: AdamW(model.parameters()),
    "ROOT": lambda model: ROOT(ROOT.param_groups(model), lr=5e-3),
}


def mlp() -> nn.Module:
    """Eight layers of 128 x 128."""
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(128, 128), nn.ReLU())])


def trial(folder: Path, seed: int) -> bool:
    """Return whether one entry that is NaN in one layer at one step is recorded at its layer and step, and no other."""
    draw = random.Random(seed)  # noqa: S311
    model, broken_at = mlp(), draw.randrange(1, STEPS + 1)
    optimizer = AdamW(model.parameters())
    name, parameter = draw.choice(list(model.named_parameters()))
    batch = torch.randn(64, 128)
    with root_dash.watch(model, optimizer, db=folder / f"{seed}.db") as run:
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss = (model(batch) - batch).square().mean()
            loss.backward()
            assert parameter.grad is not None
            if step == broken_at:
                parameter.grad.view(-1)[draw.randrange(parameter.numel())] = math.nan
            optimizer.step()
            run.log(loss=loss)
    with root_dash.open(folder / f"{seed}.db") as store:
        (recorded,) = store.runs()
        first = {
            layer.name: min((s for s in store.history(layer.id, "nonfinite_step").values if s == s), default=math.inf)
            for layer in store.layers(recorded.id)
        }
    return first[name] == broken_at and all(step > broken_at for other, step in first.items() if other != name)


def overhead(folder: Path, kind: str) -> tuple[float, float]:
    """Return the median processor time of a step in seconds, alone and watched, in blocks of steps that take turns."""
    batch = torch.randn(64, 128)
    alone, watched = mlp(), mlp()
    trained = [(alone, BUILDS[kind](alone)), (watched, BUILDS[kind](watched))]
    run = root_dash.watch(*trained[1], db=folder / f"{kind}.db")
    times: list[list[float]] = [[], []]
    for _ in range(BLOCKS):
        for index, (model, optimizer) in enumerate(trained):
            begun = time.process_time()
            for _ in range(BLOCK_STEPS):
                optimizer.zero_grad()
                loss = (model(batch) - batch).square().mean()
                loss.backward()
                optimizer.step()
                if index:
                    run.log(loss=loss)
            times[index].append((time.process_time() - begun) / BLOCK_STEPS)
    print(f"{kind}: own measure {run.overhead:.3f}, {run.cadence}")
    run.close()
    medians = [statistics.median(one[WARM_BLOCKS:]) for one in times]
    return medians[0], medians[1]


def main(what: str, trials: int) -> None:
    """Print what was found."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if what == "trials":
            found = sum(trial(folder, seed) for seed in range(trials))
            print(f"{found} of {trials} NaN recorded at their layer and step")
        else:
            for kind in BUILDS:
                plain, with_us = overhead(folder, kind)
                print(f"{kind}: {plain * 1e3:.2f} ms alone, {with_us * 1e3:.2f} ms watched: {with_us / plain:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "trials", int(sys.argv[2]) if len(sys.argv) > 2 else TRIALS)
