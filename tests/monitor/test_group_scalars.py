"""Learning rates, weight decays and momenta of parameter groups, and the norm of all gradients, as series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

import root_dash
from root_dash.monitor.group_scalars import group_scalars
from root_dash.monitor.optimizers.registry import adapter_for
from root_dash.optim.root import ROOT
from root_dash.store.store import Store
from tests.monitor.training import EVERY_STEP, Model, muon, step


def watched(path: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> root_dash.Recorder:
    return root_dash.watch(model, optimizers, db=path, name="test", cadence=EVERY_STEP, max_overhead=math.inf)


def series(store: Store, *names: str) -> list[list[float]]:
    return [store.scalar(1, name).values.tolist() for name in names]


def test_a_schedule_is_recorded_as_it_was_at_each_step(tmp_path: Path) -> None:
    """The schedule goes on after the step: the values are those with which the optimizer stepped."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=9)
    expected: list[tuple[float, float]] = []
    with watched(tmp_path / "runs.db", model, [optimizer]) as run:
        for index in range(8):
            group = optimizer.param_groups[0]
            expected.append((group["lr"], group["momentum"]))
            loss = step(model, [optimizer], index)
            schedule.step()
            run.log(loss=loss)
    with root_dash.open(tmp_path / "runs.db") as store:
        rates, momenta, decays = series(store, "lr/0", "momentum/0", "weight_decay/0")
    assert list(zip(rates, momenta, strict=True)) == expected
    assert decays == [0.01] * 8


def test_groups_of_several_optimizers_are_numbered_in_turn(tmp_path: Path) -> None:
    """Muon's group is the first, AdamW's the second; the first of AdamW's averages is its momentum."""
    model = Model()
    optimizers = muon(model)
    with watched(tmp_path / "runs.db", model, optimizers) as run:
        step(model, optimizers, 0)
    assert run.failures == 0
    with root_dash.open(tmp_path / "runs.db") as store:
        assert series(store, "lr/0", "lr/1", "momentum/0", "momentum/1") == [[1e-2], [1e-3], [0.95], [0.9]]


def test_the_groups_of_root_have_the_momentum_that_they_use(tmp_path: Path) -> None:
    """Each of ROOT's groups has all options; only one of two momenta is used."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), momentum=0.8, betas=(0.7, 0.99))
    with watched(tmp_path / "runs.db", model, [optimizer]):
        step(model, [optimizer], 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        found = [store.scalar(1, f"momentum/{n}").values.item() for n in range(len(optimizer.param_groups))]
    assert found == [0.8 if group["algorithm"] == "root" else 0.7 for group in optimizer.param_groups]


def test_a_learning_rate_in_a_tensor_is_copied(tmp_path: Path) -> None:
    """The schedule writes into the tensor; what is recorded is what was there."""
    model = Model()
    rate = torch.tensor(0.5)
    optimizer = AdamW(model.parameters(), lr=rate, fused=True)
    with watched(tmp_path / "runs.db", model, [optimizer]) as run:
        for index in range(3):
            step(model, [optimizer], index)
            rate.mul_(0.5)
    assert run.failures == 0
    with root_dash.open(tmp_path / "runs.db") as store:
        assert series(store, "lr/0") == [[0.5, 0.25, 0.125]]


def test_what_the_user_logs_under_the_same_name_stays(tmp_path: Path) -> None:
    """The user's `lr/0` and `grad_norm/all` are recorded, and ours are not."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watched(tmp_path / "runs.db", model, [optimizer]) as run:
        step(model, [optimizer], 0)
        run.log(lr=3.0, **{"lr/0": 4.0, "grad_norm/all": 5.0})
    with root_dash.open(tmp_path / "runs.db") as store:
        assert series(store, "lr", "lr/0", "grad_norm/all") == [[3.0], [4.0], [5.0]]


def test_options_that_are_no_numbers_are_left_out() -> None:
    """An optimizer may have no learning rate, or one for each parameter."""
    model = nn.Linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0] |= {"weight_decay": "none", "momentum": torch.zeros(3)}
    assert group_scalars(adapter_for(optimizer), 2) == {"lr/2": 0.1}


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_the_norm_of_all_gradients_is_that_of_clip_grad_norm(tmp_path: Path, broken: float | None) -> None:
    """With NaN or infinity if a gradient has one, although the layers' norms leave these out."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=1e-3)
    expected: list[float] = []

    def norm(*_: object) -> None:
        weight = model.up.weight.grad
        assert weight is not None
        if broken is not None:
            weight[1, 1] = broken
        grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
        expected.append(torch.nn.utils.get_total_norm(grads).item())

    optimizer.register_step_pre_hook(norm)
    with watched(tmp_path / "runs.db", model, [optimizer]):
        step(model, [optimizer], 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        np.testing.assert_allclose(store.scalar(1, "grad_norm/all").values, expected, rtol=1e-6)


def test_the_scaled_learning_rate_of_each_layer_has_the_factor_of_its_shape(tmp_path: Path) -> None:
    """0.2 √max(m, n) under ROOT, whose update times this rate is what moves the weights."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), lr=1e-2)
    with watched(tmp_path / "runs.db", model, [optimizer]):
        step(model, [optimizer], 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        for layer in store.layers(1):
            factor = 0.2 * max(layer.shape) ** 0.5 if layer.algorithm == "root" else 1.0
            assert store.history(layer.id, "scaled_lr").values == pytest.approx([1e-2 * factor], rel=1e-6)
