"""Ensembles of healthy trainings: a dozen models of one architecture in one pass, for millions of layer-steps.

The trainings of an ensemble share nothing but the architecture and the law of their data: initial weights, batches,
optimizer, learning rate and schedule are each training's own. Gradients come from `torch.vmap`, optimizer steps and
statistics from a few operations on all layers of one shape, with the vocabulary's definitions. Spectra and masks are
left out. `benchmarks/health/trainings.py` is the slow and exact way: the real optimizers under the real recorder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.health.cases import OPTIMIZERS, SCENARIOS, Case
from benchmarks.health.families import FAMILIES, LEARNING_RATES, USUAL_RATES, Task
from benchmarks.health.recordings import Recording
from benchmarks.health.trainings import rate
from root_dash.coefficients.tables import MUON
from root_dash.records import Frame, Layer, statistic_names

VECTORIZED = ("mlp", "gpt", "conv", "experts", "lora", "regression", "policy", "recommender", "adversaries", "contrast")
"""Families that `torch.vmap` can take: all but recurrent ones."""

GROUPED = ("dropout", "growing-batch", "small-batch", "accumulating", "fine-tuning")
"""Scenarios of a whole ensemble. The others are each training's own."""

OWN = tuple(scenario for scenario in SCENARIOS if scenario not in GROUPED)
NAMES = statistic_names("statistics")


@dataclass
class Stack:
    """All layers of one shape: tensors are (trainings, layers, entries)."""

    names: list[str]
    shape: tuple[int, ...]
    weight: Tensor
    first: Tensor
    second: Tensor


