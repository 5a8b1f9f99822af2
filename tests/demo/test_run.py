"""The demo command: it trains on real text with every optimizer, and writes a complete recording."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import root_dash
from root_dash.demo import run as demo_run
from root_dash.demo.model import GPT, Shape
from root_dash.demo.text import standard_library
from root_dash.demo.train import PRESETS, OptimizerName, build_optimizers, schedule, train
from root_dash.exceptions import RootDashError
from root_dash.records import statistic_names
from tests.zygote import run

MINI = replace(PRESETS["tiny"], shape=Shape(width=32, depth=1, heads=2, context=32), batch=8, validate_every=20)


@pytest.mark.parametrize("name", ["root", "muon", "adamw"])
def test_the_loss_falls_under_every_optimizer(name: OptimizerName) -> None:
    """In forty steps a small version of the tiny preset learns at least the frequencies of bytes."""
    torch.manual_seed(0)
    model = GPT(MINI.shape)
    states = list(
        train(
            model,
            build_optimizers(model, name, MINI),
            standard_library(),
            MINI,
            40,
            lambda **_: None,
            torch.device("cpu"),
        )
    )
    assert states[0].loss == pytest.approx(np.log(256), rel=0.05)
    assert states[-1].loss < 3.7
    assert [state.step for state in states if state.validation_loss is not None] == [20, 40]


def test_the_learning_rate_warms_up_and_decays() -> None:
    """The factor rises from a tenth to 1 and falls to a twentieth."""
    factors = [schedule(step, 100, 10) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "huge"}, "--preset must be one of tiny, small, gpu, got 'huge'"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"device": "abacus"}, "--device must be auto or a device that torch has, got 'abacus'"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, str], words: str, tmp_path: Path) -> None:
    """A wrong argument is refused before anything is written."""
    with pytest.raises(RootDashError, match=re.escape(words)):
        demo_run.demo(db=tmp_path / "runs.db", serve=False, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def demo_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database that `root-dash demo --steps 60 --no-serve` writes."""
    path = tmp_path_factory.mktemp("demo") / "demo.db"
    done = run("-m", "root_dash.cli", "demo", "--steps", "60", "--no-serve", "--db", path)
    assert done.returncode == 0, done.stderr
    assert "recorded 60 frames" in done.stdout
    return path


@pytest.mark.heavy
def test_the_demo_leaves_a_complete_recording(demo_db: Path) -> None:
    """Every matrix of ROOT has finite statistics at each step and every array at its cadence, and the loss falls."""
    cadence = PRESETS["tiny"].cadence
    with root_dash.open(demo_db) as store:
        (run,) = store.runs()
        loss = store.scalar(run.id, "loss")
        assert loss.steps.tolist() == list(range(1, 61))
        assert loss.values[-10:].mean() < 0.55 * loss.values[0]
        layers = store.layers(run.id)
        matrices = [layer for layer in layers if layer.algorithm == "root"]
        assert len(matrices) == 24
        for layer in matrices:
            for name in statistic_names("statistics"):
                history = store.history(layer.id, name)
                assert history.steps.tolist() == list(range(1, 61)), name
                if name == "nonfinite_step":
                    assert np.isnan(history.values).all()  # no step had a gradient that was not finite
                else:
                    assert np.isfinite(history.values).all(), (layer.name, name)
            for kind in ("histograms", "quantiles", "spectra", "masks"):
                due = [s for s in range(1, 61) if s == 1 or s % getattr(cadence, kind) == 0]
                assert store.steps(layer.id, kind).tolist() == due
            for name in statistic_names("spectra"):
                assert np.isfinite(store.history(layer.id, name).values).all(), (layer.name, name)
            for step in store.steps(layer.id, "histograms"):
                assert store.histogram(layer.id, int(step)).counts.sum() == layer.size


@pytest.mark.heavy
def test_root_is_closer_to_orthogonal_than_its_promise(demo_db: Path) -> None:
    """On the momentum of the demo no update has a singular value over 1.06."""
    with root_dash.open(demo_db) as store:
        (run,) = store.runs()
        for layer in store.layers(run.id):
            if layer.algorithm == "root":
                assert all(spectrum.update.max() <= 1.06 for spectrum in store.spectra(layer.id))
