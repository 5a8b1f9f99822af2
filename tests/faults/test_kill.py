"""A trainer that is killed loses no more than what was on its way, and never leaves half a frame."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import root_dash
from root_dash.records import KINDS

pytestmark = pytest.mark.heavy

KILLS = 10
IN_FLIGHT = 2
"""Frames that may be on their way: the one still open, and the one that the writer holds."""

# Says after each step which frames it has taken and how many of them are not stored yet.
TRAINER = """
import sys, time, root_dash
from root_dash.monitor.cadence import Cadence
from tests.monitor.training import Model, root, step
model = Model(); optimizers = root(model)
run = root_dash.watch(model, optimizers, db=sys.argv[1], name=sys.argv[2], cadence=Cadence(1, 2, 2, 2, 2))
for index in range(1_000_000):
    loss = step(model, optimizers, index)
    time.sleep(0.02)  # a small model's step; without it this would be a benchmark of the disk
    run.log(loss=loss)
    print(index + 1, run.pending, flush=True)
"""


def last_words(output: bytes) -> tuple[int, int]:
    """The last complete line of the trainer: steps taken, and frames pending."""
    complete = output[: output.rfind(b"\n")].decode().splitlines()
    step, pending = complete[-1].split()
    return int(step), int(pending)


def killed(place: Path | str, kills: int, in_flight: int = IN_FLIGHT) -> dict[str, int]:
    """So many trainers into one database, killed at random moments; the steps that each had taken, by run."""
    moments = np.random.default_rng(0)
    taken: dict[str, int] = {}
    for index in range(kills):
        name = f"run {index}"
        trainer = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(place), name],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
        assert trainer.stdout is not None
        first = trainer.stdout.readline()
        time.sleep(moments.uniform(0.05, 0.8))
        trainer.send_signal(signal.SIGKILL)
        output, _ = trainer.communicate(timeout=30)
        taken[name], pending = last_words(first + output)
        assert pending <= in_flight
    return taken


def are_whole(place: Path | str, taken: dict[str, int], in_flight: int = IN_FLIGHT) -> None:
    """Fail where a frame of those runs is not complete, or more are missing than were on their way."""
    with root_dash.open(place) as store:
        runs = {run.name: run for run in store.runs()}
        assert set(runs) == set(taken)
        for name, steps in taken.items():
            run, layers = runs[name], store.layers(runs[name].id)
            frames = store.frames(run.id, limit=100_000)
            # One step may have been taken after the trainer's last words.
            assert steps - in_flight <= len(frames) <= steps + 1
            assert [frame.seq for frame in frames] == list(range(len(frames)))
            assert [frame.step for frame in frames] == list(range(1, len(frames) + 1))
            for frame in frames:
                due = frame.step == 1 or frame.step % 2 == 0
                assert set(frame.kinds) == (set(KINDS) if due else {"statistics", "scalars"})
            for layer in layers:
                assert store.history(layer.id, "grad_norm").steps.tolist() == [frame.step for frame in frames]
                for kind in ("histograms", "quantiles") + (("spectra", "masks") if layer.is_matrix else ()):
                    expected = [frame.step for frame in frames if kind in frame.kinds]
                    assert store.steps(layer.id, kind).tolist() == expected
                assert np.isfinite(store.history(layer.id, "grad_norm").values).all()


def test_kill_9_leaves_whole_frames_and_misses_at_most_two(tmp_path: Path) -> None:
    """Ten trainers, killed at random moments, into one database: it opens, and every frame in it is complete."""
    path = tmp_path / "runs.db"
    taken = killed(path, KILLS)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    are_whole(path, taken)
