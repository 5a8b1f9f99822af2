"""Optimizers inside of what frameworks wrap around them: found, recorded as they step, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR
from transformers import Trainer, TrainerCallback, TrainingArguments

import root_dash
from root_dash.monitor.wrapped import unwrapped
from tests.monitor.training import EVERY_STEP, Build, Model, adamw, layers_of, muon, root


class Forwarding:
    """A wrapper as DeepSpeed's: no optimizer by its class."""

    def __init__(self, inside: Any, attribute: str = "optimizer") -> None:
        setattr(self, attribute, inside)
        self.inside = inside

    def step(self) -> None:
        """Step what is inside."""
        self.inside.step()

    def zero_grad(self) -> None:
        """Zero what is inside."""
        self.inside.zero_grad()


class Container(Optimizer):
    """A container as torchtitan's: an optimizer that was set up for its hooks, whose optimizers do the work."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for one in optimizers for group in one.param_groups for p in group["params"]], {"lr": 0.5})

    def step(self, closure: Any = None) -> Any:
        """Step all."""
        for optimizer in self.optimizers:
            optimizer.step(closure)


class Lookahead(Optimizer):
    """Steps another optimizer and then moves the weights itself; with hooks of its own where it is `set_up`."""

    def __init__(self, optimizer: Optimizer, *, set_up: bool = True, attribute: str = "optimizer") -> None:
        if set_up:
            super().__init__(optimizer.param_groups, {})
        else:
            self.param_groups, self.state = optimizer.param_groups, optimizer.state
        setattr(self, attribute, optimizer)
        self._fast = optimizer
        self._slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Halfway back to where the weights were."""
        self._fast.step(closure)
        for slow, parameter in zip(self._slow, (p for g in self.param_groups for p in g["params"]), strict=True):
            parameter.copy_(slow.lerp_(parameter, 0.5))


class Endless:
    """Makes another one of itself whenever it is asked for what is inside, as mocks do."""

    def step(self) -> None:
        """Nothing."""

    def zero_grad(self) -> None:
        """Nothing."""

    @property
    def optimizer(self) -> Endless:
        """Another one."""
        return Endless()


