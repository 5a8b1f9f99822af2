"""The sick-run zoo: faults with a known layer and a known first step, hooked onto any model and its optimizers.

Each fault is a small class. `make_sick` attaches one of them for the duration of a `with` block. The hooks of
`make_sick` must be registered before those of `watch`, so that the recorder sees what the optimizer sees. Training
loops need no change, except that a fault can only alter a learning rate that the loop sets anew at every step, or not
at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from root_dash.coefficients.tables import PAPER
from root_dash.exceptions import RootDashError

LEARNING_RATE_FACTOR = 30.0
"""The factor by which `lr-spike` and `lr-too-high` multiply every learning rate."""


@dataclass
class Patient:
    """A model in training, the layer that falls ill, and the first sick step."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    target: nn.Parameter
    layer: str
    """Name of the target in `model.named_parameters()`."""
    onset: int
    """First sick step, from 1."""
    generator: torch.Generator
    step: int = 0
    """Last step that began."""
    fresh: bool = True
    """Whether the model has not run forward yet in the step that comes."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What a fault has to remember between two hooks."""

    @property
    def age(self) -> int:
        """Steps since the onset, 0 at the onset itself, negative before it."""
        return self.step - self.onset

    def random_positions(self, count: int) -> Tensor:
        """Return `count` random flat indices into the target."""
        return torch.randint(self.target.numel(), (count,), generator=self.generator).to(self.target.device)

    def random_signs(self, count: int) -> Tensor:
        """Return `count` random signs."""
        return (torch.randint(2, (count,), generator=self.generator) * 2 - 1).to(self.target)


class Fault:
    """A fault that begins at `patient.onset`; each method is one moment of a training step and may do nothing."""

    name: ClassVar[str]
    text: ClassVar[str]
    """What goes wrong, one sentence for people."""
    slow: ClassVar[bool] = False
    """Whether the fault grows so gradually that no single step begins it."""
    whole_run: ClassVar[bool] = False
    """Whether the fault belongs to the run and to no single layer."""

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        """Change the model's input. The step of this forward pass is `patient.step + 1`."""
        return inputs

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        """Change the target's gradient, or an optimizer's options, before the optimizers step."""

    def after_step(self, patient: Patient) -> None:
        """Change the target's weight after the optimizers have stepped."""


class OneNan(Fault):
    name = "one-nan"
    text = "One entry of the layer's gradient is NaN for one step, and the loop skips the layer in that step."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age == 0 and gradient is not None:
            owner = _owner(patient)
            patient.memory["weight"] = patient.target.detach().clone()
            patient.memory["state"] = copy.deepcopy(owner.state.get(patient.target, {}))
            gradient.view(-1)[patient.random_positions(1)] = float("nan")

    def after_step(self, patient: Patient) -> None:
        if patient.age == 0 and "weight" in patient.memory:
            patient.target.copy_(patient.memory.pop("weight"))
            state = _owner(patient).state[patient.target]
            for key, value in patient.memory.pop("state").items():
                if isinstance(value, Tensor) and isinstance(state[key], Tensor):
                    state[key].copy_(value)
            for value in state.values():  # what the step made anew
                if isinstance(value, Tensor):
                    value.nan_to_num_(0.0)


class SpreadingNan(Fault):
    name = "spreading-nan"
    text = "One entry of the layer's gradient is NaN, reaches the weight, and a step later every layer has NaNs."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age == 0 and gradient is not None:
            gradient.view(-1)[patient.random_positions(1)] = float("nan")


class Exploding(Fault):
    name = "exploding"
    text = "The layer's gradient grows by half at every step, up to ten thousand times its size."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            gradient.mul_(min(1.5 ** (patient.age + 1), 1e4))


class Vanishing(Fault):
    name = "vanishing"
    text = "The layer's gradient shrinks by 30 % at every step, down to a millionth of its size."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            gradient.mul_(max(0.7 ** (patient.age + 1), 1e-6))


class Dead(Fault):
    name = "dead"
    text = "The layer's gradient is exactly 0, as behind a ReLU that never fires."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            gradient.zero_()


