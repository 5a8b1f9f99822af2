"""Frames to a server far away: all of them arrive, once, whatever happens to the server."""

from __future__ import annotations

import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

import root_dash
from root_dash import wire
from root_dash.delivery.client import IngestClient, Unreachable
from root_dash.delivery.delivery import Delivery, deliver
from root_dash.delivery.limits import DeliveryLimits
from root_dash.delivery.spool_lock import lock_spool
from root_dash.records import Attempt, statistic_names
from root_dash.store import Store
from root_dash.store.spool import Spool
from tests.delivery.servers import WRITE, free_port, serving
from tests.delivery.spools import LAYERS, RUN, arrived, left, remaining, send, start
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.read.test_frames import same_frames, trained
from tests.store.recorded import unpacked
from tests.waiting import until
from tests.zygote import Forked
from tests.zygote import run as run_forked


@pytest.mark.parametrize("batch", [1, 2**22])
def test_a_spool_arrives_bit_for_bit(tmp_path: Path, batch: int) -> None:
    """One frame a batch, since each is larger than a batch may be, or all in one; then the spool is deleted."""
    left(tmp_path / "spool")
    with serving(tmp_path / "team.db") as (server, _, app):
        assert send(tmp_path / "spool", server, DeliveryLimits(batch_bytes=batch)) == [4]
        assert app.requests == (6 if batch == 1 else 3)
    assert all(map(same_frames, arrived(tmp_path / "team.db"), [trained(seq) for seq in range(4)]))
    assert remaining(tmp_path / "spool") == []
    with Store.open(tmp_path / "team.db") as store:
        run = store.run(1)
        assert (run.frames, run.ended_at, run.lost, run.rank) == (4, 1.8e9, 3 + 0 + 1 + 2 + 3, 1)
        assert store.attempt("a" * 32).host == "far"


@pytest.mark.parametrize("change", ["", "ADD COLUMN future DOUBLE", "DROP COLUMN alignment"])
def test_a_spool_of_another_root_dash_is_sent(tmp_path: Path, change: str) -> None:
    """The spool of an earlier version arrives, also with columns that we do not know and without some that we do."""
    folder = tmp_path / "spool"
    folder.mkdir()
    path = unpacked("spool-3.db", folder / f"{'a' * 32}.db")
    if change:
        connection = sqlite3.connect(path)
        connection.execute(f"ALTER TABLE layer_statistics {change}")
        connection.close()
    with serving(tmp_path / "team.db") as (server, _, _):
        assert send(folder, server) == [4]
    frames = [trained(seq) for seq in range(4)]
    if change.startswith("DROP"):
        for frame in frames:
            frame.statistics[:, statistic_names("statistics").index("alignment")] = np.nan
    assert all(map(same_frames, arrived(tmp_path / "team.db"), frames))
    with Store.open(tmp_path / "team.db") as store:
        assert (store.run(1).frames, store.run(1).ended_at) == (4, 1.8e9)
    assert remaining(folder) == []


def test_a_frame_that_is_too_large_travels_without_its_exact_masks(tmp_path: Path) -> None:
    """An event says so. Everything else arrives, and so do the later frames."""
    small, large = trained(0, ["scalars"]), trained(1)
    limits = DeliveryLimits(frame_bytes=len(wire.pack_frame(large)) - 1)
    folder = tmp_path / "spool"
    left(folder, 0, end=False)
    with Store.create(folder / f"{'a' * 32}.db") as store:
        recording = store.begin(replace(RUN, uid="a" * 32), LAYERS, Attempt("a" * 32, 1.7e9, host="far"))
        for frame in (large, replace(small, seq=2)):
            recording.append(frame)
    with serving(tmp_path / "team.db") as (server, _, _):
        assert send(folder, server, limits) == [2]
    first, second = arrived(tmp_path / "team.db")
    assert all(not mask.packed for mask, _ in first.masks.values())
    masks = {at: (replace(mask, packed=large.masks[at][0].packed), found) for at, (mask, found) in first.masks.items()}
    assert "too large to be sent" in first.events[-1].text
    assert same_frames(replace(first, masks=masks, events=first.events[:-1]), large)
    assert same_frames(second, replace(small, seq=2))


