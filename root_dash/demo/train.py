"""The training loop of the demo: a preset, an optimizer, and a recorder beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer

from root_dash.demo.model import GPT, Shape
from root_dash.demo.text import Text
from root_dash.exceptions import RootDashError
from root_dash.monitor.limits.cadence import Cadence
from root_dash.optim.root import ROOT

OptimizerName = Literal["root", "muon", "adamw"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A model, the options of its training, and the cadence of its recording."""

    shape: Shape
    batch: int
    steps: int
    lr: float
    adamw_lr: float
    cadence: Cadence
    validate_every: int
    warmup: int = 20
    bf16: bool = False


PRESETS = {
    "tiny": Preset(
        Shape(width=128, depth=4, heads=4, context=128),
        batch=16,
        steps=1000,
        lr=1e-2,
        adamw_lr=1e-2,
        cadence=Cadence(histograms=10, quantiles=20, spectra=20, masks=20),
        validate_every=100,
    ),
    "small": Preset(
        Shape(width=384, depth=6, heads=6, context=256),
        batch=32,
        steps=2000,
        lr=5e-3,
        adamw_lr=3e-3,
        cadence=Cadence(histograms=20, quantiles=20, spectra=50, masks=50),
        validate_every=100,
    ),
    # 14 blocks of 12 d² with d = 768: 99.5 M parameters.
    "gpu": Preset(
        Shape(width=768, depth=14, heads=12, context=1024),
        batch=32,
        steps=5000,
        lr=2e-3,
        adamw_lr=1e-3,
        cadence=Cadence(histograms=50, quantiles=100, spectra=500, masks=500),
        validate_every=250,
        warmup=200,
        bf16=True,
    ),
}


@dataclass(frozen=True, slots=True)
class State:
    """The state of the training after a step. Losses are in nats per byte."""

    step: int
    loss: float
    validation_loss: float | None
    tokens_per_second: float


def build_optimizers(model: nn.Module, name: OptimizerName, preset: Preset) -> list[Optimizer]:
    """Return the optimizers of the demo. ROOT steps every parameter; Muon steps the matrices, and an AdamW the rest."""
    betas = (0.9, 0.95)
    if name == "adamw":
        return [AdamW(model.parameters(), lr=preset.adamw_lr, betas=betas, weight_decay=0.1)]
    groups = ROOT.param_groups(model)
    for group in groups:
        group["lr"] = preset.lr if group["algorithm"] == "root" else preset.adamw_lr
    if name == "root":
        return [ROOT(groups, betas=betas, weight_decay=0.1)]
    matrices, rest = (
        [p for g in groups if (g["algorithm"] == "root") is root for p in g["params"]] for root in (True, False)
    )
    return [
        Muon(matrices, lr=preset.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=preset.adamw_lr, betas=betas, weight_decay=0.1),
    ]


def schedule(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at a step (from 1): a linear warm-up, then a linear decay to 0.05."""
    warmup = min(warmup, max(1, steps // 5))
    rest = (steps - step) / max(1, steps - warmup)
    return min(step / warmup, max(0.05, rest))


def train(
    model: GPT,
    optimizers: Sequence[Optimizer],
    text: Text,
    preset: Preset,
    steps: int,
    log: Callable[..., None],
    device: torch.device,
) -> Iterator[State]:
    """Train for `steps` steps and yield the state after each.

    `log(loss=..., ...)` is called with tensors that stay on the device.

    Raises:
        RootDashError: the loss is no longer finite.
    """
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    generator = torch.Generator().manual_seed(1)
    held_out = text.validation_batches(preset.batch, preset.shape.context, 8)
    for step in range(1, steps + 1):
        started = time.perf_counter()
        factor = schedule(step, steps, preset.warmup)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = _loss(model, *text.batch(preset.batch, preset.shape.context, generator), device, preset.bf16)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        validate = step % preset.validate_every == 0 or step == steps
        numbers: dict[str, float | Tensor] = {"loss": loss.detach(), "lr": optimizers[0].param_groups[0]["lr"]}
        validation_loss = evaluate(model, held_out, device, preset.bf16) if validate else None
        if validation_loss is not None:
            numbers["val_loss"] = validation_loss
        log(**numbers)
        # To read the loss waits for the device. The progress bar costs this wait once a step, after all launches.
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RootDashError(f"the loss at step {step} is {value}: lower the learning rate")
        tokens = preset.batch * preset.shape.context
        yield State(step, value, validation_loss, tokens / (time.perf_counter() - started))


@torch.no_grad()
def evaluate(model: GPT, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device, bf16: bool) -> float:
    """Return the mean loss over batches, in nats per byte."""
    model.eval()
    losses = [_loss(model, inputs, targets, device, bf16) for inputs, targets in batches]
    model.train()
    return float(torch.stack(losses).mean())


def _loss(model: GPT, inputs: Tensor, targets: Tensor, device: torch.device, bf16: bool) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = model(inputs.to(device, non_blocking=True))
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.to(device, non_blocking=True).flatten())
