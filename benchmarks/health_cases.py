"""Trainings for benchmarks/health.py: small models, healthy and sick, recorded by the real recorder."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from health_recordings import Recording
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Muon, Optimizer

from root_dash.demo.model import GPT, Shape
from root_dash.demo.sick import FAULTS, PaperSquareSet, make_sick
from root_dash.demo.text import standard_library
from root_dash.monitor.layers import describe_optimizers, watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from root_dash.optim.root import ROOT
from root_dash.records import Frame, Layer

CADENCE = Cadence(statistics=1, histograms=0, quantiles=0, spectra=20, masks=10)
OPTIMIZERS = ("root", "muon", "adamw", "sgd")
FAMILIES = ("mlp", "gpt", "conv", "rnn")
SCENARIOS = (
    "constant", "warmup-cosine", "step-decay", "restarts", "clipping", "dropout", "growing-batch", "freezing",
    "fine-tuning", "resuming",
)  # fmt: skip
SICK_SCENARIOS = ("constant", "warmup-cosine", "dropout", "clipping", "step-decay")


@dataclass(frozen=True, slots=True)
class Case:
    """One training. `fault` is "" in a healthy one; `split` is "development" or "held-out"."""

    family: str
    optimizer: str
    scenario: str
    fault: str
    seed: int
    steps: int
    split: str

    @property
    def name(self) -> str:
        """The case as a file name."""
        parts = (self.split, self.family, self.optimizer, self.scenario, self.fault or "healthy", str(self.seed))
        return "_".join(parts)


def cases(full: bool = False) -> list[Case]:
    """Return the trainings in an order in which any beginning of the list is a fair share of all of them."""
    found: list[Case] = []
    healthy_seeds, sick_seeds, steps = (6, 5, 2000) if full else (1, 1, 500)
    for split, families, offset in (
        ("development", ("mlp", "gpt"), 0),
        ("held-out", ("conv", "rnn"), 100),
        ("held-out", ("mlp", "gpt"), 200),
    ):
        for family in families:
            for optimizer in OPTIMIZERS:
                for seed in range(healthy_seeds):
                    for scenario in SCENARIOS:
                        found.append(Case(family, optimizer, scenario, "", offset + seed, steps, split))
                for fault in FAULTS:
                    if fault == PaperSquareSet.name and optimizer not in ("root", "muon"):
                        continue
                    for seed in range(sick_seeds):
                        scenario = SICK_SCENARIOS[(seed + len(fault)) % len(SICK_SCENARIOS)]
                        found.append(Case(family, optimizer, scenario, fault, offset + 50 + seed, 300, split))
    random.Random(0).shuffle(found)  # noqa: S311  # an order, no secret
    return found


class ResidualMLP(nn.Module):
    """A deep residual network of narrow layers: many layers for little time."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.hidden = nn.ModuleList(nn.Linear(24, 24) for _ in range(24))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.hidden:
            x = x + 0.3 * self.dropout(layer(x).relu())
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """A small residual network of convolutions with batch normalization."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(4))
        self.head = nn.Linear(12, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x)).relu()
        return self.head(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A gated recurrent network over bytes."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 24)
        self.rnn = nn.GRU(24, 24, num_layers=2, batch_first=True, dropout=dropout)
        self.head = nn.Linear(24, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])  # type: ignore[no-any-return]


class Dropped(nn.Module):
    """The demo's GPT with dropout on its logits' input."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gpt = GPT(Shape(width=24, depth=3, heads=2, context=16))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rotation = self.gpt.get_buffer("rotation")[: x.shape[1]]
        x = self.dropout(self.gpt.embed(x))
        for block in self.gpt.blocks:
            x = block(x, rotation)
        return self.gpt.head(self.gpt.norm(x))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[float], nn.Module]] = {
    "mlp": ResidualMLP, "conv": ConvNet, "gpt": Dropped, "rnn": Recurrent,
}  # fmt: skip
LEARNING_RATES = {
    "root": {"mlp": 3e-3, "conv": 5e-3, "gpt": 5e-3, "rnn": 5e-3},
    "muon": {"mlp": 3e-3, "conv": 5e-3, "gpt": 5e-3, "rnn": 5e-3},
    "adamw": {"mlp": 2e-3, "conv": 3e-3, "gpt": 4e-3, "rnn": 4e-3},
    "sgd": {"mlp": 2e-2, "conv": 3e-2, "gpt": 1e-1, "rnn": 3e-1},
}

Batches = Callable[[int], tuple[Tensor, Tensor]]


