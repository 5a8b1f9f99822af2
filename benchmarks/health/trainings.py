"""Trainings for the benchmark of diagnosis: healthy and sick, recorded by the real recorder."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from benchmarks.health.cases import Case
from benchmarks.health.families import FAMILIES, LEARNING_RATES, USUAL_RATES, Task
from benchmarks.health.recordings import Recording
from root_dash.demo.sick import FAULTS, make_sick
from root_dash.monitor.layers import describe_optimizers, watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from root_dash.optim.root import ROOT
from root_dash.records import Frame, Layer

CADENCE = Cadence(statistics=1, histograms=0, quantiles=0, spectra=20, masks=10)


def optimizers_for(name: str, model: nn.Module, lr: float) -> list[Optimizer]:
    """Return the optimizers that step a model, in their order."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return [SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4, foreach=True)]
    if name == "adamw":
        return [AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)]
    groups = ROOT.param_groups(model)
    if name == "root":
        return [ROOT(groups, lr=lr, weight_decay=0.05)]
    matrices, rest = (
        [p for g in groups if (g["algorithm"] == "root") is wanted for _, p in _named(g["params"]) if p.requires_grad]
        for wanted in (True, False)
    )
    flat = [p for p in matrices if p.dim() == 2]
    rest += [p for p in matrices if p.dim() != 2]
    muon = [Muon(flat, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")] if flat else []
    return [*muon, AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)] if rest else [*muon]


def _named(parameters: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    for item in parameters:
        yield item if isinstance(item, tuple) else ("", item)


def rate(scenario: str, step: int, steps: int) -> float:
    """Return the learning rate's factor at a step, from 1."""
    warm = max(1, steps // 10)
    if scenario in ("warmup-cosine", "dropout"):
        return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) + 0.01
    if scenario == "warmup-stable-decay":  # from exactly 0 to exactly 0
        return min(1.0, (step - 1) / warm, (steps - step) / (2 * warm))
    if scenario == "step-decay":
        return 0.1 ** ((step > steps // 2) + (step > 3 * steps // 4))
    if scenario == "restarts":
        period = steps // 4
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step % period) / period))
    return min(1.0, step / 20)


@dataclass
class Frames:
    """A sink that keeps the frames in memory."""

    frames: list[Frame] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def append(self, frame: Frame) -> None:
        self.frames.append(frame)

    def extend(self, layers: Sequence[Layer]) -> None:
        self.layers.extend(layers)

    def end(self, time: float, lost: int) -> None:
        pass

    def close(self) -> None:
        pass


def train(case: Case) -> Recording:
    """Train a case and record every step of it."""
    draw = random.Random(f"{case.family} {case.seed}")  # noqa: S311  # reproducible, no secret
    choose = random.Random(replace(case, twin=False).name)  # noqa: S311
    torch.manual_seed(case.seed)
    teacher, data = (torch.Generator().manual_seed(case.seed + offset) for offset in (1000, 0))
    task = FAMILIES[case.family](draw, teacher, draw.choice((0.05, 0.2)) if case.scenario == "dropout" else 0.0)
    model = task.model
    usual = LEARNING_RATES[case.optimizer].get(case.family, USUAL_RATES[case.optimizer])
    lr = usual * task.lr * choose.uniform(0.4, 1.6)
    if case.scenario == "fine-tuning":
        _pretrain(task, data)
        for _ in range(10):
            torch.randn(100, generator=teacher)
        lr *= 0.2
    optimizers = optimizers_for(case.optimizer, model, lr)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [name for name, p in trained.items() if p.dim() >= 2 and "embed" not in name and "tables" not in name]
    anywhere = case.fault in ("one-nan", "spreading-nan", "exploding")
    layer = choose.choice(list(trained) if anywhere else matrices)
    onset = choose.randrange(*case.onsets) if case.fault else case.steps + 1
    sick: Any = (
        make_sick(
            case.fault, model, optimizers, onset=case.steps + 1 if case.twin else onset, layer=layer, seed=case.seed
        )
        if case.fault
        else nullcontext()
    )
    layers, positions = watched_layers(model, optimizers, "*", ())
    sink = Frames(layers=list(layers))
    frozen = list(trained)[: len(trained) // 3]
    accumulated = 4 if case.scenario == "accumulating" else 1
    size = draw.choice((2, 3, 4)) if case.scenario == "small-batch" else task.batch
    logged_every = choose.choice((1, 1, 1, 5, 10))
    with sick, Recorder(
        optimizers, positions, lambda: sink, cadence=CADENCE, outlier_quantile=0.9, max_overhead=math.inf
    ) as recorder:  # fmt: skip
        for step in range(1, case.steps + 1):
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, full in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = full * rate(case.scenario, step, case.steps)
            if case.scenario == "growing-batch" and step % (case.steps // 3) == 0:
                size *= 2
            if case.scenario == "freezing" and step in (case.steps // 3, 2 * case.steps // 3):
                for name in frozen:
                    trained[name].requires_grad_(step != case.steps // 3)
            if case.scenario == "resuming" and step == case.steps // 2:
                for optimizer in optimizers:  # resumed without the optimizer's state
                    optimizer.state.clear()
            for _ in range(accumulated):
                loss = task.loss(model, max(2, size // accumulated), data) / accumulated
                loss.backward()
            if case.scenario == "clipping":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            numbers: dict[str, Any] = {"lr": optimizers[0].param_groups[0]["lr"]}
            if step % logged_every == 0:
                numbers["loss"] = loss.detach() * accumulated
            recorder.log(**numbers)
            while recorder.pending > 20:  # keep every kind: the queue is never full
                time.sleep(0.002)
    by_name = {one.name: one.position for one in sink.layers}
    whole = bool(case.fault) and FAULTS[case.fault].whole_run
    return Recording(
        tuple(sink.frames),
        tuple(sink.layers),
        {"optimizer": describe_optimizers(optimizers), "case": asdict(case)},
        by_name[layer] if case.fault and not whole else None,
        onset if case.fault else None,
    )


def _pretrain(task: Task, data: torch.Generator) -> None:
    optimizer = AdamW([p for p in task.model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(150):
        task.loss(task.model, task.batch, data).backward()
        optimizer.step()
        optimizer.zero_grad()
