"""What a training meets sooner or later: locks, clocks, twins, resumed runs, numbers that are none, and odd names."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

import root_dash
from root_dash.records import STATISTICS, Run
from root_dash.store import Store
from tests.monitor.training import EVERY_STEP, Model, adamw, layers_of, muon, root, sgd, step, train
from tests.store.frames import make_frame, make_layers
from tests.store.recorders import impatient
from tests.waiting import until
from tests.zygote import Forked

LAYERS = make_layers(3)

# Holds the database's lock until it is told to let go.
HOG = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.heavy
def test_a_lock_held_for_longer_than_the_timeout_loses_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another process has the database: training goes on, and what waited is stored when it lets go."""
    path, model = tmp_path / "runs.db", Model()
    optimizers = root(model)
    with impatient(path, model, optimizers, 0.05, max_overhead=math.inf) as run:
        train(model, optimizers, 2, run.log)
        hog = Forked("-c", HOG, path, stdin=PIPE)
        assert hog.stdout is not None
        assert hog.stdout.readline() == "held\n"
        train(model, optimizers, 10, run.log)
        assert (run.active, run.lost) == (True, 0)
        assert run.pending >= 10
        # A try has failed: what is told of it is in the frame that it failed for.
        until(lambda: "recording waits" in capfd.readouterr().err, "a try to store that failed")
        hog.communicate("\n")
        train(model, optimizers, 2, run.log)
    assert (run.stored, run.lost, run.failures) == (14, 0, 0)
    with root_dash.open(path) as store:
        assert [frame.step for frame in store.frames(1)] == list(range(1, 15))
        assert "nothing could be stored for" in store.events(1)[0].text


def test_a_clock_that_goes_back_changes_no_order(tmp_path: Path) -> None:
    """Frames are in the order of their numbers, and numbers in that of their steps: the time is only told."""
    with Store.create(tmp_path / "runs.db") as store:
        recording = store.begin(Run("u", "run", 2e9), LAYERS)
        for seq in range(20):
            recording.append(make_frame(seq, seq + 1, LAYERS, np.random.default_rng(seq), time=2e9 - 1000.0 * seq))
        recording.end(1e9)
        assert [frame.seq for frame in store.frames(1)] == list(range(20))
        latest = store.latest(1)
        assert latest is not None
        assert (latest.step, latest.time) == (20, 2e9 - 19000.0)
        assert store.history(store.layers(1)[0].id, "grad_norm").steps.tolist() == list(range(1, 21))
        assert store.scalar(1, "loss").steps.tolist() == list(range(1, 21))


# Two of these record the same steps at the same time.
TWIN = """
import sys
from pathlib import Path
from tests.monitor.training import Model, root, train
from tests.store.recorders import impatient
model = Model(); optimizers = root(model)
# On a busy machine one may wait long for the other to make the file.
with impatient(Path(sys.argv[1]), model, optimizers, 300.0, max_overhead=1e9, name=sys.argv[2]) as run:
    train(model, optimizers, 15, run.log)
assert (run.stored, run.lost, run.failures) == (15, 0, 0)
"""


@pytest.mark.heavy
def test_processes_on_the_same_steps_record_side_by_side(tmp_path: Path) -> None:
    """Into one file, a run each: every frame of both is there, and their numbers are equal."""
    path = tmp_path / "runs.db"
    for twin in [Forked("-c", TWIN, path, name) for name in ("a", "b")]:
        _, err = twin.communicate()
        assert twin.returncode == 0, err
    with root_dash.open(path) as store:
        first, second = store.runs()
        assert {first.name, second.name} == {"a", "b"}
        for run in (first, second):
            assert [frame.step for frame in store.frames(run.id)] == list(range(1, 16))
        left, right = (store.history(store.layers(run.id)[1].id, "grad_norm").values for run in (first, second))
        np.testing.assert_array_equal(left, right)


def test_a_resumed_run_shows_its_latest_attempt_and_keeps_both(tmp_path: Path) -> None:
    """Steps that were taken twice, from a checkpoint: every verb gives the later ones, and no row is gone."""
    path, frames = tmp_path / "runs.db", {}
    for attempt, steps in enumerate((range(1, 11), range(6, 13))):
        with Store.create(path) as store:
            recording = store.begin(Run("u", "run", 1e9), LAYERS)
            for seq, number in enumerate(steps):
                frame = make_frame(seq, number, LAYERS, np.random.default_rng([attempt, number]))
                frames[number] = frame
                recording.append(replace(frame, scalars={"loss": 100.0 * attempt + number}))
            recording.close()
    with Store.open(path) as store:
        assert store.run(1).frames == 17
        layer = store.layers(1)[0]
        history = store.history(layer.id, "grad_norm")
        assert history.steps.tolist() == list(range(1, 13))
        np.testing.assert_array_equal(history.values, [frames[number].statistics[0, 0] for number in range(1, 13)])
        loss = store.scalar(1, "loss")
        assert loss.values.tolist() == [*range(1, 6), *range(106, 113)]
        for number in (5, 6, 12):
            np.testing.assert_array_equal(
                store.histogram(layer.id, number).counts, frames[number].histograms[0]["gradient"].counts
            )
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT count(*) FROM layer_statistics WHERE step = 8").fetchone()
    connection.close()
    assert rows == (2 * len(LAYERS),)


