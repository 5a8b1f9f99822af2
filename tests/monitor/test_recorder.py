"""The recorder: what it records is what happened, and the training does not notice."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate

import root_dash
from root_dash.monitor.layers import watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.sink import Sink
from root_dash.optim.observation import Observation
from root_dash.optim.root import ROOT
from root_dash.records import Run, histogram_edges, statistic_names
from root_dash.store.store import Store
from tests.monitor.training import (
    EVERY_STEP,
    MATRICES,
    Build,
    Model,
    adamw,
    layers_of,
    muon,
    plain_sgd,
    record,
    root,
    sgd,
    step,
    train,
)
from tests.waiting import LIMIT_SECONDS, until


class Witness:
    """Clones what ROOT shows, to compare with what was recorded of it."""

    def __init__(self, model: torch.nn.Module, optimizer: ROOT) -> None:
        self.names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.seen: dict[str, dict[str, torch.Tensor]] = {}
        optimizer.register_observer(self.observe)

    def observe(self, observation: Observation) -> None:
        """Keep float64 copies of the last step's tensors by layer."""
        for row, parameter in enumerate(observation.parameters):
            tensors = {
                name: getattr(observation, name)[row].clone()
                for name in ("gradient", "momentum", "threshold", "base", "update")
                if getattr(observation, name) is not None
            }
            self.seen[self.names[parameter]] = tensors | {"weight": parameter.detach().clone()}


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Witness]:
    """Three recorded steps of ROOT, and the tensors of the last."""
    model = Model()
    optimizers = root(model)
    assert isinstance(optimizers[0], ROOT)
    witness = Witness(model, optimizers[0])
    path = tmp_path_factory.mktemp("witnessed") / "runs.db"
    with root_dash.watch(model, optimizers, db=path, cadence=EVERY_STEP) as run:
        train(model, optimizers, 3, run.log)
    return root_dash.open(path), witness


@pytest.mark.parametrize("name", MATRICES)
def test_recorded_errors_equal_those_of_the_tensors(witnessed: tuple[Store, Witness], name: str) -> None:
    """Polar and orthogonality error, recomputed by SVD in float64 from the base and the update that were applied."""
    store, witness = witnessed
    recorded = store.statistics(layers_of(store)[name].id)
    base, update = (witness.seen[name][key].double().numpy() for key in ("base", "update"))
    u, s, v = np.linalg.svd(base, full_matrices=False)
    alive = s > max(base.shape) * np.finfo(np.float32).eps * s[0]
    polar = u[:, alive] @ v[alive]
    expected = np.linalg.norm(update - polar) / np.linalg.norm(polar)
    assert recorded["polar_error"] == pytest.approx(expected, rel=1e-3)
    short = update if update.shape[0] <= update.shape[1] else update.T
    expected = np.linalg.norm(short @ short.T - np.eye(len(short))) / np.sqrt(len(short))
    assert recorded["orthogonality_error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [*MATRICES, "embed.weight", "head.weight"])
def test_the_recorded_mask_is_where_the_momentum_exceeds_the_threshold(
    witnessed: tuple[Store, Witness], name: str
) -> None:
    """Masks agree entry for entry, in the layer's own orientation; AdamW's layers use the recorder's quantile."""
    store, witness = witnessed
    layer = layers_of(store)[name]
    mask, seen = store.mask(layer.id), witness.seen[name]
    magnitude = seen["momentum"].abs()
    epsilon = seen["threshold"] if "threshold" in seen else torch.quantile(magnitude, 0.9)
    np.testing.assert_array_equal(mask.dense(), (magnitude > epsilon).numpy())
    assert (mask.rows, mask.cols) == layer.shape
    assert mask.row_totals.sum() == mask.col_totals.sum() == mask.pooled.sum() == mask.dense().sum()
    assert store.statistics(layer.id)["outlier_fraction"] == pytest.approx(mask.dense().mean())


def test_recorded_histograms_count_every_entry(witnessed: tuple[Store, Witness]) -> None:
    """The counts are those of gradient and momentum, for every layer, vectors included."""
    store, witness = witnessed
    for name, layer in layers_of(store).items():
        for tensor in ("gradient", "momentum"):
            histogram = store.histogram(layer.id, tensor=tensor)
            entries = witness.seen[name][tensor].double().numpy().ravel()
            assert histogram.counts.sum() == layer.size == entries.size
            np.testing.assert_array_equal(histogram.edges, histogram_edges())
            occupied = np.flatnonzero(histogram.counts)
            assert histogram.edges[occupied[0]] <= entries.min() <= entries.max() <= histogram.edges[occupied[-1] + 1]


@pytest.mark.parametrize("name", MATRICES)
def test_recorded_spectra_and_norms_are_those_of_the_tensors(witnessed: tuple[Store, Witness], name: str) -> None:
    """Singular values of momentum, base and update; norms of all four tensors; the update-to-weight ratio."""
    store, witness = witnessed
    layer = layers_of(store)[name]
    spectrum, statistics, seen = store.spectrum(layer.id), store.statistics(layer.id), witness.seen[name]
    for key, values in (("momentum", spectrum.momentum), ("base", spectrum.base), ("update", spectrum.update)):
        expected = np.linalg.svd(seen[key].double().numpy(), compute_uv=False)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6 * expected[0])
    for key, stat in (("gradient", "grad_norm"), ("momentum", "momentum_norm"), ("update", "update_norm")):
        assert statistics[stat] == pytest.approx(seen[key].double().norm().item(), rel=1e-5)
    assert statistics["weight_norm"] == pytest.approx(seen["weight"].double().norm().item(), rel=1e-5)
    scale = 1e-2 * 0.2 * max(layer.shape) ** 0.5
    assert statistics["update_to_weight"] == pytest.approx(
        scale * statistics["update_norm"] / statistics["weight_norm"], rel=1e-5
    )


