"""A small training job for the tests: a real model on real gradients, deterministic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Muon, Optimizer

import root_dash
from root_dash.monitor.layers import describe_optimizers, watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.quantities.quantity import MeasureLimits, Quantity
from root_dash.monitor.quantities.registry import QUANTITIES
from root_dash.monitor.recorder import Recorder
from root_dash.optim.root import ROOT
from root_dash.records import Layer, Run
from root_dash.store.store import Store


class Model(nn.Module):
    """An embedding, a square, a wide and a tall matrix, norms and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 24)
        self.square = nn.Linear(24, 24, bias=False)
        self.up = nn.Linear(24, 40)
        self.norm = nn.LayerNorm(40)
        self.down = nn.Linear(40, 24, bias=False)
        self.head = nn.Linear(24, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        x = x + self.square(x).tanh()
        x = x + self.down(self.norm(self.up(x)).relu())
        return self.head(x)  # type: ignore[no-any-return]


MATRICES = ("square.weight", "up.weight", "down.weight")
"""The layers that ROOT orthogonalizes."""


def root(model: nn.Module) -> list[Optimizer]:
    """ROOT for the matrices, its AdamW groups for the rest."""
    return [ROOT(ROOT.param_groups(model), lr=1e-2)]


def muon(model: nn.Module) -> list[Optimizer]:
    """torch's Muon for the matrices and an AdamW for the rest: two optimizers a step."""
    named = dict(model.named_parameters())
    rest = [p for name, p in named.items() if name not in MATRICES]
    return [Muon([named[name] for name in MATRICES], lr=1e-2), AdamW(rest, lr=1e-3)]


def adamw(model: nn.Module) -> list[Optimizer]:
    """AdamW for all."""
    return [AdamW(model.parameters(), lr=1e-3)]


def sgd(model: nn.Module) -> list[Optimizer]:
    """SGD with momentum for all."""
    return [SGD(model.parameters(), lr=1e-2, momentum=0.9)]


def plain_sgd(model: nn.Module) -> list[Optimizer]:
    """SGD that keeps no momentum."""
    return [SGD(model.parameters(), lr=1e-2)]


def step(model: nn.Module, optimizers: Sequence[Optimizer], index: int) -> Tensor:
    """One training step on the batch of that index; the loss."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(50, (16, 9), generator=generator)
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()
    return loss.detach()


def train(
    model: nn.Module, optimizers: Sequence[Optimizer], steps: int, log: Callable[..., None] = lambda **_: None
) -> None:
    """Train for some steps, logging the loss after each."""
    for index in range(steps):
        log(loss=step(model, optimizers, index))


EVERY_STEP = Cadence(1, 1, 1, 1, 1)
Build = Callable[[nn.Module], list[Optimizer]]


def watch_within(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    path: Path,
    limits: MeasureLimits,
    cadence: Cadence = EVERY_STEP,
    quantities: Sequence[Quantity] = QUANTITIES,
) -> Recorder:
    """Record as `root_dash.watch` does, with limits and quantities that a user cannot choose, and no budget."""
    layers, positions = watched_layers(model, optimizers, "*", ())
    run = Run("test", "test", time.time(), cadence=asdict(cadence), optimizer=describe_optimizers(optimizers))
    return Recorder(
        optimizers,
        positions,
        lambda: Store.create(path).begin(run, layers),
        cadence=cadence,
        outlier_quantile=0.9,
        max_overhead=math.inf,
        limits=limits,
        quantities=quantities,
    )


def record(
    path: Path, build: Build, steps: int, cadence: Cadence = EVERY_STEP, limits: MeasureLimits | None = None
) -> Store:
    """Train while watching, and return the finished recording."""
    model = Model()
    optimizers = build(model)
    watched = (
        root_dash.watch(model, optimizers, db=path, name="test", config={"lr": 0.01}, cadence=cadence)
        if limits is None
        else watch_within(model, optimizers, path, limits, cadence)
    )
    with watched as run:
        train(model, optimizers, steps, run.log)
    assert (run.lost, run.failures) == (0, 0)
    return root_dash.open(path)


def layers_of(store: Store) -> dict[str, Layer]:
    """The layers of the only run by name."""
    (run,) = store.runs()
    return {layer.name: layer for layer in store.layers(run.id)}


class OddOptimizer(SGD):
    """Keeps a momentum that is no float: what a recorder cannot have foreseen."""

    def step(self, closure: Any = None) -> Any:
        """Plain SGD, and a state that makes no sense."""
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.ones(parameter.shape, dtype=torch.int64)
