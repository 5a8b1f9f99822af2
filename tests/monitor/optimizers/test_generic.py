"""Optimizers other than ROOT: what their step hooks show, in any order and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW, Muon, Optimizer

import root_dash
from root_dash import ROOT
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.quantities.quantity import MeasureLimits
from tests.monitor.training import (
    EVERY_STEP,
    MATRICES,
    Build,
    Model,
    OddOptimizer,
    adamw,
    layers_of,
    muon,
    plain_sgd,
    record,
    sgd,
    step,
    train,
    watch_within,
)


def _root_at(lr: float | torch.Tensor) -> Build:
    return lambda model: [ROOT(ROOT.param_groups(model), lr=lr)]


def _adamw_at(lr: float | torch.Tensor) -> Build:
    return lambda model: [AdamW(model.parameters(), lr=lr)]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("at", [_root_at, _adamw_at])
def test_a_learning_rate_in_a_tensor_is_recorded_as_its_number(
    at: Callable[[float | torch.Tensor], Build], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """A tensor of one number has one of two shapes; both are read, under ROOT and under another optimizer."""
    plain = record(tmp_path / "plain.db", at(0.01), 2)
    held = record(tmp_path / "tensor.db", at(torch.full(shape, 0.01)), 2)
    for layer in plain.layers(1):
        ours, theirs = (store.history(layer.id, "update_to_weight").values for store in (held, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("build", [muon, adamw, sgd])
def test_other_optimizers_show_gradients_and_momentum(build: Build, tmp_path: Path) -> None:
    """The step hooks show them; the update is the movement of the weights."""
    store = record(tmp_path / "runs.db", build, 4)
    for name, layer in layers_of(store).items():
        statistics = store.statistics(layer.id)
        for statistic in ("grad_norm", "grad_kurtosis", "momentum_norm", "alignment", "threshold", "outlier_energy"):
            assert np.isfinite(statistics[statistic]), (name, statistic)
        assert statistics["update_norm"] > 0
        if layer.is_matrix:
            spectrum = store.spectrum(layer.id)
            assert np.linalg.norm(spectrum.update) == pytest.approx(statistics["update_norm"], rel=1e-3)
            assert store.mask(layer.id).dense().shape == layer.shape
            assert np.isfinite(statistics["orthogonality_error"]) == (layer.algorithm == "muon")
            assert np.isnan(statistics["polar_error"])  # nobody clips and orthogonalizes but ROOT


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


class Signs(Optimizer):
    """An optimizer that nobody knows: it moves by signs, keeps nothing, and names its learning rate as it likes."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        super().__init__(params, {"size": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move against the sign of the gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["size"] * parameter.grad.sign())


def moved(
    build: Build, path: Path, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, dict[str, float]], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return the statistics of the last of three steps by layer, and the weights before and after that step."""
    model = Model().to(dtype)
    optimizers = build(model)
    with root_dash.watch(model, optimizers, db=path, cadence=EVERY_STEP) as run:
        train(model, optimizers, 2, run.log)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        run.log(loss=step(model, optimizers, 2))
    store = root_dash.open(path)
    statistics = {name: store.statistics(layer.id) for name, layer in layers_of(store).items()}
    return statistics, {name: (before[name], parameter.detach()) for name, parameter in model.named_parameters()}


def signs(model: torch.nn.Module) -> list[Optimizer]:
    """Return signs for all parameters."""
    return [Signs(model.parameters())]


def unsaid(model: torch.nn.Module) -> list[Optimizer]:
    """Return an optimizer whose learning rate is None, as that of Transformers' Adafactor is if it finds its own."""
    (optimizer,) = signs(model)
    optimizer.param_groups[0]["lr"] = None
    return [optimizer]


def decaying(model: torch.nn.Module) -> list[Optimizer]:
    """AdamW with a learning rate that is a tensor, as a compiled step wants it."""
    return [AdamW(model.parameters(), lr=torch.tensor(1e-3), weight_decay=0.5, foreach=False)]


SINGLE, DOUBLE, HALF = torch.float32, torch.float64, torch.bfloat16