def test_every_matrix_of_root_has_finite_statistics_at_every_step(tmp_path: Path) -> None:
    """Every kind is recorded at the steps of its cadence."""
    cadence = Cadence(statistics=1, histograms=2, quantiles=3, spectra=4, masks=5)
    store = record(tmp_path / "runs.db", root, 12, cadence)
    for name in MATRICES:
        layer = layers_of(store)[name].id
        for statistic in statistic_names("statistics"):
            history = store.history(layer, statistic)
            assert history.steps.tolist() == list(range(1, 13))
            assert np.isfinite(history.values).all() == (statistic != "nonfinite_step"), statistic
        for kind, interval in (("histograms", 2), ("quantiles", 3), ("spectra", 4), ("masks", 5)):
            expected = [s for s in range(1, 13) if s == 1 or s % interval == 0]
            assert store.steps(layer, kind).tolist() == expected  # type: ignore[arg-type]
        for statistic in statistic_names("spectra"):
            assert np.isfinite(store.history(layer, statistic).values).all(), statistic


@pytest.mark.parametrize("build", [root, muon, adamw, sgd, plain_sgd])
def test_watching_does_not_change_a_bit_of_the_training(build: Build, tmp_path: Path) -> None:
    """Weights after fifty steps are bit-identical with and without the recorder, with every kind at every step."""
    alone, watched = Model(), Model()
    train(alone, build(alone), 50)
    optimizers = build(watched)
    path = tmp_path / "runs.db"
    with root_dash.watch(watched, optimizers, db=path, cadence=EVERY_STEP, max_overhead=math.inf) as run:
        train(watched, optimizers, 50, run.log)
    assert (run.stored, run.lost, run.failures) == (50, 0, 0)
    for (name, left), (_, right) in zip(alone.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def test_logged_numbers_belong_to_the_last_finished_step(tmp_path: Path) -> None:
    """Tensors, floats and integers, several calls a step, and a call before the first."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db") as run:
        run.log(start=1)
        for index in range(3):
            loss = step(model, optimizers, index)
            run.log(loss=loss, index=index)
            loss.zero_()  # what the user does to it afterwards is not recorded
            run.log(late=index * 10.0)
    store = root_dash.open(tmp_path / "runs.db")
    (recorded,) = store.runs()
    logged = {name for name in store.scalar_names(recorded.id) if "/" not in name}
    assert logged == {"start", "loss", "index", "late"}
    assert store.scalar(recorded.id, "start").steps.tolist() == [0]
    for name, values in (("index", [0, 1, 2]), ("late", [0, 10, 20])):
        history = store.scalar(recorded.id, name)
        assert (history.steps.tolist(), history.values.tolist()) == ([1, 2, 3], values)
    assert (store.scalar(recorded.id, "loss").values > 3).all()


def test_a_wrong_log_neither_raises_nor_costs_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is no number is left out and shown once; recording goes on however often it happens."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db") as run:
        for index in range(5):
            loss = step(model, optimizers, index)
            run.log(loss=loss, vector=torch.ones(3), text="no")  # type: ignore[arg-type]
    assert (run.stored, run.failures) == (5, 10)
    assert capfd.readouterr().err.count("takes a single number, got torch.float32 of shape (3,)") == 1


@pytest.mark.parametrize("value", [None, "no", [1.0, 2.0], 10**400, torch.tensor(1j)])
def test_a_wrong_log_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str], value: object) -> None:
    """What is shown of it says under which name it was logged, whatever it is."""
    model = Model()
    with root_dash.watch(model, root(model), db=tmp_path / "runs.db") as run:
        run.log(grad_scale=value)  # type: ignore[arg-type]
    assert run.failures == 1
    assert "ValueError: log(grad_scale=...) takes a single number, got " in capfd.readouterr().err


def test_a_loss_that_is_a_dtensor_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is logged if every process has all of it; a sum that is still to be made is not, and the frame is stored."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = Model()
        optimizers = sgd(model)
        with root_dash.watch(model, optimizers, db=tmp_path / "runs.db") as run:
            for index in range(4):
                loss = step(model, optimizers, index).detach()
                whole, part = (DTensor.from_local(loss, mesh, [place]) for place in (Replicate(), Partial()))
                run.log(loss=whole, part=part)
    finally:
        dist.destroy_process_group()
    assert (run.stored, run.lost, run.failures) == (4, 0, 4)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert store.scalar(1, "loss").values[-1] == pytest.approx(loss.item())
        assert "loss" in store.scalar_names(1)
        assert "part" not in store.scalar_names(1)
    assert "log(part=...) takes a number that is here" in capfd.readouterr().err


def test_a_gradient_of_nan_is_recorded_as_such(tmp_path: Path) -> None:
    """It is the very thing one looks for: counted, no failure, and no other layer's numbers suffer."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        model.square.weight.register_hook(lambda grad: grad * torch.nan)
        train(model, optimizers, 2, run.log)
    assert (run.failures, run.lost) == (0, 0)
    store = root_dash.open(tmp_path / "runs.db")
    layers = layers_of(store)
    sick, well = layers["square.weight"], layers["up.weight"]
    assert store.statistics(sick.id, 1)["grad_nan"] == sick.size
    assert store.histogram(sick.id, 1).nan == sick.size
    assert np.isnan(store.spectrum(sick.id, 1).momentum).all()
    for name in ("grad_norm", "grad_abs_max", "momentum_norm", "alignment", "outlier_fraction", "outlier_energy"):
        assert np.isnan(store.statistics(sick.id, 1)[name]), name  # rather than a healthy-looking 0
    assert store.steps(sick.id, "masks").size == 0
    assert np.isfinite(store.spectrum(well.id, 1).momentum).all()
    assert np.isfinite(store.statistics(well.id, 1)["polar_error"])


def test_a_forgotten_recorder_lets_go_of_the_model(tmp_path: Path) -> None:
    """A notebook's cell that is run again must not keep the model of the time before; what it recorded is ended."""

    def forget() -> weakref.ref[torch.Tensor]:
        model = Model()
        optimizers = root(model)
        run = root_dash.watch(model, optimizers, db=tmp_path / "runs.db")
        train(model, optimizers, 2, run.log)
        return weakref.ref(model.square.weight)

    def let_go() -> bool:
        gc.collect()  # does nothing while another thread is at it
        return weight() is None

    others = set(threading.enumerate())
    weight = forget()
    (writer,) = (each for each in set(threading.enumerate()) - others if each.name == "root-dash-writer")
    until(let_go, "the model's end")
    writer.join()
    (recorded,) = root_dash.open(tmp_path / "runs.db").runs()
    assert (recorded.frames, recorded.ended_at is not None) == (2, True)


def test_the_environment_names_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`watch` and `open` obey ROOT_DASH_DB as the commands do, or one would train into one file and look at another."""
    monkeypatch.setenv("ROOT_DASH_DB", str(tmp_path / "named.db"))
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers) as run:
        train(model, optimizers, 2, run.log)
    assert root_dash.open().path == tmp_path / "named.db"


def test_include_and_exclude_choose_layers(tmp_path: Path) -> None:
    """Globs over names choose layers."""
    model = Model()
    optimizers = root(model)
    watched = root_dash.watch(model, optimizers, db=tmp_path / "a.db", include="*.weight", exclude=["norm*", "he*"])
    with watched as run:
        train(model, optimizers, 2, run.log)
    assert set(layers_of(root_dash.open(tmp_path / "a.db"))) == {
        "embed.weight", "square.weight", "up.weight", "down.weight",
    }  # fmt: skip


def test_bad_arguments_are_refused_by_name(tmp_path: Path) -> None:
    """Before training starts, with the argument, the value and the rule."""
    model = Model()
    optimizers = root(model)
    with pytest.raises(ValueError, match=r"include=\['nothing'\]"):
        root_dash.watch(model, optimizers, db=tmp_path / "a.db", include=["nothing"])
    for argument, value in (("cadence", 10), ("name", 123), ("config", 5), ("outlier_quantile", "0.9")):
        with pytest.raises(TypeError, match=f"{argument} must be .*, got {value!r}"):
            root_dash.watch(model, optimizers, **{"db": tmp_path / "a.db", argument: value})  # type: ignore[arg-type]
    nothing: Any
    for nothing in (None, [], "sgd"):
        with pytest.raises(TypeError, match="optimizer must be an optimizer of torch"):
            root_dash.watch(model, nothing, db=tmp_path / "a.db")
    with pytest.raises(ValueError, match="db must be the path of a SQLite file or a URL .*, got one of mysql"):
        root_dash.watch(model, optimizers, db="mysql://a/b")
    with pytest.raises(ValueError, match=r"outlier_quantile must be in \(0, 1\], got 90"):
        root_dash.watch(model, optimizers, db=tmp_path / "a.db", outlier_quantile=90)
    with pytest.raises(ValueError, match=r"cadence.spectra must be 0 \(never\) or a number of steps, got -1"):
        Cadence(spectra=-1)
    with pytest.raises(TypeError, match=r"cadence.masks must be a whole number of steps, got 0.5"):
        Cadence(masks=0.5)  # type: ignore[arg-type]


def test_a_closed_recorder_lets_go_of_the_optimizer(tmp_path: Path) -> None:
    """Closing twice is closing once; steps after it are not recorded."""
    model = Model()
    optimizers = root(model)
    run = root_dash.watch(model, optimizers, db=tmp_path / "runs.db")
    train(model, optimizers, 2, run.log)
    run.close()
    run.close()
    train(model, optimizers, 2, run.log)
    assert (run.stored, run.pending) == (2, 0)
    (recorded,) = root_dash.open(tmp_path / "runs.db").runs()
    assert (recorded.frames, recorded.last_step) == (2, 2)
    assert recorded.ended_at is not None


def test_importing_root_dash_imports_no_torch() -> None:
    """A dashboard host needs none."""
    code = "import sys, root_dash, root_dash.records, root_dash.store.store; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=LIMIT_SECONDS)


@pytest.mark.parametrize("build", [root, sgd, muon])
def test_a_step_before_the_run_has_begun_is_not_of_the_run(build: Build, tmp_path: Path) -> None:
    """Another thread may step while a database is opened: such a step is neither stored, nor counted as stored."""
    model = Model()
    optimizers = build(model)
    layers, positions = watched_layers(model, optimizers, "*", ())

    def begin() -> Sink:
        train(model, optimizers, 2)
        return Store.create(tmp_path / "run.db").begin(Run("test", "test", 1.7e9), layers)

    with Recorder(optimizers, positions, begin, cadence=EVERY_STEP, outlier_quantile=0.9) as run:
        train(model, optimizers, 3)
    assert (run.step, run.stored, run.lost, run.failures) == (3, 3, 0, 0)
    with root_dash.open(tmp_path / "run.db") as store:
        assert [(notice.seq, notice.step) for notice in store.frames(1)] == [(0, 1), (1, 2), (2, 3)]
