"""A process that is killed loses no more than what was on its way, and never leaves half a frame.

A few kills in `make test`; `make faults` sets KILLS to 200, for each of the two.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import root_dash
from root_dash.records import KINDS
from tests.waiting import LIMIT_SECONDS
from tests.zygote import run as forked

pytestmark = pytest.mark.heavy

KILLS = int(os.environ.get("KILLS", "5"))

# Forks a trainer again and again and kills it at a random moment: what a child says after each step, which frames it
# has taken and how many of them are not stored yet, is what its parent reports of it. Forking saves importing torch.
TRAINERS = """
import json, os, random, signal, sys, time
import root_dash, root_dash.watching, root_dash.monitor.ranks.exchange, root_dash.monitor.recorder
from root_dash.monitor.limits.cadence import Cadence
from tests.monitor.training import Model, root, step

def train(path, name, words):
    model = Model(); optimizers = root(model)
    run = root_dash.watch(model, optimizers, db=path, name=name, cadence=Cadence(1, 2, 2, 2, 2), max_overhead=1e9)
    for index in range(1_000_000):
        loss = step(model, optimizers, index)
        time.sleep(0.02)  # a small model's step; without it this would be a benchmark of the disk
        run.log(loss=loss)
        os.write(words, f"{index + 1} {run.pending}\\n".encode())

moments = random.Random(0)
for index in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        train(sys.argv[1], f"run {index}", writing)
    os.close(writing)
    words = os.read(reading, 2**16)
    time.sleep(moments.uniform(0.02, 0.8))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 2**16):
        words += more
    os.close(reading)
    print(json.dumps([f"run {index}", *map(int, words[: words.rfind(b"\\n")].split(b"\\n")[-1].split())]), flush=True)
"""


def run(script: str, *arguments: str) -> list[Any]:
    """The JSON lines that a script prints."""
    done = forked("-c", script, *arguments, timeout=LIMIT_SECONDS + 10 * KILLS)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def whole(path: Path) -> None:
    """SQLite finds nothing wrong with the database."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def killed(place: Path | str, kills: int) -> dict[str, tuple[int, int]]:
    """Trainers that record to one database until they are killed: by name, how many steps each said to have taken.

    And how many of these were not stored by then: what a busy machine's disk had not come to yet.
    """
    words = run(TRAINERS, str(place), str(kills))
    assert len(words) == kills
    return {name: (steps, pending) for name, steps, pending in words}


def are_whole(place: Path | str, taken: dict[str, tuple[int, int]]) -> int:
    """The frames of all runs, of which each is complete, and no more than those on their way are missing."""
    stored = 0
    with root_dash.open(place) as store:
        runs = {run.name: run for run in store.runs()}
        assert set(runs) == set(taken)
        for name, (steps, pending) in taken.items():
            layers, frames = store.layers(runs[name].id), store.frames(runs[name].id, limit=100_000)
            stored += len(frames)
            # One step may have been taken after the trainer's last words.
            assert steps - pending <= len(frames) <= steps + 1
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
    return stored


def test_kill_9_of_trainers_leaves_whole_frames_and_misses_those_on_their_way(tmp_path: Path) -> None:
    """Killed at random moments, all into one database: it opens, and every frame in it is complete."""
    path = tmp_path / "runs.db"
    taken = killed(path, KILLS)
    whole(path)
    stored = are_whole(path, taken)
    sys.stdout.write(f"{KILLS} trainers killed, {stored} frames whole, none of those stored lost\n")


# A trainer records while the server that shows its database is killed and started again: forked, to save the imports.
SERVERS = """
import json, os, random, signal, socket, sys, threading, time, urllib.request
import root_dash, root_dash.monitor.ranks.exchange, root_dash.monitor.recorder
from root_dash.cli.serving import run_server
from root_dash.exceptions import StoreError
from root_dash.settings import Settings
from root_dash.store import Store
from tests.monitor.training import Model, root, step
import root_dash.frontend.app, root_dash.server.app, uvicorn

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

def train(path):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    model = Model(); optimizers = root(model)
    with root_dash.watch(model, optimizers, db=path, max_overhead=1e9) as run:
        while not ended:
            run.log(loss=step(model, optimizers, run.step))
            time.sleep(0.01)
    print(json.dumps([run.step, run.stored, run.lost, run.failures]), flush=True)
    os._exit(0)

def ask(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        return json.load(answer)

def answers():
    for _ in range(3000):
        try:
            return ask("/api/v1/runs")
        except OSError:
            time.sleep(0.01)

def serve(path):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with Store.open(path) as store:
        run_server(Settings(db=path, port=port, token=None), store)

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work(path)
        finally:
            os._exit(1)
    children.add(child)
    return child

def end(child, number):
    os.kill(child, number)
    os.waitpid(child, 0)
    children.discard(child)

path, children = sys.argv[1], set()
try:
    trainer = fork(train)
    while True:
        try:
            Store.open(path).close()
            break
        except StoreError:  # it is being made
            time.sleep(0.01)
    moments = random.Random(1)
    for index in range(int(sys.argv[2])):
        server = fork(serve)
        answered = bool(answers())
        until, asked = time.monotonic() + moments.uniform(0.0, 0.3), 0
        while time.monotonic() < until:
            ask("/api/v1/runs")
            asked += 1
        end(server, signal.SIGKILL)
        print(json.dumps([answered, asked]), flush=True)
    end(trainer, signal.SIGTERM)
finally:
    for child in list(children):
        end(child, signal.SIGKILL)
"""


def test_kill_9_of_servers_costs_the_trainer_nothing(tmp_path: Path) -> None:
    """Each time it answers again; every frame that was taken is stored, and the database is whole."""
    path = tmp_path / "runs.db"
    *servers, (steps, stored, lost, failures) = run(SERVERS, str(path), str(KILLS))
    assert [answered for answered, _ in servers] == [True] * KILLS
    assert (stored, lost, failures) == (steps, 0, 0)
    whole(path)
    with root_dash.open(path) as store:
        (recorded,) = store.runs()
        assert (recorded.frames, recorded.last_step, recorded.lost) == (steps, steps, 0)
        assert [frame.seq for frame in store.frames(1, limit=1_000_000)] == list(range(steps))
    sys.stdout.write(f"{KILLS} servers killed, {steps} frames whole, none lost\n")
