"""Optimizers other than ROOT: what their hooks show, in whatever order and number they step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

import root_dash
from tests.monitor.training import (
    EVERY_STEP,
    MATRICES,
    Build,
    Model,
    OddOptimizer,
    adamw,
    layers_of,
    muon,
    record,
    sgd,
    step,
    train,
)


@pytest.mark.parametrize("build", [muon, adamw, sgd])
def test_other_optimizers_show_gradients_and_momentum(build: Build, tmp_path: Path) -> None:
    """Through their step hooks; what depends on the update is not recorded, rather than wrong."""
    store = record(tmp_path / "runs.db", build, 4)
    for name, layer in layers_of(store).items():
        statistics = store.statistics(layer.id)
        for statistic in ("grad_norm", "grad_kurtosis", "momentum_norm", "alignment", "threshold", "outlier_energy"):
            assert np.isfinite(statistics[statistic]), (name, statistic)
        assert np.isnan(statistics.get("update_norm", np.nan))
        if layer.is_matrix:
            assert store.spectrum(layer.id).update.size == 0
            assert store.mask(layer.id).dense().shape == layer.shape


def test_the_momentum_of_another_optimizer_is_its_state_after_the_step(tmp_path: Path) -> None:
    """The norm recorded at the last step is that of the momentum buffer the optimizer is left with."""
    model = Model()
    optimizers = sgd(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 3, run.log)
    store = root_dash.open(tmp_path / "runs.db")
    expected = optimizers[0].state[model.square.weight]["momentum_buffer"].double().norm().item()
    layer = layers_of(store)["square.weight"].id
    assert store.statistics(layer)["momentum_norm"] == pytest.approx(expected, rel=1e-5)


def test_a_failure_on_the_training_thread_never_reaches_the_loop(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is shown once; after three the recorder turns itself off and the training ends as it would have."""
    alone, watched = Model(), Model()
    train(alone, [OddOptimizer(alone.parameters(), lr=1e-2)], 10)
    optimizers: list[Optimizer] = [OddOptimizer(watched.parameters(), lr=1e-2)]
    with root_dash.watch(watched, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(watched, optimizers, 10, run.log)
    assert (run.failures, run.active) == (3, False)
    assert capfd.readouterr().err.count("Traceback") == 1
    assert torch.equal(alone.square.weight, watched.square.weight)


def test_a_step_is_over_when_an_optimizer_steps_again(tmp_path: Path) -> None:
    """Two optimizers in an uneven rhythm, as a GAN has them: no step is recorded twice, no measurement piles up."""
    model = Model()
    named = dict(model.named_parameters())
    often = SGD([named[name] for name in MATRICES], lr=1e-2)
    seldom = AdamW([p for name, p in named.items() if name not in MATRICES], lr=1e-3)
    with root_dash.watch(model, [seldom, often], db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        for index in range(9):
            run.log(loss=step(model, [often] if index % 3 else [often, seldom], index))
    assert (run.step, run.stored, run.lost, run.failures) == (9, 9, 0, 0)
    store, layers = root_dash.open(tmp_path / "runs.db"), layers_of(root_dash.open(tmp_path / "runs.db"))
    assert store.history(layers["up.weight"].id, "grad_norm").steps.tolist() == list(range(1, 10))
    assert store.history(layers["head.weight"].id, "grad_norm").steps.tolist() == [1, 4, 7]


class ChildOptimizer(SGD):
    """An optimizer whose step calls its parent's, which runs the same hooks once more."""

    def step(self, closure: Any = None) -> Any:
        """As SGD."""
        return super().step(closure)


def test_a_step_within_a_step_is_one_step(tmp_path: Path) -> None:
    """Hooks that run twice, around the child's step and around its parent's, see it once."""
    model = Model()
    sgd(model)  # torch wraps a class's step when the first of the class is made
    optimizers: list[Optimizer] = [ChildOptimizer(model.parameters(), lr=1e-2, momentum=0.9)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 4, run.log)
    assert (run.step, run.stored, run.failures) == (4, 4, 0)
    store = root_dash.open(tmp_path / "runs.db")
    for layer in layers_of(store).values():
        history = store.history(layer.id, "momentum_norm")
        assert history.steps.tolist() == [1, 2, 3, 4]
        assert np.isfinite(history.values).all()


def test_a_layer_in_two_optimizers_is_recorded_once_a_step(tmp_path: Path) -> None:
    """As its last optimizer saw it."""
    model = Model()
    optimizers: list[Optimizer] = [SGD(model.parameters(), lr=1e-3), AdamW(model.parameters(), lr=1e-3)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 3, run.log)
    assert (run.stored, run.failures) == (3, 0)


def test_the_gradient_of_a_closure_is_that_of_its_own_step(tmp_path: Path) -> None:
    """The optimizer calls the closure after its pre-hooks: the gradient there is still that of the step before."""
    weight = torch.nn.Parameter(torch.ones(3, 3))
    model = torch.nn.ParameterDict({"weight": weight})
    optimizer = SGD(model.parameters(), lr=1e-6)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db") as run:
        for index in range(4):

            def closure(scale: float = 10.0**index) -> float:
                optimizer.zero_grad()
                loss = scale * weight.sum()
                loss.backward()
                return float(loss.detach())

            run.log(loss=optimizer.step(closure))
    store = root_dash.open(tmp_path / "runs.db")
    history = store.history(layers_of(store)["weight"].id, "grad_norm")
    np.testing.assert_allclose(history.values, 3.0 * 10.0 ** np.arange(4), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_recorded_as_well(tmp_path: Path, dtype: torch.dtype) -> None:
    """A whole model in double or half precision; a complex parameter beside it is no layer."""
    model = Model().to(dtype)
    real = list(model.parameters())
    phase = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    model.register_parameter("phase", phase)
    optimizers: list[Optimizer] = [AdamW(real, lr=1e-3), SGD([phase], lr=1e-3)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 3, run.log)
    assert (run.stored, run.failures, run.lost) == (3, 0, 0)
    store = root_dash.open(tmp_path / "runs.db")
    layers = layers_of(store)
    assert "phase" not in layers
    expected = optimizers[0].state[model.square.weight]["exp_avg"].double().norm().item()
    assert store.statistics(layers["square.weight"].id)["momentum_norm"] == pytest.approx(expected, rel=1e-4)
