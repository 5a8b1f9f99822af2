"""The share of weights that a step changed, recorded of real optimizers, against copies of all weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import root_dash
from root_dash.optim.root import ROOT
from tests.monitor.training import EVERY_STEP, Model, adamw, layers_of, muon, plain_sgd, root, sgd, step

Build = Callable[[nn.Module], list[Optimizer]]


def bits(tensor: Tensor) -> Tensor:
    """The entries as integers."""
    return tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).clone()


def recorded(path: Path, model: nn.Module, optimizers: list[Optimizer], train: Callable[[int], object]) -> None:
    """Train three steps and compare each layer's recorded share with all of the weights."""
    expected: dict[str, list[float]] = {name: [] for name, _ in model.named_parameters()}
    watched = root_dash.watch(model, optimizers, db=path, name="test", cadence=EVERY_STEP, max_overhead=math.inf)
    with watched as run:
        for index in range(3):
            before = {name: bits(p) for name, p in model.named_parameters()}
            train(index)
            for name, p in model.named_parameters():
                expected[name].append((before[name] != bits(p)).double().mean().item())
    assert (run.lost, run.failures) == (0, 0)
    with root_dash.open(path) as store:
        found = {name: store.history(layer.id, "changed_share").values for name, layer in layers_of(store).items()}
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("build", [root, muon, adamw, sgd, plain_sgd])
def test_each_optimizer_has_its_share(tmp_path: Path, build: Build) -> None:
    """In the middle of ROOT's step nothing is written yet, and other optimizers are seen after their step."""
    model = Model()
    optimizers = build(model)
    recorded(tmp_path / "runs.db", model, optimizers, lambda index: step(model, optimizers, index))


@pytest.mark.parametrize("build", [root, adamw, sgd])
def test_bfloat16_swallows_small_updates(tmp_path: Path, build: Build) -> None:
    """Most entries are far larger than a small learning rate moves them: the share says how many are swallowed."""
    model = Model().bfloat16()
    optimizers = build(model)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
    path = tmp_path / "runs.db"
    recorded(path, model, optimizers, lambda index: step(model, optimizers, index))
    with root_dash.open(path) as store:
        share = store.history(layers_of(store)["up.weight"].id, "changed_share").values[-1]
    assert 0 < share < 0.9


def test_a_closure_makes_no_difference(tmp_path: Path) -> None:
    """The step makes the gradients itself: the weights are sampled before."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=1e-3)

    def closure() -> float:
        model.zero_grad()
        loss = model(torch.arange(12).view(3, 4)).square().mean()
        loss.backward()
        return float(loss.item())

    recorded(tmp_path / "runs.db", model, [optimizer], lambda index: optimizer.step(closure))


def test_each_matrix_of_a_fused_projection_has_its_own_share(tmp_path: Path) -> None:
    """Its rows, and no others: the weights of one block do not move."""
    model = nn.Linear(16, 24, bias=False)
    optimizer = ROOT(model.parameters(), split_sizes=(12, 4, 8), lr=1e-2, weight_decay=0.0)
    path = tmp_path / "runs.db"
    with root_dash.watch(model, optimizer, db=path, name="test", cadence=EVERY_STEP, max_overhead=math.inf) as run:
        model(torch.randn(5, 16)).square().mean().backward()
        assert model.weight.grad is not None
        model.weight.grad[12:16] = 0.0
        optimizer.step()
    assert run.failures == 0
    with root_dash.open(path) as store:
        shares = [float(store.history(layer.id, "changed_share").values[0]) for layer in layers_of(store).values()]
    assert shares == [1.0, 0.0, 1.0]


def test_a_layer_without_a_gradient_has_no_share(tmp_path: Path) -> None:
    """The layer is not stepped, and nothing is recorded of it at that step."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = AdamW(model.parameters())
    path = tmp_path / "runs.db"
    with root_dash.watch(model, optimizer, db=path, name="test", cadence=EVERY_STEP, max_overhead=math.inf):
        for parts in (model, model[0]):
            optimizer.zero_grad()
            parts(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
    with root_dash.open(path) as store:
        steps = [store.history(layer.id, "changed_share").steps.tolist() for layer in layers_of(store).values()]
    assert steps == [[1, 2], [1]]