def train_ensemble(family: str, seed: int, size: int, steps: int, split: str) -> list[Recording]:
    """Train `size` models of a family drawn from a seed, and return a recording of each."""
    draw = random.Random(f"{family} {seed}")  # noqa: S311  # reproducible, no secret
    torch.manual_seed(seed)
    shared = draw.choice((*GROUPED, "", "", "", ""))
    dropout = draw.choice((0.05, 0.2)) if shared == "dropout" else 0.0
    teacher = torch.Generator().manual_seed(seed + 1000)
    state = draw.getstate()
    tasks = []
    for _ in range(size):
        draw.setstate(state)  # the same architecture, other initial weights
        tasks.append(FAMILIES[family](draw, teacher, dropout))
    task = tasks[0]
    cases = [
        Case(family, OPTIMIZERS[i % 4], shared or draw.choice(OWN), "", seed * 100 + i, steps, split)
        for i in range(size)
    ]
    usual = [LEARNING_RATES[case.optimizer].get(family, USUAL_RATES[case.optimizer]) for case in cases]
    full = np.array([one * task.lr * draw.uniform(0.3, 1.7) for one in usual])
    batch = {"small-batch": draw.choice((2, 3, 4)), "accumulating": 4 * task.batch}.get(shared, task.batch)
    parameters, buffers = stack_module_state([one.model for one in tasks])  # type: ignore[no-untyped-call]
    trained = {name: p.detach() for name, p in parameters.items() if p.requires_grad}
    fixed = {name: p.detach() for name, p in parameters.items() if not p.requires_grad} | dict(buffers)
    stacks = _stacks(trained)
    layers = _layers(trained)
    ensemble = _Ensemble(task, fixed, stacks, cases, layers)
    if shared == "fine-tuning":
        for _ in range(100):
            ensemble.step(batch, 3e-3 * np.ones(size), ["adamw"] * size)
        for stack in stacks:
            stack.first.zero_()
            stack.second.zero_()
        full *= 0.2
    tables = np.full((steps, size, len(layers[0]), len(NAMES)), np.nan, np.float32)
    present = np.ones((steps, size, len(layers[0])), bool)
    losses, rates = np.zeros((steps, size)), np.zeros((steps, size))
    frozen = np.arange(len(layers[0])) < len(layers[0]) // 3
    for step in range(1, steps + 1):
        if shared == "growing-batch" and step % (steps // 3) == 0:
            batch *= 2
        lr = full * [rate(case.scenario, step, steps) for case in cases]
        for i, case in enumerate(cases):
            if case.scenario == "freezing" and steps // 3 <= step < 2 * steps // 3:
                present[step - 1, i, frozen] = False
            if case.scenario == "resuming" and step == steps // 2:
                for stack in stacks:
                    stack.first[i] = stack.second[i] = 0.0
        rates[step - 1] = lr
        losses[step - 1] = ensemble.step(
            batch, lr, [case.optimizer for case in cases], tables[step - 1], present[step - 1], step
        )
    return [
        Recording(
            tuple(
                Frame(
                    t, t + 1, float(t), np.flatnonzero(present[t, i]), tables[t, i, present[t, i]],
                    scalars={"loss": float(losses[t, i]), "lr/0": float(rates[t, i])},
                )
                for t in range(steps)
            ),
            tuple(layers[i % 4]),
            {"case": asdict(case)},
            None,
            None,
        )
        for i, case in enumerate(cases)
    ]  # fmt: skip


def _stacks(trained: Mapping[str, Tensor]) -> list[Stack]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in trained.items():
        shapes.setdefault(tuple(parameter.shape[1:]), []).append(name)
    return [
        Stack(names, shape, weight, torch.zeros_like(weight), torch.zeros_like(weight))
        for shape, names in shapes.items()
        for weight in [torch.stack([trained[name].flatten(1) for name in names], 1)]
    ]


def _layers(trained: Mapping[str, Tensor]) -> list[list[Layer]]:
    """Return the layers as each of `OPTIMIZERS` has them."""
    return [
        [
            Layer(name, tuple(p.shape[1:]), optimizer if p.dim() == 3 or optimizer == "sgd" else "adamw", i)
            for i, (name, p) in enumerate(trained.items())
        ]
        for optimizer in OPTIMIZERS
    ]


class _Ensemble:
    def __init__(
        self, task: Task, fixed: dict[str, Tensor], stacks: list[Stack], cases: list[Case], layers: list[list[Layer]]
    ) -> None:
        self.stacks, self.fixed, self.cases = stacks, fixed, cases
        self.positions = {layer.name: layer.position for layer in layers[0]}

        def loss(trained: dict[str, Tensor], fixed: dict[str, Tensor], batch: int) -> Tensor:
            def model(*args: Tensor) -> Tensor:
                return functional_call(task.model, {**trained, **fixed}, args)  # type: ignore[no-any-return]

            return task.loss(model, batch, None)  # type: ignore[arg-type]

        self._gradients = torch.vmap(grad_and_value(loss), in_dims=(0, 0, None), randomness="different")

    @torch.no_grad()
    def step(
        self,
        batch: int,
        lr: Any,
        optimizers: list[str],
        table: Any = None,
        present: Any = None,
        step: int = 1,
    ) -> Any:
        views = {
            name: stack.weight[:, k].unflatten(1, stack.shape)
            for stack in self.stacks
            for k, name in enumerate(stack.names)
        }
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap can take whole
            gradients, losses = self._gradients(views, self.fixed, batch)
        stacked = [torch.stack([gradients[name].flatten(1) for name in stack.names], 1) for stack in self.stacks]
        total = sum((g.square().sum((1, 2)) for g in stacked), torch.zeros(())).sqrt()
        clips = torch.tensor([case.scenario == "clipping" for case in self.cases])
        factor = torch.where(clips, (0.5 / total).clamp(max=1.0), 1.0)
        rates = torch.as_tensor(lr, dtype=torch.float32)[:, None, None]
        for stack, raw in zip(self.stacks, stacked, strict=True):
            gradient = raw * factor[:, None, None]
            at = [self.positions[name] for name in stack.names]
            kept = None if present is None else torch.as_tensor(present[:, at])[:, :, None]
            update, scale = self._update(stack, gradient, optimizers)
            before, stepped = stack.weight.clone(), rates * scale
            decay = torch.tensor([1e-4 if name == "sgd" else 0.05 for name in optimizers])[:, None, None]
            moved = before * (1.0 - rates * decay) - stepped * update
            stack.weight.copy_(moved if kept is None else torch.where(kept, moved, before))
            if table is not None:
                self._measure(stack, gradient, update, before, stepped, table, at)
        return losses.numpy()

    def _update(self, stack: Stack, g: Tensor, optimizers: list[str]) -> tuple[Tensor, Tensor]:
        """Return each layer's update before the learning rate, and the learning rate's factor (trainings, 1, 1)."""
        kinds = [name if name == "sgd" or len(stack.shape) == 2 else "adamw" for name in optimizers]
        update = torch.empty_like(g)
        scale = torch.ones(len(g), 1, 1)
        for kind in set(kinds):
            rows = torch.tensor([i for i, one in enumerate(kinds) if one == kind])
            first, mine = stack.first[rows], g[rows]
            if kind == "adamw":
                first, second = 0.9 * first + 0.1 * mine, 0.95 * stack.second[rows] + 0.05 * mine.square()
                stack.second[rows] = second
                update[rows] = 1.5 * first / (second.sqrt() + 1e-8)
            elif kind == "sgd":
                first = 0.9 * first + mine
                update[rows] = first
            else:
                first = 0.95 * first + 0.05 * mine
                look = 0.95 * first + 0.05 * mine
                if kind == "root":
                    bound = _quantile(look.abs())
                    look = look.clamp(-bound, bound)
                update[rows] = _orthogonalized(look.unflatten(2, stack.shape)).flatten(2)
                scale[rows] = 0.2 * max(stack.shape) ** 0.5
            stack.first[rows] = first
        return update, scale

    def _measure(
        self, stack: Stack, g: Tensor, update: Tensor, before: Tensor, stepped: Tensor, table: Any, at: list[int]
    ) -> None:
        n = g.shape[-1]
        magnitude = stack.first.abs()
        mean = g.mean(-1, keepdim=True)
        square = (g - mean).square()
        variance = square.mean(-1)
        weight = before.norm(dim=-1)
        size = update.norm(dim=-1)
        found = {
            "grad_norm": g.norm(dim=-1),
            "update_norm": size,
            "weight_norm": weight,
            "scaled_lr": stepped[:, :, 0].expand(size.shape),
            "update_to_weight": stepped[:, :, 0] * size / weight,
            "grad_abs_max": g.abs().amax(-1),
            "grad_std": variance.sqrt(),
            "grad_kurtosis": square.square().mean(-1) / variance.square() - 3.0,
            "grad_nan": g.isnan().sum(-1),
            "grad_inf": g.isinf().sum(-1),
            "grad_zero": (g == 0).sum(-1),
            "changed_share": (stack.weight != before).float().mean(-1),
        }
        if n >= 256:
            outliers = (magnitude - _quantile(magnitude)).clamp(min=0.0)
            found["outlier_energy"] = outliers.square().sum(-1) / magnitude.square().sum(-1)
        if len(stack.shape) == 2:
            rows = [i for i, case in enumerate(self.cases) if case.optimizer in ("root", "muon")]
            x = update[rows].unflatten(2, stack.shape)
            x = x if stack.shape[0] <= stack.shape[1] else x.mT
            error = (x @ x.mT - torch.eye(x.shape[-2])).flatten(2).norm(dim=-1) / x.shape[-2] ** 0.5
            found["orthogonality_error"] = torch.full_like(weight, math.nan)
            found["orthogonality_error"][rows] = error
        for name, values in found.items():
            if name in NAMES:
                table[:, at, NAMES.index(name)] = values.float().numpy()


def _quantile(magnitude: Tensor) -> Tensor:
    """Return the 0.9 quantiles over the last dimension, kept."""
    return magnitude.kthvalue(max(1, math.ceil(0.9 * magnitude.shape[-1])), -1, keepdim=True).values


def _orthogonalized(x: Tensor) -> Tensor:
    """Return five Newton-Schulz steps of matrices (..., m, n)."""
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = MUON
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x
