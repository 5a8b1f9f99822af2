"""Processes that a training starts: what they inherit of the recorder does nothing, and the parent notices nothing."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import root_dash
from tests.monitor.training import Model, root, train
from tests.waiting import LIMIT_SECONDS
from tests.zygote import TREE
from tests.zygote import run as forked

pytestmark = pytest.mark.heavy

# A dataset that logs with the run that it was given, as users do, under a DataLoader of worker processes.
LOADER = """
import sys, torch, root_dash
from torch.utils.data import DataLoader, Dataset
from tests.monitor.training import Model, root, train

class Data(Dataset):
    def __init__(self, run): self.run = run
    def __len__(self): return 8
    def __getitem__(self, index):
        self.run.log(index=index)
        self.run.capture_masks()
        with self.run as run:  # closes it
            return torch.tensor([index, run.active, run.pending, run.failures])

if __name__ == "__main__":
    model = Model(); optimizers = root(model)
    run = root_dash.watch(model, optimizers, db=sys.argv[1], max_overhead=1e9)
    train(model, optimizers, 2, run.log)
    loader = DataLoader(Data(run), batch_size=1, num_workers=int(sys.argv[3]), multiprocessing_context=sys.argv[2])
    for batch in loader:
        assert batch[0, 1:].tolist() == [0, 0, 0], batch
        train(model, optimizers, 1, run.log)
    run.close()
    assert (run.stored, run.lost, run.failures) == (10, 0, 0)
"""


@pytest.mark.parametrize("context", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_the_workers_of_a_loader_record_nothing_and_the_training_all(context: str, tmp_path: Path) -> None:
    """Forked ones inherit the recorder, the others get a copy: both are closed ones."""
    script, path = tmp_path / "loader.py", tmp_path / "runs.db"
    script.write_text(LOADER)
    environment = os.environ | {"PYTHONPATH": str(TREE)}
    if context == "fork":
        done = forked("-c", LOADER, path, context, "2")
        assert done.returncode == 0, done.stderr
    else:  # the workers import the script
        subprocess.run([sys.executable, script, path, context, "1"], check=True, timeout=LIMIT_SECONDS, env=environment)
    with root_dash.open(path) as store:
        (run,) = store.runs()
        assert (run.frames, run.lost) == (10, 0)
        assert [name for name in store.scalar_names(run.id) if "/" not in name] == ["loss"]


# Threads of the parent hold the queue's lock nearly all the time: a child that waited for it would wait forever.
BUSY = """
import gc, os, sys, threading, time, warnings, root_dash
from tests.monitor.training import Model, root, train
warnings.simplefilter("ignore")
model = Model(); optimizers = root(model)
run = root_dash.watch(model, optimizers, db=sys.argv[1], max_overhead=1e9)
train(model, optimizers, 2, run.log)
ended = threading.Event()
def hog():
    while not ended.is_set():
        with run._writer._changed:
            time.sleep(0.001)
for _ in range(2): threading.Thread(target=hog, daemon=True).start()
for turn in range(6):
    pid = os.fork()
    if pid == 0:
        train(model, optimizers, 1, run.log)
        run.close()
        run._writer.release(); run._writer.count_lost()
        del run, optimizers
        gc.collect()
        sys.exit(0 if turn % 2 else os._exit(0))
    assert os.waitpid(pid, 0)[1] == 0
ended.set()
train(model, optimizers, 2, run.log)
run.close()
assert (run.stored, run.lost, run.failures) == (4, 0, 0)
"""


def test_a_child_never_waits_for_a_lock_that_was_held_at_the_fork(tmp_path: Path) -> None:
    """Six children train, log, close, collect their garbage and end, past the interpreter or through it."""
    done = forked("-c", BUSY, tmp_path / "runs.db")
    assert done.returncode == 0, done.stderr
    with root_dash.open(tmp_path / "runs.db") as store:
        (run,) = store.runs()
        assert (run.frames, run.ended_at is not None) == (4, True)


def test_a_copy_of_a_recorder_is_a_closed_one(tmp_path: Path) -> None:
    """By pickle or `copy`: every public name works and does nothing; the original goes on."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", max_overhead=1e9) as run:
        train(model, optimizers, 2, run.log)
        for other in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run), copy.copy(run)):  # noqa: S301 (our own)
            other.log(loss=torch.tensor(1.0))
            assert (other.active, other.pending, other.stored, other.lost, other.failures) == (False, 0, 0, 0, 0)
            assert (other.step, other.left_out, other.overhead) == (0, 0, 0.0)
            other.close()
        train(model, optimizers, 2, run.log)
    assert (run.stored, run.lost, run.failures) == (4, 0, 0)