@pytest.mark.parametrize("build", [root, muon, adamw, sgd])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_recorded_everywhere(
    build: Callable[[torch.nn.Module], list[Optimizer]], poison: float, tmp_path: Path
) -> None:
    """In gradients, momenta, weights, the loss and what is logged: no failure, nothing lost, every verb answers."""
    model = Model()
    optimizers = build(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP, max_overhead=1e9) as run:
        train(model, optimizers, 1, run.log)
        model.up.weight.register_hook(lambda grad: grad * poison)
        train(model, optimizers, 2, run.log)  # the gradient and the momentum, then the weights and all that follows
        run.log(loss=torch.tensor(poison), plain=poison)
    assert (run.lost, run.failures) == (0, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        assert store.run(1).last_step == 3
        for layer in layers_of(store).values():
            assert store.statistics(layer.id, 3)
            assert store.histogram(layer.id, 3).counts.sum() <= layer.size
            store.quantiles(layer.id, 3)
            if layer.is_matrix:
                store.spectrum(layer.id, 3)
        sick = layers_of(store)["up.weight"]
        histogram = store.histogram(sick.id, 2)
        assert histogram.nan + histogram.inf + histogram.counts.sum() == sick.size
        assert histogram.nan + histogram.inf > 0
        for statistic in STATISTICS:
            if statistic.kind != "masks":
                assert store.grid(1, statistic.name).values.shape[1] == 3
        recorded = store.scalar(1, "plain").values
        assert math.isnan(recorded[-1]) if math.isnan(poison) else recorded[-1] == poison


NAMES = ["x" * 10_000, "\udcff\ud800", "nul\0byte", "🜁 日本 ünï", "a/b\\c'd\"e;--", "line\nbreak\ttab", " "]


def test_odd_names_are_kept_or_made_harmless(tmp_path: Path) -> None:
    """Of layers, scalars, the run and in its config: nothing stops the training, and all can be read again."""
    layers = torch.nn.ModuleDict({"plain": torch.nn.Linear(3, 3)})
    for index, name in enumerate(NAMES):
        layers[f"place{index}"] = torch.nn.Linear(2, 2, bias=False)
        # As a model may come to have them; `add_module` itself refuses dots alone.
        layers._modules[name.replace(".", "")] = layers._modules.pop(f"place{index}")
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    config = {name: name for name in NAMES} | {"nan": math.nan, "object": object(), "deep": [[[{}]]]}
    with root_dash.watch(
        layers, optimizer, db=tmp_path / "runs.db", name=NAMES[1], config=config, max_overhead=1e9
    ) as run:
        for _ in range(2):
            sum(parameter.square().sum() for parameter in layers.parameters()).backward()  # type: ignore[union-attr]
            optimizer.step()
            run.log(**{name: 1.0 for name in NAMES})
    assert (run.stored, run.lost, run.failures) == (2, 0, 0)
    with root_dash.open(tmp_path / "runs.db") as store:
        (recorded,) = store.runs()
        assert recorded.name == "\\udcff\\ud800"
        assert len(recorded.config) == len(config)
        names = set(store.scalar_names(recorded.id))
        assert {NAMES[0], NAMES[3], NAMES[4], NAMES[5], "nul\\x00byte", "\\udcff\\ud800"} <= names
        for name in names - {"grad_norm/all", *(name for name in names if name.endswith("/0"))}:
            assert store.scalar(recorded.id, name).values.tolist() == [1.0, 1.0]
        assert len(layers_of(store)) == 2 + len(NAMES)


def test_a_copy_that_fails_is_counted_and_hides_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As a device does that has failed before: the tensor cannot be brought here, the step's frame is lost and told."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", max_overhead=1e9) as run:
        for index in range(6):
            loss = step(model, optimizers, index)
            run.log(loss=torch.empty((), device="meta") if index == 2 else loss)
    assert (run.stored, run.lost, run.failures) == (5, 1, 1)
    assert "failed to log" in capfd.readouterr().err
    with root_dash.open(tmp_path / "runs.db") as store:
        assert [frame.step for frame in store.frames(1)] == [1, 2, 4, 5, 6]
        assert store.run(1).lost == 1