@pytest.mark.parametrize(
    ("build", "lr", "dtype"),
    [(sgd, 1e-2, SINGLE), (sgd, 1e-2, DOUBLE), (adamw, 1e-3, SINGLE), (adamw, 1e-3, HALF), (signs, 1.0, SINGLE)]
    + [(unsaid, 1.0, SINGLE), (decaying, 1e-3, SINGLE), (decaying, 1e-3, HALF)],
)
def test_the_update_is_what_moved_the_weights(build: Build, lr: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """The movement is divided by the learning rate, if there is one; weight decay is included."""
    statistics, weights = moved(build, tmp_path / "runs.db", dtype)
    for name, (before, after) in weights.items():
        movement = (before.double() - after.double()).norm().item()
        assert statistics[name]["update_norm"] == pytest.approx(movement / lr, rel=1e-3), name
        assert statistics[name]["update_to_weight"] == pytest.approx(movement / before.double().norm().item(), rel=1e-3)


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_shows_the_matrix_that_it_orthogonalized(adjust: str | None, tmp_path: Path) -> None:
    """Its decay and its scaling of the learning rate taken out, and its momentum Nesterov-corrected.

    The weights are moved by that matrix alone: what is recorded is compared with what torch's own step computes of the
    same momentum.
    """
    model = Model()
    matrices = [parameter for name, parameter in model.named_parameters() if name in MATRICES]
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust, "momentum": 0.8}
    muon = Muon(matrices, **options)
    with root_dash.watch(model, muon, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, [muon], 2, run.log)
        buffers = {p: muon.state[p]["momentum_buffer"].clone() for p in matrices}
        gradients: dict[torch.Tensor, torch.Tensor] = {}
        handle = muon.register_step_pre_hook(lambda *_: gradients.update({p: p.grad.clone() for p in matrices}))  # type: ignore[union-attr]
        run.log(loss=step(model, [muon], 2))
        handle.remove()
    store = root_dash.open(tmp_path / "runs.db")
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in matrices:
        layer = layers_of(store)[names[parameter]]
        # Of a weight of zero the step without decay leaves the orthogonalized matrix alone, at a learning rate of 1.
        twin = torch.nn.Parameter(torch.zeros_like(parameter))
        twin.grad = gradients[parameter]
        alone = Muon([twin], **options | {"lr": 1.0, "weight_decay": 0.0, "adjust_lr_fn": adjust})
        alone.state[twin]["momentum_buffer"] = buffers[parameter].clone()
        alone.step()
        momentum = gradients[parameter].lerp(alone.state[twin]["momentum_buffer"], 0.8)
        rows, cols = layer.shape
        scale = 0.2 * max(rows, cols) ** 0.5 if adjust == "match_rms_adamw" else max(1.0, rows / cols) ** 0.5
        update = -twin.detach().double() / scale
        statistics = store.statistics(layer.id)
        assert statistics["update_norm"] == pytest.approx(update.norm().item(), rel=1e-3)
        assert statistics["momentum_norm"] == pytest.approx(momentum.double().norm().item(), rel=1e-4)
        short = update if rows <= cols else update.T
        error = (short @ short.T - torch.eye(len(short))).norm().item() / len(short) ** 0.5
        assert statistics["orthogonality_error"] == pytest.approx(error, rel=1e-2)


def test_a_learning_rate_of_zero_moves_nothing(tmp_path: Path) -> None:
    """At the first step of a warm-up both statistics of the update are 0, and not undefined."""
    model = Model()
    optimizers: list[Optimizer] = [SGD(model.parameters(), lr=0.0, momentum=0.9)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 2, run.log)
    store = root_dash.open(tmp_path / "runs.db")
    for layer in layers_of(store).values():
        statistics = store.statistics(layer.id)
        assert statistics["update_norm"] == 0.0
        assert statistics["update_to_weight"] == 0.0 or statistics["weight_norm"] == 0.0


