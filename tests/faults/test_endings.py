"""However the process of a training ends, what was taken is stored, and its exit status is what it would have been."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

import root_dash
from root_dash.records import Run
from tests.zygote import Forked

pytestmark = pytest.mark.heavy

TRAINER = """
import os, signal, sys, time, root_dash
from tests.monitor.training import Model, root, train
model = Model(); optimizers = root(model)
{before}
run = root_dash.watch(model, optimizers, db=sys.argv[1], max_overhead=1e9)
train(model, optimizers, 7)
print("ready", flush=True)
{after}
"""


def start(path: Path, before: str, after: str) -> Forked:
    """A training of seven steps; returns when they are done."""
    trainer = Forked("-c", TRAINER.format(before=before, after=after), path)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "ready\n"
    return trainer


def recorded(path: Path) -> Run:
    """The only run of a database that SQLite finds whole."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with root_dash.open(path) as store:
        (run,) = store.runs()
    return run


WAIT = "time.sleep(60)"


def test_sigterm_stores_what_waits_and_ends_the_process_by_sigterm(tmp_path: Path) -> None:
    """As Slurm, Kubernetes and `kill` send it: six steps are complete, and the seventh is still open."""
    trainer = start(tmp_path / "runs.db", "", WAIT)
    trainer.terminate()
    trainer.communicate()
    assert trainer.returncode == -signal.SIGTERM
    run = recorded(tmp_path / "runs.db")
    assert run.frames >= 6
    assert (run.lost, run.ended_at is not None) == (0, True)


def test_a_handler_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    """It gets the signal, and nobody else does; the recording ends with the process."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))"
    for before, after in ((handler, ""), ("", handler)):
        path = tmp_path / f"{bool(before)}.db"
        trainer = start(path, before, f"{after}\nprint('set', flush=True)\n{WAIT}")
        assert trainer.stdout is not None
        trainer.stdout.readline()
        trainer.terminate()
        trainer.communicate()
        assert trainer.returncode == 5
        assert recorded(path).frames == 7


def test_closing_takes_the_handler_away(tmp_path: Path) -> None:
    """Also where two recorders had it: the process is left as it was found."""
    trainer = start(
        tmp_path / "runs.db",
        "other = root_dash.watch(model, optimizers, db=sys.argv[1] + '.other', max_overhead=1e9)",
        "run.close(); assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL; other.close()\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL",
    )
    _, err = trainer.communicate()
    assert (trainer.returncode, err) == (0, "")


# A sink that is stuck: what cannot be stored must not keep the process.
STUCK = """
import signal, time, threading, torch
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from tests.monitor.training import Model, root, train
class Stuck:
    def append(self, frame): threading.Event().wait()
    def extend(self, layers): pass
    def end(self, time, lost): pass
    def close(self): pass
model = Model(); optimizers = root(model)
positions = {parameter: i for i, parameter in enumerate(model.parameters())}
run = Recorder(optimizers, positions, Stuck, cadence=Cadence(), outlier_quantile=0.9)
train(model, optimizers, 3)
def watch_it_close():
    while not run._writer._closing: time.sleep(0.005)
    print("closing", flush=True)
threading.Thread(target=watch_it_close, daemon=True).start()
with run:
    print("ready", flush=True)
    time.sleep(60)
"""


def stuck() -> Forked:
    """A trainer whose frames are taken and never stored."""
    trainer = Forked("-c", STUCK)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "ready\n"
    return trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM, where the first waits for a sink that is stuck."""
    trainer = stuck()
    trainer.send_signal(number)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "closing\n"
    assert trainer.poll() is None
    trainer.send_signal(number)
    _, err = trainer.communicate()
    assert trainer.returncode == -number
    assert "could not be stored in time" not in err  # as the first says when it has waited


def test_ctrl_c_waits_no_longer_than_seconds_and_says_what_is_missing() -> None:
    """Where a sink is stuck: the frames that could not be stored are told on stderr."""
    trainer = stuck()
    trainer.send_signal(signal.SIGINT)
    _, err = trainer.communicate()
    assert trainer.returncode == -signal.SIGINT
    assert "gave up on 3 frames that could not be stored in time" in err


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("raise ValueError('mine')", 1),
        ("os._exit(3)", 3),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_other_endings_leave_whole_frames(end: str, status: int, tmp_path: Path) -> None:
    """An exit past the interpreter loses the frames in flight at most; any other, as an error of the user's, none."""
    past = "_exit" in end or "abort" in end
    trainer = start(tmp_path / "runs.db", "", f"while {past} and run.pending > 1: pass\n{end}")
    _, err = trainer.communicate()
    assert trainer.returncode == status
    assert ("ValueError: mine" in err) == ("mine" in end)
    run = recorded(tmp_path / "runs.db")
    assert (run.frames, run.last_step) == ((6, 6) if past else (7, 7))
    assert (run.ended_at is None, run.lost) == (past, 0)