def test_a_killed_trainers_run_ends_with_its_last_frame(tmp_path: Path) -> None:
    """All frames arrive, the run has ended with its last frame, and the spool is deleted. An empty spool is deleted."""
    left(tmp_path / "spool", end=False)
    left(tmp_path / "spool", 0, end=False, uid="c" * 32)
    Store.create(tmp_path / "spool" / f"{'b' * 32}.db").close()
    (tmp_path / "spool" / "notes.db").touch()  # nobody's spool
    with serving(tmp_path / "team.db") as (server, _, _):
        assert sorted(send(tmp_path / "spool", server)) == [0, 0, 4]
    with Store.open(tmp_path / "team.db") as store:
        found = {run.frames: run.ended_at for run in store.runs()}
        assert found == {4: trained(3).time, 0: 1.7e9}
    assert remaining(tmp_path / "spool") == ["notes.db"]


def test_the_next_run_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    """The next run ends it as `sync` does, and goes on."""
    path = left(tmp_path / "spool", end=False)
    with serving(tmp_path / "team.db") as (server, _, _):
        run = start(server, tmp_path / "spool")
        with Store.open(tmp_path / "team.db") as store:
            until(lambda: not path.exists() and len(store.runs()) == 2)
            assert {run.name: run.ended_at for run in store.runs()} == {"far away": trained(3).time, "far": None}
        run.close()


@pytest.mark.heavy
def test_only_the_run_of_a_dead_trainer_is_ended(tmp_path: Path) -> None:
    """While the process lives, `sync` leaves its run alone, also if the process is stopped. A killed run has ended."""
    script = (
        "import sys, time; from pathlib import Path; from tests.delivery.spools import start;"
        "run = start(sys.argv[1], Path(sys.argv[2]))\n"
        "while run.pending: time.sleep(0.01)\n"
        "print('stored', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        trainer = Forked("-c", script, server, folder, stdin=PIPE)
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "stored\n"
        until(lambda: len(arrived(tmp_path / "team.db")) == 5)
        trainer.send_signal(signal.SIGSTOP)
        assert send(folder, server) == []
        with Store.open(tmp_path / "team.db") as store:
            assert [run.ended_at for run in store.runs()] == [None]
            trainer.kill()
            trainer.communicate()
            assert send(folder, server) == [0]  # the server had all but the end
            (run,) = store.runs()
            assert (run.frames, run.ended_at) == (5, run.last_time)
    assert remaining(folder) == []


def test_training_is_recorded_on_the_server(tmp_path: Path) -> None:
    """`watch(server=...)`: every step arrives with all its kinds, the run ends, and no spool is left."""
    with serving(tmp_path / "team.db") as (server, _, _):
        model = Model()
        optimizers = sgd(model)
        spool = tmp_path / "spool"
        with root_dash.watch(model, optimizers, server=server, token=WRITE, spool=spool, cadence=EVERY_STEP) as run:
            train(model, optimizers, 5, run.log)
        assert (run.stored, run.lost, run.failures) == (5, 0, 0)
    frames = arrived(tmp_path / "team.db")
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5]
    assert all(len(frame.kinds) == 6 for frame in frames)
    with Store.open(tmp_path / "team.db") as store:
        assert store.run(1).ended_at is not None
    assert remaining(tmp_path / "spool") == []