def batches(family: str, seed: int, task: int = 0) -> Batches:
    """Return a function that makes a random batch of so many examples of a family's task."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.Generator().manual_seed(1000 + seed + 7 * task)
    if family == "mlp":
        first, second = torch.randn(16, 32, generator=teacher), torch.randn(32, 10, generator=teacher)

        def vectors(size: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(size, 16, generator=generator)
            logits = (x @ first / 4).relu() @ second + 0.5 * torch.randn(size, 10, generator=generator)
            return x, logits.argmax(-1)

        return vectors
    if family == "conv":
        prototypes = torch.randn(10, 3, 8, 8, generator=teacher)

        def images(size: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(10, (size,), generator=generator)
            return 0.5 * prototypes[labels] + torch.randn(size, 3, 8, 8, generator=generator), labels

        return images
    text = _text()

    def windows(size: int) -> tuple[Tensor, Tensor]:
        return text.batch(max(2, size // 4), 16, generator)

    return windows


_text = cache(standard_library)


def optimizers_for(name: str, model: nn.Module, lr: float) -> list[Optimizer]:
    """Return the optimizers that step a model, in their order."""
    if name == "sgd":
        return [SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, foreach=True)]
    if name == "adamw":
        return [AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)]
    groups = ROOT.param_groups(model)
    if name == "root":
        return [ROOT(groups, lr=lr, weight_decay=0.05)]
    matrices, rest = (
        [p for g in groups if (g["algorithm"] == "root") is wanted for _, p in _named(g["params"])]
        for wanted in (True, False)
    )
    flat = [p for p in matrices if p.dim() == 2]
    rest += [p for p in matrices if p.dim() != 2]
    muon = [Muon(flat, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")] if flat else []
    return [*muon, AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)]


def _named(parameters: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    for item in parameters:
        yield item if isinstance(item, tuple) else ("", item)


def rate(scenario: str, step: int, steps: int) -> float:
    """Return the learning rate's factor at a step, from 1."""
    if scenario in ("warmup-cosine", "dropout"):
        warm = max(1, steps // 10)
        return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) + 0.01
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
    torch.manual_seed(case.seed)
    rng = random.Random(case.seed * 7919 + len(case.fault))  # noqa: S311  # reproducible, no secret
    model = MODELS[case.family](0.1 if case.scenario == "dropout" else 0.0)
    lr = LEARNING_RATES[case.optimizer][case.family] * rng.uniform(0.5, 1.5)
    if case.scenario == "fine-tuning":
        _pretrain(model, batches(case.family, case.seed, task=1))
        lr *= 0.2
    sample = batches(case.family, case.seed)
    optimizers = optimizers_for(case.optimizer, model, lr)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    matrices = [name for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    layer = rng.choice(matrices if case.fault not in ("one-nan", "spreading-nan", "exploding") else trainable)
    onset = rng.randrange(100, 180)
    sick: Any = (
        make_sick(case.fault, model, optimizers, onset=onset, layer=layer, seed=case.seed)
        if case.fault
        else nullcontext()
    )
    layers, positions = watched_layers(model, optimizers, "*", ())
    sink = Frames(layers=list(layers))
    frozen = trainable[: len(trainable) // 3]
    with sick, Recorder(
        optimizers, positions, lambda: sink, cadence=CADENCE, outlier_quantile=0.9, max_overhead=math.inf
    ) as recorder:  # fmt: skip
        size = 32
        for step in range(1, case.steps + 1):
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, full in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = full * rate(case.scenario, step, case.steps)
            if case.scenario == "growing-batch" and step % (case.steps // 3) == 0:
                size *= 2
            if case.scenario == "freezing" and step in (case.steps // 3, 2 * case.steps // 3):
                for name, parameter in model.named_parameters():
                    if name in frozen:
                        parameter.requires_grad_(step != case.steps // 3)
            if case.scenario == "resuming" and step == case.steps // 2:
                for optimizer in optimizers:  # resumed without the optimizer's state
                    optimizer.state.clear()
            inputs, targets = sample(size)
            loss = functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
            loss.backward()
            if case.scenario == "clipping":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            recorder.log(loss=loss.detach(), lr=optimizers[0].param_groups[0]["lr"])
            while recorder.pending > 20:  # keep every kind: the queue is never full
                time.sleep(0.002)
    by_name = {layer.name: layer.position for layer in sink.layers}
    whole = bool(case.fault) and FAULTS[case.fault].whole_run
    return Recording(
        tuple(sink.frames),
        tuple(sink.layers),
        {"optimizer": describe_optimizers(optimizers), "case": asdict(case)},
        by_name[layer] if case.fault and not whole else None,
        onset if case.fault else None,
    )


def _pretrain(model: nn.Module, sample: Batches) -> None:
    optimizer = AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        inputs, targets = sample(32)
        functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