@pytest.fixture
def _apart() -> Iterator[None]:
    """Accelerate keeps what is the process' in class attributes."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_the_optimizers_that_step_are_found() -> None:
    """In whatever they are wrapped, however deep, and in order."""
    model = Model()
    one, two = muon(model)
    for wrapped in (Forwarding(one), Forwarding(one, "optim"), Forwarding([one], "optimizers"), Forwarding([one])):
        assert unwrapped(wrapped) == [one]
    assert unwrapped(Lookahead(one, set_up=False)) == [one]
    assert unwrapped(Forwarding(Lookahead(one, set_up=False))) == [one]
    assert unwrapped(Forwarding(Forwarding([Forwarding(one)], "optimizers"))) == [one]
    assert unwrapped(one) == [one]
    for several in (
        [one, two],
        (Forwarding(one), two),
        iter([one, two]),
        {"a": one, "b": two}.values(),
        Forwarding([one, two], "optimizers"),
        Container([one, two]),
        Forwarding(Container([one, two])),
        [[one], [Forwarding(two)]],
    ):
        assert unwrapped(several) == [one, two]


def test_an_optimizer_with_hooks_of_its_own_is_itself_whatever_it_holds() -> None:
    """Its own step is more than what is inside: so it is where a container trains more than what it holds."""
    model = Model()
    one, two = muon(model)
    lookahead, wider = Lookahead(one), Container([one, two])
    wider.optimizers = [one]
    assert unwrapped(Forwarding(lookahead)) == [lookahead]
    assert unwrapped(wider) == [wider]


def _refused() -> dict[str, tuple[Callable[[nn.Module, Optimizer], Any], str]]:
    itself: list[Any] = []
    itself.append(itself)
    circle = Forwarding(None)
    circle.optimizer = [circle]  # type: ignore[attr-defined]
    return {
        "nothing": (lambda model, _: None, r"optimizer must be .* got None \(NoneType\)"),
        "no optimizers": (lambda model, _: [], r"optimizer must be .* got \[\] \(list\)"),
        "a name": (lambda model, _: "adamw", r"optimizer must be .* got 'adamw' \(str\)"),
        "a class": (lambda model, _: AdamW, r"optimizer must be .* got <class .* \(type\)"),
        "parameters": (lambda model, _: model.parameters(), r"optimizer\[0\] must be .* \(Parameter\)"),
        "a hole": (lambda model, one: [one, None], r"optimizer\[1\] must be .* got None"),
        "a model": (lambda model, _: model, r"optimizer must be .* \(Model\)"),
        "a scheduler": (lambda model, one: StepLR(one, 1), r"optimizer must be .* \(StepLR\)"),
        "a hollow one": (
            lambda model, _: Forwarding([], "optimizers"),
            r"optimizer\.optimizers must be .* got \[\]",
        ),
        "a wrapper that hides": (lambda model, one: Forwarding(one, "base"), r"optimizer must be .* \(Forwarding\)"),
        "no hooks": (
            lambda model, one: Lookahead(one, set_up=False, attribute="base"),
            r"\(Lookahead\), whose step calls no hooks: give the optimizer inside of it",
        ),
        "a list in itself": (lambda model, _: itself, r"optimizer\[0\] must be .* holds itself"),
        "a wrapper in itself": (lambda model, _: circle, r"optimizer\.optimizer\[0\] must be .* holds itself"),
        "no end": (lambda model, _: Endless(), "wrapped more than 16 times"),
        "twice": (lambda model, one: [one, Forwarding(one)], "optimizer must hold each optimizer once"),
    }


@pytest.mark.parametrize("case", _refused())
def test_what_holds_no_optimizer_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    """By the argument, the value and the rule, before there is a database."""
    make, message = _refused()[case]
    model = Model()
    (optimizer,) = adamw(model)
    with pytest.raises((TypeError, ValueError), match=message):
        root_dash.watch(model, make(model, optimizer), db=tmp_path / "runs.db")
    assert list(tmp_path.iterdir()) == []
    assert not optimizer._optimizer_step_pre_hooks


def test_a_container_is_recorded_by_what_it_holds(tmp_path: Path) -> None:
    """With the options and the momentum of these; one step for one call."""
    model = Model()
    container = Container(muon(model))
    with root_dash.watch(model, container, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        _train(model, [container], Accelerator(cpu=True), 3)
    assert (run.stored, run.failures) == (3, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert [one["class"] for one in store.run(1).optimizer["optimizers"]] == ["Muon", "AdamW"]
        for layer in layers_of(store).values():
            assert store.history(layer.id, "momentum_norm").values.shape == (3,)


def test_an_optimizer_that_wraps_another_is_recorded_with_all_that_it_does(tmp_path: Path) -> None:
    """The update is what the weights were moved by in the whole step, not in the step inside."""
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    lookahead = Lookahead(SGD(model.parameters(), lr=0.1))
    with root_dash.watch(model, lookahead, db=tmp_path / "runs.db", cadence=EVERY_STEP):
        model(torch.ones(1, 3)).sum().backward()
        lookahead.step()
    with root_dash.open(tmp_path / "runs.db") as store:
        moved = (model.weight - before).norm().item() / 0.1
        assert store.statistics(1)["update_norm"] == pytest.approx(moved, rel=1e-5)


def _train(model: nn.Module, optimizers: list[Any], accelerator: Accelerator, batches: int) -> None:
    """As Accelerate has it: `optimizer.step` is called for every batch."""
    accumulates = accelerator.gradient_accumulation_steps > 1
    for index in range(batches):
        tokens = torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(index))
        with accelerator.accumulate(model) if accumulates else nullcontext():
            loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            accelerator.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("build", [root, muon, adamw])
def test_what_accelerate_prepared_is_recorded_step_by_step(build: Build, accumulated: int, tmp_path: Path) -> None:
    """Each step once, of the inside, with the gradients of all its batches; not a bit of the training changes."""
    models = Model(), Model()
    for model, watched in zip(models, (False, True), strict=True):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
        inside = build(model)
        prepared, *optimizers = accelerator.prepare(model, *inside)
        assert all(type(optimizer) is AcceleratedOptimizer for optimizer in optimizers)
        if not watched:
            _train(prepared, optimizers, accelerator, 12)
            continue
        given = optimizers if len(optimizers) > 1 else optimizers[0]
        with root_dash.watch(prepared, given, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
            _train(prepared, optimizers, accelerator, 12)
    steps = 12 // accumulated
    assert (run.stored, run.lost, run.failures, run.step) == (steps, 0, 0, steps)
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right), name
    with root_dash.open(tmp_path / "runs.db") as store:
        assert [one["class"] for one in store.run(1).optimizer["optimizers"]] == [type(one).__name__ for one in inside]
        for layer in layers_of(store).values():
            assert store.steps(layer.id, "statistics").tolist() == list(range(1, steps + 1))
        first = store.statistics(layers_of(store)["square.weight"].id, 1)
    alone = Model()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    prepared, optimizer = accelerator.prepare(alone, SGD(alone.parameters(), lr=0.0))
    seen: list[float] = []
    weight = alone.square.weight
    optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append(torch.linalg.norm(weight.grad).item()))
    _train(prepared, [optimizer], accelerator, accumulated)
    assert first["grad_norm"] == pytest.approx(seen[-1], rel=1e-5)


class _Tokens(nn.Module):
    """A model as the Trainer of Hugging Face takes one: its loss comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Model()

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor]:
        return (functional.cross_entropy(self.inner(tokens).flatten(0, 1), labels.flatten()),)


class _Recording(TrainerCallback):
    """Watches what the Trainer hands to its callbacks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, *_: Any, **given: Any) -> None:
        """Begin."""
        assert type(given["optimizer"]) is AcceleratedOptimizer
        self.run = root_dash.watch(given["model"], given["optimizer"], db=self.path)

    def on_train_end(self, *_: Any, **given: Any) -> None:
        """End."""
        self.run.close()


@pytest.mark.usefixtures("_apart")
def test_what_a_trainer_hands_to_its_callbacks_is_recorded(tmp_path: Path) -> None:
    """Hugging Face's: every step once, whatever the number of batches in it."""
    model = _Tokens()
    batches = [{"tokens": torch.arange(9) + index, "labels": torch.arange(9) + index + 1} for index in range(32)]
    recording = _Recording(tmp_path / "runs.db")
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "out"),
            use_cpu=True,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_train_epochs=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=batches,
        optimizers=(root(model)[0], None),
        callbacks=[recording],
    )
    trainer.train()
    assert (recording.run.stored, recording.run.failures) == (4, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        layer = next(layer for layer in store.layers(1) if layer.name == "inner.square.weight")
        assert store.steps(layer.id, "statistics").tolist() == [1, 2, 3, 4]
        assert (store.history(layer.id, "polar_error").values > 0).all()