def test_a_server_that_comes_later_gets_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The trainer reports once that nobody listens, and once that the server is back. The frames that waited arrive."""
    port = free_port()
    run = start(f"http://127.0.0.1:{port}", tmp_path / "spool")
    until(lambda: not run.pending)
    until(lambda: "training goes on" in capfd.readouterr().err)
    with serving(tmp_path / "team.db", port):
        # At once after it came up the sender may still have failed its last try: it goes on in the background.
        until(lambda: len(arrived(tmp_path / "team.db")) == 5)
        run.close()
    assert [frame.step for frame in arrived(tmp_path / "team.db")] == [1, 2, 3, 4, 5]
    said = capfd.readouterr().err
    assert said == f"root-dash: http://127.0.0.1:{port} takes frames again: 5 waited\n"


def test_a_server_that_is_away_for_a_moment_is_not_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one try fails and the next succeeds, nothing is reported."""
    send, tries = IngestClient._send, list[str]()

    def fail_once(client: IngestClient, method: str, path: str, message: bytes) -> object:
        tries.append(method)
        if len(tries) in (1, 3):
            raise Unreachable(f"{client.server} cannot be reached")
        return send(client, method, path, message)

    monkeypatch.setattr(IngestClient, "_send", fail_once)
    with serving(tmp_path / "team.db") as (server, _, _):
        start(server, tmp_path / "spool").close(20.0)
        until(lambda: not list((tmp_path / "spool").glob("*.db")))
    assert len(arrived(tmp_path / "team.db")) == 5
    said = capfd.readouterr().err
    assert "training goes on" not in said
    assert "takes frames again" not in said


def test_a_server_that_hangs_does_not_hold_the_training(tmp_path: Path) -> None:
    """While the server holds its first answer back all steps are trained and stored in the spool."""
    with serving(tmp_path / "team.db", held=True) as (server, gate, app):
        run = start(server, tmp_path / "spool")
        until(lambda: app.requests > 0 and run.stored == 5)
        with Store.open(tmp_path / "team.db") as store:
            assert store.runs() == []
        gate.set()
        run.close()
    assert [frame.step for frame in arrived(tmp_path / "team.db")] == [1, 2, 3, 4, 5]


@pytest.mark.heavy
def test_unsent_frames_are_reported_and_sent_by_the_next_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run that ends while the server is away reports what waits. The next run sends these frames, too."""
    port, folder = free_port(), tmp_path / "spool"
    script = (
        "import sys; from pathlib import Path; from tests.delivery.spools import start;"
        "start(sys.argv[1], Path(sys.argv[2])).close()"
    )
    result = run_forked("-c", script, f"http://127.0.0.1:{port}", folder)
    assert result.returncode == 0, result.stderr
    (spool,) = folder.glob("*.db")
    assert f"5 frames are not at http://127.0.0.1:{port} yet" in result.stderr
    assert f"they are kept in {spool}, and `root-dash sync` or the next run sends them" in result.stderr
    with serving(tmp_path / "team.db", port) as (server, _, _):
        run = start(server, folder)
        run.close()
        until(lambda: not list(folder.glob("*.db")))
    with Store.open(tmp_path / "team.db") as store:
        assert sorted(run.frames for run in store.runs()) == [5, 5]


def test_a_wrong_token_is_reported_once_and_keeps_the_spool(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The training goes on, and the refused frames are kept for a `sync` with the right token."""
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        run = start(server, folder, token="wrong")  # noqa: S106 (none)
        run.close()
        said = capfd.readouterr().err
        assert said.count("refuses the frames (401: the write token is required)") == 2  # once, and at the end why
        assert (run.stored, run.failures) == (5, 0)
        assert len(list(folder.glob("*.db"))) == 1
        assert send(folder, server) == []  # the process still tries itself


def test_layers_that_appear_later_arrive(tmp_path: Path) -> None:
    """The server learns of a layer before the first frame with that layer."""
    path = tmp_path / f"{'a' * 32}.db"
    with serving(tmp_path / "team.db") as (server, _, _):
        client, lock = IngestClient(server, WRITE), lock_spool(path, new=True)
        assert lock is not None
        spool = Spool.create(path)
        recording = spool.begin(RUN, LAYERS[:1], Attempt("a" * 32, 1.7e9))
        delivery = Delivery(lock, spool, client)
        first = trained(0, ["statistics"])
        recording.append(replace(first, layers=first.layers[:1], statistics=first.statistics[:1]))
        while delivery.advance(ended=False):
            pass
        recording.extend(LAYERS[1:])
        recording.append(trained(1, ["statistics"]))
        recording.end(1.8e9)
        deliver(delivery)
        client.close()
    assert [len(frame.layers) for frame in arrived(tmp_path / "team.db")] == [1, 6]
    with Store.open(tmp_path / "team.db") as store:
        assert [replace(layer, id=0) for layer in store.layers(1)] == LAYERS