def test_large_models_show_their_updates_with_the_spectra(tmp_path: Path) -> None:
    """If copies of all weights cost too much memory, layers take turns; a layer that does not fit has no update."""
    limits = MeasureLimits(copied_bytes=4 * 24 * 40)
    store = record(tmp_path / "runs.db", plain_sgd, 9, Cadence(statistics=1, spectra=2), limits)
    shown = {}
    for name, layer in layers_of(store).items():
        history = store.history(layer.id, "update_norm")
        assert history.steps.tolist() == list(range(1, 10))
        shown[name] = history.steps[np.isfinite(history.values)].tolist()
    assert shown == {
        "square.weight": [1, 8],
        "up.weight": [2],
        **dict.fromkeys(("up.bias", "norm.weight", "norm.bias"), [4]),
        "down.weight": [6],
        **dict.fromkeys(("embed.weight", "head.weight"), []),
    }


@pytest.mark.parametrize("build", [adamw, sgd, muon])
def test_gradients_of_large_models_are_read_after_the_step(build: Build, tmp_path: Path) -> None:
    """If a copy cost too much memory: an optimizer that does not write into gradients leaves the same bits."""
    copied = record(tmp_path / "copied.db", build, 3)
    read = record(tmp_path / "read.db", build, 3, limits=MeasureLimits(copied_bytes=0))
    for name, layer in layers_of(copied).items():
        for statistic in ("grad_norm", "grad_kurtosis", "momentum_norm", "weight_norm", "update_norm"):
            expected = copied.history(layer.id, statistic).values
            history = read.history(layers_of(read)[name].id, statistic).values
            assert np.isfinite(expected).all()
            np.testing.assert_equal(history, expected if statistic != "update_norm" else np.full(3, np.nan))


@pytest.mark.parametrize("build", [AdamW, SGD])
def test_gradients_read_after_a_fused_step_are_unscaled(build: Callable[..., Optimizer], tmp_path: Path) -> None:
    """The step itself has undone the scaler's scale in them, unless it was skipped for an infinity."""
    norms = []
    for limit in (2**30, 0):
        model = Model()
        optimizer = build(model.parameters(), lr=1e-3, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        with watch_within(model, [optimizer], tmp_path / f"{limit}.db", MeasureLimits(copied_bytes=limit)) as run:
            for index in range(4):
                tokens = torch.randint(50, (16, 8), generator=torch.Generator().manual_seed(index))
                scaler.scale(model(tokens).square().mean()).backward()
                if index == 1:
                    assert model.down.weight.grad is not None
                    model.down.weight.grad[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
                model.zero_grad()
        assert (run.step, run.failures) == (4, 0)
        with root_dash.open(tmp_path / f"{limit}.db") as store:
            norms.append(store.history(layers_of(store)["up.weight"].id, "grad_norm").values)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-6)
    assert 0 < norms[0].max() < 10 * norms[0].min()


def test_the_gradient_is_that_before_the_step(tmp_path: Path) -> None:
    """Some optimizers write into it, and some training loops clear it within the step."""
    model = Model()
    named = dict(model.named_parameters())
    (optimizer,) = sgd(model)
    expected: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: expected.append(named["up.weight"].grad.double().norm().item()))  # type: ignore[union-attr]
    optimizer.register_step_post_hook(lambda *_: model.zero_grad())
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, [optimizer], 3, run.log)
    store = root_dash.open(tmp_path / "runs.db")
    recorded = store.history(layers_of(store)["up.weight"].id, "grad_norm").values
    np.testing.assert_allclose(recorded, expected, rtol=1e-5)


def test_a_failure_on_the_training_thread_never_reaches_the_loop(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The failure is shown once; after three the recorder turns itself off, and the training ends as without it."""
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
        """Step as SGD does."""
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
    """The record is that of the optimizer that stepped last."""
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


def test_what_has_no_gradient_has_no_update_in_half_precision(tmp_path: Path) -> None:
    """Rows that no token named stand still under ROOT's AdamW, and the others' update is what moved them."""
    model = torch.nn.Embedding(6, 4, dtype=torch.float16)
    before = model.weight.detach().double()
    optimizer = ROOT([{"params": [model.weight], "algorithm": "adamw"}], lr=0.5, weight_decay=0.0)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db"):
        model(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
    store = root_dash.open(tmp_path / "runs.db")
    moved = (before - model.weight.detach().double()).norm().item() / 0.5
    assert store.statistics(layers_of(store)["weight"].id)["update_norm"] == pytest.approx(moved, rel=1e-2)
