"""Trainers far away, and servers, that are killed, full and gone: every frame arrives, whole and once."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from root_dash.records import Attempt, Run
from root_dash.store import Store
from tests.delivery.servers import free_port
from tests.store.frames import make_layers
from tests.store.read.test_frames import same_frames, trained
from tests.waiting import LIMIT_SECONDS, until
from tests.zygote import Forked, run

pytestmark = pytest.mark.heavy

WRITE = "write-token"
KILLS = 3
FRAMES = 40 * KILLS
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ROOT_DASH_")} | {
    "ROOT_DASH_WRITE_TOKEN": WRITE,
}

TRAINER = """
import sys, time, root_dash
from root_dash.monitor.limits.cadence import Cadence
from tests.monitor.training import Model, sgd, step
model = Model(); optimizers = sgd(model)
cadence = Cadence(1, 2, 2, 2, 2)
run = root_dash.watch(model, optimizers, server=sys.argv[1], spool=sys.argv[2], cadence=cadence, max_overhead=1e9)
for index in range(1_000_000):
    run.log(loss=step(model, optimizers, index))
    time.sleep(0.01)
    print(index + 1, run.pending, flush=True)
"""

SERVER = """
import signal, sys
from pathlib import Path
from tests.delivery.servers import serving
with serving(Path(sys.argv[1]), int(sys.argv[2])):
    signal.pause()
"""

SENDER = """
import sys
from pathlib import Path
from root_dash.delivery.client import Unreachable
from root_dash.delivery.delivery import find_spools
from root_dash.delivery.limits import DeliveryLimits
from root_dash.sending import sync
limits = DeliveryLimits(batch_frames=1)  # many requests, to be interrupted anywhere
while find_spools(Path(sys.argv[2])):
    try:
        for path, frames in sync(sys.argv[2], sys.argv[1], None, limits):
            print(path, frames)
    except Unreachable as error:
        print(error, file=sys.stderr)
"""


def start(*arguments: str) -> Forked:
    """A process of ours, its words kept."""
    return Forked(*arguments, env=ENVIRONMENT)


@contextmanager
def serving(path: Path, port: int, *command: str) -> Iterator[Forked]:
    """A server that answers, without the dashboard where no command says so; killed at the end."""
    server = start(*(command or ("-c", SERVER)), str(path), *(() if command else (str(port),)))
    try:
        until(lambda: answers(server, port), "a server that answers")
        yield server
    finally:
        server.kill()
        server.communicate()


def answers(server: Forked, port: int) -> bool:
    """Whether a server that runs answers already."""
    assert server.poll() is None, server.communicate()
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except OSError:
        return False
    return True


def left(folder: Path, frames: int) -> None:
    """A spool of an ended run."""
    folder.mkdir()
    with Store.create(folder / f"{'a' * 32}.db") as store:
        recording = store.begin(Run("u" * 32, "far away", 1.7e9), make_layers(6), Attempt("a" * 32, 1.7e9))
        for seq in range(frames):
            recording.append(trained(seq))
        recording.end(1.8e9)


def frames_of(path: Path) -> int:
    """How many frames of the only run a server has."""
    with Store.open(path) as store:
        return sum(run.frames for run in store.runs())


def check(path: Path, frames: int) -> None:
    """The server's database is sound and holds each frame once, bit for bit, and histories of all of them."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with Store.open(path) as store:
        (run,) = store.runs()
        notices = store.frames(run.id)
        assert [notice.seq for notice in notices] == list(range(frames))
        assert all(same_frames(store.frame(notice.id), trained(notice.seq)) for notice in notices)
        for layer in store.layers(run.id):
            steps = store.history(layer.id, "grad_norm").steps
            assert steps.tolist() == [notice.step for notice in notices]
            assert len(store.histograms(layer.id, max_points=1000).counts) == frames
        assert run.ended_at == 1.8e9


def test_a_server_killed_amid_sending_gets_every_frame_once(tmp_path: Path) -> None:
    """Killed and started again, three times while a spool is sent in small batches, it ends with what that held."""
    left(tmp_path / "spool", FRAMES)
    port, moments = free_port(), np.random.default_rng(0)
    sender = start("-c", SENDER, f"http://127.0.0.1:{port}", str(tmp_path / "spool"))
    kills = 0
    while sender.poll() is None:
        with serving(tmp_path / "team.db", port) as server:
            if kills == KILLS:
                sender.wait(LIMIT_SECONDS)
                break
            # At a random moment of its share of the frames: however quick the sender is, there are more to come.
            enough = moments.integers(1 + kills * FRAMES // (KILLS + 1), (kills + 1) * FRAMES // (KILLS + 1))
            until(lambda: frames_of(tmp_path / "team.db") >= enough)  # noqa: B023 (called within the turn)
            server.send_signal(signal.SIGKILL)
            kills += 1
    output, errors = sender.communicate()
    assert sender.returncode == 0, errors
    assert kills == KILLS
    check(tmp_path / "team.db", FRAMES)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_full_server_gets_everything_once_it_has_room(tmp_path: Path) -> None:
    """While its file may not grow it takes what fits; afterwards the rest arrives, and nothing twice."""
    left(tmp_path / "spool", FRAMES)
    port = free_port()
    with serving(tmp_path / "team.db", port) as server:
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (400_000, hard))
        sender = start("-c", SENDER, f"http://127.0.0.1:{port}", str(tmp_path / "spool"))
        assert sender.stderr is not None
        said = sender.stderr.readline()
        assert "cannot take frames now" in said
        assert sender.poll() is None
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        sender.communicate()
        assert sender.returncode == 0
    check(tmp_path / "team.db", FRAMES)


def test_what_a_killed_trainer_left_is_synced(tmp_path: Path) -> None:
    """A trainer is killed with its server away; `root-dash sync` sends what was stored, and says when it cannot."""
    port, spool = free_port(), str(tmp_path / "spool")
    server = f"http://127.0.0.1:{port}"
    trainer = start("-c", TRAINER, server, spool)
    assert trainer.stdout is not None
    words = [trainer.stdout.readline() for _ in range(40)]
    trainer.send_signal(signal.SIGKILL)
    rest, _ = trainer.communicate()
    step, pending = map(int, (words + rest[: rest.rfind("\n") + 1].splitlines())[-1].split())
    command = ("-m", "root_dash.cli", "sync", spool, "--server", server)
    away = run(*command, env=ENVIRONMENT)
    assert away.returncode == 2
    assert away.stderr.startswith(f"root-dash: {server} cannot be reached")
    with serving(tmp_path / "team.db", port, "-m", "root_dash.cli", "serve", "--port", str(port)):
        done = run(*command, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("sent ")
        again = run(*command, env=ENVIRONMENT)
        assert again.stdout == f"nothing waits in {spool}\n"
    with Store.open(tmp_path / "team.db") as store:
        (recorded,) = store.runs()
        steps = [notice.step for notice in store.frames(recorded.id)]
        assert steps == list(range(1, len(steps) + 1))
        assert step - pending <= len(steps) <= step + 1
        assert recorded.ended_at == recorded.last_time
