"""What training loops do around a step: each has a stated behaviour, in the docstring of `root_dash.watch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import root_dash
from root_dash.optim.root import ROOT
from root_dash.store import Store
from tests.monitor.training import EVERY_STEP, MATRICES, Model, layers_of, root, step, train

BUILDS = (
    lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9),
    lambda parameters: ROOT([{"params": list(parameters), "algorithm": "adamw"}], lr=1e-2),
)


def norms(store: Store, name: str) -> dict[int, float]:
    """The gradient's norm of a layer by step."""
    history = store.history(layers_of(store)[name].id, "grad_norm")
    return dict(zip(history.steps.tolist(), history.values.tolist(), strict=True))


def loss_of(model: nn.Module, index: int) -> torch.Tensor:
    """The loss of a batch, not yet backward."""
    tokens = torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(index))
    logits = model(tokens[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


@pytest.mark.parametrize("build", BUILDS)
def test_accumulated_and_clipped_gradients_are_those_that_the_step_sees(
    build: Callable[..., Optimizer], tmp_path: Path
) -> None:
    """Four backward passes are one step; its gradient is their sum, clipped."""
    model = Model()
    optimizer = build(model.parameters())
    seen: list[float] = []
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        for index in range(8):
            (loss_of(model, index) / 4).backward()
            if index % 4 == 3:
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                assert model.up.weight.grad is not None
                seen.append(model.up.weight.grad.norm().item())
                optimizer.step()
                model.zero_grad()
    assert (run.step, run.stored, run.failures) == (2, 2, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        np.testing.assert_allclose(list(norms(store, "up.weight").values()), seen, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_under_a_scaler(fused: bool, tmp_path: Path) -> None:
    """The recording equals one without a scaler.

    A step that the scaler skips does not count; if the optimizer itself skips, nothing moves.
    """
    model, twin = Model(), Model()
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        for index in range(4):
            loss = loss_of(model, index)
            scaler.scale(loss).backward()
            if index == 1:
                assert model.up.weight.grad is not None
                model.up.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            run.log(index=index)
            model.zero_grad()
    assert (run.step, run.failures) == (4 if fused else 3, 0)
    loss_of(twin, 0).backward()
    assert twin.up.weight.grad is not None
    with root_dash.open(tmp_path / "runs.db") as store:
        assert norms(store, "up.weight")[1] == pytest.approx(twin.up.weight.grad.norm().item(), rel=1e-4)
        layer = layers_of(store)["up.weight"].id
        if fused:
            assert store.statistics(layer, 2)["grad_inf"] == 1
            assert store.statistics(layer, 2)["update_norm"] == 0
        assert store.history(layer, "update_norm").values[-1] > 0


@pytest.mark.parametrize("build", [root, lambda model: [SGD(model.parameters(), lr=1e-2, momentum=0.9)]])
def test_a_compiled_model_is_recorded_as_itself(build: Callable[[nn.Module], list[Optimizer]], tmp_path: Path) -> None:
    """Layers bear the names, and the numbers, of the model that is not compiled."""
    for name in ("plain", "compiled"):
        model: nn.Module = Model()
        optimizers = build(model)
        if name == "compiled":
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        with root_dash.watch(model, optimizers, db=tmp_path / f"{name}.db", cadence=EVERY_STEP) as run:
            train(model, optimizers, 2, run.log)
        assert (run.stored, run.failures) == (2, 0)
    with root_dash.open(tmp_path / "plain.db") as plain, root_dash.open(tmp_path / "compiled.db") as compiled:
        assert list(layers_of(plain)) == list(layers_of(compiled))
        for name in MATRICES:
            assert norms(plain, name) == pytest.approx(norms(compiled, name), rel=1e-5)


def test_shared_weights_are_one_layer(tmp_path: Path) -> None:
    """The layer bears the first of the names, and has the gradient of all uses."""
    model = Model()
    model.head.weight = model.embed.weight
    optimizers = [SGD(model.parameters(), lr=1e-2)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        loss_of(model, 0).backward()
        assert model.embed.weight.grad is not None
        expected = model.embed.weight.grad.norm().item()
        optimizers[0].step()
    assert run.failures == 0
    with root_dash.open(tmp_path / "runs.db") as store:
        assert "head.weight" not in layers_of(store)
        assert norms(store, "embed.weight")[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("build", BUILDS)
def test_a_frozen_layer_is_none_until_it_is_unfrozen(build: Callable[..., Optimizer], tmp_path: Path) -> None:
    """From then on it is recorded like all others, and an event tells; frozen again it is missing from the steps."""
    model = Model()
    for parameter in (model.up.weight, model.embed.weight):
        parameter.requires_grad_(False)
    optimizer = build(model.parameters())
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, [optimizer], 2, run.log)
        model.up.weight.requires_grad_(True)
        train(model, [optimizer], 2, run.log)
        model.up.weight.requires_grad_(False)
        model.up.weight.grad = None
        train(model, [optimizer], 1, run.log)
    assert (run.stored, run.lost, run.failures) == (5, 0, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert set(layers_of(store)) == {name for name, _ in model.named_parameters()} - {"embed.weight"}
        assert list(norms(store, "up.weight")) == [3, 4]
        assert list(norms(store, "up.bias")) == [1, 2, 3, 4, 5]
        assert store.mask(layers_of(store)["up.weight"].id).dense().shape == (40, 24)
        (event,) = store.events(1)
        assert (event.kind, event.step) == ("layers", 3)
        assert event.text.startswith("up.weight: from this step on")
        grid = store.grid(1, "grad_norm")
        assert np.isfinite(grid.values[-1]).tolist() == [False, False, True, True, False]


def test_a_layer_that_is_added_later_is_recorded_from_then_on(tmp_path: Path) -> None:
    """`add_param_group` adds it; `include` may still leave it out, and a module of another shape is a new layer."""
    model = Model()
    named = dict(model.named_parameters())
    optimizer = ROOT([named[name] for name in MATRICES], lr=1e-2)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP, exclude="norm*") as run:
        train(model, [optimizer], 1, run.log)
        late = [parameter for name, parameter in named.items() if name not in MATRICES]
        optimizer.add_param_group({"params": late, "algorithm": "adamw"})
        train(model, [optimizer], 2, run.log)
        model.head = nn.Linear(24, 60, bias=False)
        optimizer.add_param_group({"params": [model.head.weight]})
        train(model, [optimizer], 1, run.log)
    assert (run.stored, run.lost, run.failures) == (4, 0, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert set(layers_of(store)) == {*MATRICES, "embed.weight", "up.bias", "head.weight", "head.weight~2"}
        assert list(norms(store, "head.weight")) == [2, 3]
        assert list(norms(store, "head.weight~2")) == [4]
        assert layers_of(store)["head.weight~2"].shape == (60, 24)


@pytest.mark.parametrize("added", [True, False], ids=["added", "exchanged"])
def test_a_new_parameter_of_the_same_name_and_shape_is_the_same_layer(added: bool, tmp_path: Path) -> None:
    """A head is initialized anew, and is given to the optimizer beside the old head or in its place."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=1e-2)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, [optimizer], 2, run.log)
        model.head = nn.Linear(24, 50, bias=False)
        if added:
            optimizer.add_param_group({"params": [model.head.weight]})
        else:
            optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, [optimizer], 2, run.log)
    assert (run.stored, run.failures) == (4, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert list(norms(store, "head.weight")) == [1, 2, 3, 4]


def test_layers_that_appear_change_no_bit_of_the_training(tmp_path: Path) -> None:
    """The same holds for a parameter without a gradient, and for a model that is frozen for a step."""

    def work(model: Model, watched: bool) -> None:
        optimizer = ROOT(ROOT.param_groups(model), lr=1e-2)
        model.up.weight.requires_grad_(False)
        run = root_dash.watch(model, optimizer, db=tmp_path / "runs.db") if watched else None
        for index in range(6):
            model.up.weight.requires_grad_(index >= 3)
            loss = step(model, [optimizer], index)
            if run is not None:
                run.log(loss=loss)
        if run is not None:
            run.close()
            assert (run.stored, run.failures) == (6, 0)

    models = Model(), Model()
    for model, watched in zip(models, (False, True), strict=True):
        work(model, watched)
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right)
