"""The scripts that users copy: each is run as its first line says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import root_dash
from tests.delivery.servers import WRITE, serving

TREE = Path(__file__).parents[2]
EXAMPLES = TREE / "examples"

pytestmark = pytest.mark.heavy


def _run(*arguments: str, folder: Path) -> str:
    """Run a command as a user does, outside of the tree, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _example(name: str, *arguments: str, folder: Path) -> str:
    return _run(str(EXAMPLES / name), *arguments, folder=folder)


def _assert_recorded(path: Path, steps: int) -> None:
    """Check that a run of so many steps is stored whole, with a falling loss."""
    with root_dash.open(path) as store:
        (run,) = store.runs()
        loss = store.scalar(run.id, "loss").values
        assert run.ended_at is not None
        assert len(loss) == steps
        assert np.mean(loss[-10:]) < np.mean(loss[:10])


def test_the_smallest_example_records_what_the_reading_example_prints(tmp_path: Path) -> None:
    """Each step of the one is stored; the other prints layers and spectra."""
    _example("minimal.py", "runs.db", folder=tmp_path)
    _assert_recorded(tmp_path / "runs.db", 100)
    printed = _example("reading_back.py", "runs.db", folder=tmp_path)
    assert "minimal: 100 frames, newest step 100" in printed
    assert "2.weight" in printed
    assert "singular values of the update of" in printed


@pytest.mark.parametrize(("script", "steps"), [("gradient_accumulation.py", 40), ("muon_and_adamw.py", 60)])
def test_an_example_records_each_of_its_steps(script: str, steps: int, tmp_path: Path) -> None:
    """A run of the example is stored whole, with a falling loss."""
    _example(script, "runs.db", folder=tmp_path)
    _assert_recorded(tmp_path / "runs.db", steps)


@pytest.mark.long
def test_the_sharded_example_is_one_run(tmp_path: Path) -> None:
    """Two processes under FSDP2 record one run with whole layers."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    _run(*launcher, str(EXAMPLES / "fsdp2.py"), "runs.db", folder=tmp_path)
    with root_dash.open(tmp_path / "runs.db") as store:
        (run,) = store.runs()
        assert run.frames == 10
        assert {layer.shape for layer in store.layers(run.id)} >= {(64, 16), (64, 64), (4, 64)}


def test_the_far_example_arrives_at_its_server(tmp_path: Path) -> None:
    """Frames that a trainer sends are in the server's database when the trainer has ended and `sync` has run."""
    with serving(tmp_path / "server.db") as (server, _, _):
        _example("far_trainer.py", server, WRITE, folder=tmp_path)
        _run("-m", "root_dash.cli", "sync", "--server", server, "--token", WRITE, folder=tmp_path)
    with root_dash.open(tmp_path / "server.db") as store:
        (run,) = store.runs()
        assert run.frames == 30