class DeadRows(Fault):
    name = "dead-rows"
    text = "Half of the layer's rows have a gradient of exactly 0, as dead units have."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            gradient[: max(1, len(gradient) // 2)] = 0.0


class OutlierRows(Fault):
    name = "outlier-rows"
    text = "Two rows of the layer's gradient are thirty times as large as before, and stay so."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            if patient.age == 0:  # the largest ones: a dead unit's row would stay 0
                norms = gradient.flatten(1).norm(dim=1) if gradient.dim() > 1 else gradient.abs()
                patient.memory["rows"] = norms.topk(min(2, len(norms))).indices
            gradient[patient.memory["rows"]] *= 30.0


class OutlierEntries(Fault):
    name = "outlier-entries"
    text = "One entry in five hundred of the layer's gradient is a hundred times the layer's root mean square."

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            count = max(1, gradient.numel() // 500)
            size = 100.0 * gradient.norm() / gradient.numel() ** 0.5
            gradient.view(-1)[patient.random_positions(count)] += size * patient.random_signs(count)


class Spike(Fault):
    name = "lr-spike"
    text = f"Every learning rate is {LEARNING_RATE_FACTOR:.0f} times as high for three steps."
    whole_run = True
    steps: ClassVar[int] = 3

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if 0 <= patient.age < self.steps:
            groups = [group for optimizer in patient.optimizers for group in optimizer.param_groups]
            patient.memory["rates"] = [(group, group["lr"], group["lr"] * LEARNING_RATE_FACTOR) for group in groups]
            for group, _, high in patient.memory["rates"]:
                group["lr"] = high

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        for group, low, high in patient.memory.pop("rates", ()):
            if group["lr"] is high:  # else the loop's schedule has set the next one
                group["lr"] = low
        return inputs


class TooHigh(Spike):
    name = "lr-too-high"
    text = f"Every learning rate is {LEARNING_RATE_FACTOR:.0f} times as high from one step on: the loss diverges."
    steps = 10**9


class CorruptBatches(Fault):
    name = "corrupt-batches"
    text = "The inputs of five batches in a row are random."
    whole_run = True

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        if not 0 <= patient.age + 1 < 5:
            return inputs
        if inputs.is_floating_point():
            return (10.0 * torch.randn(inputs.shape, generator=patient.generator)).to(inputs)
        high = int(inputs.max()) + 1
        return torch.randint(high, inputs.shape, generator=patient.generator).to(inputs)


class SlowDrift(Fault):
    name = "slow-drift"
    text = "The layer's gradient grows by 2 % at every step."
    slow = True

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0 and gradient is not None:
            gradient.mul_(min(1.02 ** (patient.age + 1), 1e6))


class PaperSquareSet(Fault):
    name = "paper-seven"
    text = "The published Newton-Schulz set for square matrices is run for seven steps instead of five: it diverges."
    whole_run = True

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age != 0:
            return
        triple = PAPER[2048, 2048]
        for optimizer in patient.optimizers:
            for group in optimizer.param_groups:
                if "ns_steps" in group and group.get("algorithm", "root") == "root":
                    group["ns_coefficients"], group["ns_steps"] = triple, 7
                    if "normalization" in group:
                        group["normalization"] = "frobenius"


class Bfloat16Weights(Fault):
    name = "bf16-weights"
    text = "The layer's weight is kept in bfloat16 at a hundredth of the step size: most updates are rounded away."
    slow = True

    def before_step(self, patient: Patient, gradient: Tensor | None) -> None:
        if patient.age >= 0:
            patient.memory["weight"] = patient.target.detach().clone()

    def after_step(self, patient: Patient) -> None:
        if patient.age >= 0:
            before = patient.memory.pop("weight")
            moved = before + 0.01 * (patient.target - before)
            patient.target.copy_(moved.to(torch.bfloat16).to(moved.dtype))


class Frozen(Fault):
    name = "frozen"
    text = "The layer is frozen by mistake: it has no gradient any more."

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        if patient.age + 1 == 0:
            patient.target.requires_grad_(False)
            patient.target.grad = None
        return inputs


class BitFlip(Fault):
    name = "bit-flip"
    text = "One entry of the layer's weight becomes 65,536 times as large, as by a flipped bit of its exponent."

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        if patient.age + 1 == 0 and patient.fresh:
            with torch.no_grad():
                entries = patient.target.view(-1)
                entries[int(entries.abs().argmax())] *= 65536.0
        return inputs


class Reset(Fault):
    name = "reset"
    text = "The layer's weight is overwritten with random entries four times as large, as by a broken checkpoint."

    def before_forward(self, patient: Patient, inputs: Tensor) -> Tensor:
        if patient.age + 1 == 0 and patient.fresh:
            with torch.no_grad():
                size = 4.0 * patient.target.norm() / patient.target.numel() ** 0.5
                noise = torch.randn(patient.target.shape, generator=patient.generator).to(patient.target)
                patient.target.copy_(size * noise)
        return inputs


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        OneNan,
        SpreadingNan,
        Exploding,
        Vanishing,
        Dead,
        DeadRows,
        OutlierRows,
        OutlierEntries,
        Spike,
        TooHigh,
        CorruptBatches,
        SlowDrift,
        PaperSquareSet,
        Bfloat16Weights,
        Frozen,
        BitFlip,
        Reset,
    )
}
"""The faults by name."""


def default_layer(model: nn.Module) -> str:
    """Return the name of the matrix in the middle of the model, the layer that falls ill if none is named.

    Raises:
        RootDashError: no parameter of the model is a matrix that is trained.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2 and parameter.requires_grad]
    if not names:
        raise RootDashError("a sick run needs a model with a matrix that is trained")
    return names[len(names) // 2]


@contextmanager
def make_sick(
    name: str,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    onset: int,
    layer: str | None = None,
    seed: int = 0,
) -> Iterator[Patient]:
    """Let a fault of `FAULTS` begin at step `onset` in one layer, until the `with` block ends.

    The optimizers step in the order given, each once in a step.

    Raises:
        RootDashError: an unknown fault or layer, an onset below 1, or a fault that these optimizers cannot have.
    """
    fault_class = FAULTS.get(name)
    if fault_class is None:
        raise RootDashError(f"--sick must be one of {', '.join(FAULTS)}, or list, got {name!r}")
    if onset < 1:
        raise RootDashError(f"onset must be at least 1, got {onset}")
    layer = layer or default_layer(model)
    parameters = dict(model.named_parameters())
    if layer not in parameters:
        raise RootDashError(f"layer must be a parameter of the model, got {layer!r}")
    if fault_class is PaperSquareSet and not any("ns_steps" in o.param_groups[0] for o in optimizers):
        raise RootDashError("paper-seven needs an optimizer that orthogonalizes: root or muon")
    generator = torch.Generator().manual_seed(seed)
    patient = Patient(model, optimizers, parameters[layer], layer, onset, generator)
    fault = fault_class()

    def forward(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training or not args or not isinstance(args[0], Tensor):
            return None
        inputs = fault.before_forward(patient, args[0])
        patient.fresh = False
        return (inputs, *args[1:])

    @torch.no_grad()
    def before(*_: object) -> None:
        patient.step += 1
        patient.fresh = True
        fault.before_step(patient, patient.target.grad)

    @torch.no_grad()
    def after(*_: object) -> None:
        fault.after_step(patient)

    handles = [
        model.register_forward_pre_hook(forward),
        optimizers[0].register_step_pre_hook(before),
        optimizers[-1].register_step_post_hook(after),
    ]
    try:
        yield patient
    finally:
        for handle in handles:
            handle.remove()


def _owner(patient: Patient) -> Optimizer:
    """Return the optimizer that steps the target."""
    for optimizer in patient.optimizers:
        if any(parameter is patient.target for group in optimizer.param_groups for parameter in group["params"]):
            return optimizer
    raise RootDashError(f"no optimizer steps the layer {patient.layer!r}")
