"""What waits on a trainer's disk: whose it is, how much it may be, and what of it goes when."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import root_dash
from root_dash import wire
from root_dash.delivery import delivery, sender
from root_dash.delivery.client import Mail, Unreachable
from root_dash.delivery.delivery import Delivery, deliver, leftovers
from root_dash.delivery.spool_lock import hold
from root_dash.exceptions import StoreFull
from root_dash.monitor.writing import writer
from root_dash.records import Attempt
from root_dash.sending import remote_sink
from root_dash.store import Store
from root_dash.store.spool import Spool
from tests.delivery.servers import WRITE, free_port, serving
from tests.delivery.spools import LAYERS, RUN, arrived, left, send
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.frames import record
from tests.store.read.test_frames import same_frames, trained


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LINGER_SECONDS", 0.02)
    monkeypatch.setattr(sender, "PAUSE_SECONDS", (0.02, 0.1))


def test_a_spool_that_cannot_be_had_keeps_none_of_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One that another process deletes while the folder is read, and one whose lock cannot be made."""
    folder = tmp_path / "spool"
    left(folder)
    (folder / f"{'b' * 32}.db").symlink_to("gone")
    shutil.copy(folder / f"{'a' * 32}.db", folder / f"{'c' * 32}.db")
    (folder / f"{'c' * 32}.lock").mkdir()
    os.utime(folder / f"{'c' * 32}.db", (1, 1))  # before the other
    with serving(tmp_path / "team.db") as (server, _, _):
        assert send(folder, server) == [4]
    assert len(arrived(tmp_path / "team.db")) == 4
    assert f"{'c' * 32}.db stays as it is" in capfd.readouterr().err


def test_a_database_that_bears_a_spools_name_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of somebody's own, and a copy of a spool under another name: neither was sent, and neither is deleted."""
    folder = tmp_path / "spool"
    path = left(folder)
    copy, own = folder / f"{'c' * 32}.db", record(folder / f"{'d' * 32}.db", 3)
    shutil.copy(path, copy)
    with serving(tmp_path / "team.db") as (server, _, _):
        assert send(folder, server) == [4]
    assert not path.exists()
    assert copy.exists()
    with Store.open(own) as store:
        assert store.run(1).frames == 3
    assert capfd.readouterr().err.count("it holds runs, but not the attempt that its name says") == 2


def test_two_never_send_the_same_spool(tmp_path: Path) -> None:
    """While one holds a spool, also another process, nobody else gets it; a trainer that lives keeps its own."""
    path = left(tmp_path / "spool")
    held = hold(path)
    assert held is not None
    assert hold(path) is None
    (tmp_path / "link").symlink_to(path.parent)
    assert hold(tmp_path / "link" / path.name) is None
    script = (
        "import sys, pathlib; from root_dash.delivery.spool_lock import hold; print(hold(pathlib.Path(sys.argv[1])))"
    )
    other = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(other, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout == "None\n"
    mail = Mail("http://127.0.0.1:1", WRITE)
    assert list(leftovers(path.parent, Spool.create, mail)) == []
    held.release()
    held.release()
    assert [delivery.path for delivery in leftovers(path.parent, Spool.create, mail)] == [path]
    gone = path.with_name(f"{'c' * 32}.db")
    assert hold(gone) is None
    mail.close()


def test_a_server_that_lost_frames_gets_them_again(tmp_path: Path) -> None:
    """What it acknowledged and lost with its power is noticed at the end, and what it lost altogether as well."""
    path = left(tmp_path / "spool")
    with serving(tmp_path / "team.db") as (server, _, _):
        mail = Mail(server, WRITE)
        held = hold(path)
        assert held is not None
        delivery = Delivery(held, Spool.create(path), mail)
        assert delivery.advance(ended=False)  # begins
        assert delivery.advance(ended=False)  # sends all
        assert not delivery.advance(ended=False)
        assert delivery.remaining() == 0
        with sqlite3.connect(tmp_path / "team.db") as connection:
            for table in ("histograms", "quantiles", "spectra", "masks", "layer_statistics", "scalars"):
                connection.execute(f"DELETE FROM {table} WHERE frame_id > 2")
            connection.execute("DELETE FROM frames WHERE id > 2")
        connection.close()
        deliver(delivery)
        assert delivery.done
        mail.close()
    assert [frame.seq for frame in arrived(tmp_path / "team.db")] == [0, 1, 2, 3]
    path = left(tmp_path / "spool")
    with serving(tmp_path / "new.db") as (server, _, _):
        assert send(tmp_path / "spool", server) == [4]
    assert len(arrived(tmp_path / "new.db")) == 4


def test_what_the_server_has_for_good_goes_from_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the trainer goes on; what the server acknowledged and loses with its power is still there to be sent."""
    monkeypatch.setattr(delivery, "SETTLED_BYTES", 3 * len(wire.pack_frame(trained(0))))
    path, port = tmp_path / f"{'a' * 32}.db", free_port()
    mail, held = Mail(f"http://127.0.0.1:{port}", WRITE), hold(path, new=True)
    assert held is not None
    spool = Spool.create(path)
    recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
    going = Delivery(held, spool, mail)
    for first in (0, 20):
        with serving(tmp_path / "team.db", port):
            for seq in range(first, first + 20):
                recording.append(trained(seq))
                with suppress(Unreachable):  # the first one after the server was started again
                    while going.advance(ended=False):
                        pass
                assert len(spool.frames(1)) <= 6
            assert going.remaining() == 0
            if first:
                recording.end(1.8e9)
                deliver(going)
        if not first:
            kept = spool.frames(1)[0]
            assert 15 <= kept.seq < 19  # the last that the server has for good
            with sqlite3.connect(tmp_path / "team.db") as connection:
                for table in ("histograms", "quantiles", "spectra", "masks", "layer_statistics", "scalars"):
                    connection.execute(f"DELETE FROM {table} WHERE frame_id > {kept.seq + 1}")
                connection.execute(f"DELETE FROM frames WHERE seq > {kept.seq}")
            connection.close()
    mail.close()
    frames = arrived(tmp_path / "team.db")
    assert all(map(same_frames, frames, map(trained, range(40))))
    assert len(frames) == 40
    with Store.open(tmp_path / "team.db") as store:
        assert store.run(1).ended_at == 1.8e9
        assert len(store.history(store.layers(1)[0].id, "grad_norm").steps) == 40


def test_what_the_server_may_still_lose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes frames but cannot write them through to its disk, the spool keeps all, and lets go once it can."""
    monkeypatch.setattr(delivery, "SETTLED_BYTES", 1)
    path, end = tmp_path / f"{'a' * 32}.db", Mail.end

    def refuse(mail: Mail, message: bytes, uid: str) -> None:
        raise Unreachable("507: the disk of the database is full")

    with serving(tmp_path / "team.db") as (server, _, _):
        mail, held = Mail(server, WRITE), hold(path, new=True)
        assert held is not None
        spool = Spool.create(path)
        recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
        for seq in range(3):
            recording.append(trained(seq))
        going = Delivery(held, spool, mail)
        monkeypatch.setattr(Mail, "end", refuse)
        assert going.advance(ended=False)
        assert going.advance(ended=False)
        for _ in range(3):
            with pytest.raises(Unreachable):
                going.advance(ended=False)
        assert len(arrived(tmp_path / "team.db")) == len(spool.frames(1)) == 3
        monkeypatch.setattr(Mail, "end", end)
        while going.advance(ended=False):
            pass
        assert [notice.seq for notice in spool.frames(1)] == [2]  # it says when the run ended, should nobody else
        going.close()
        mail.close()


def test_a_spool_that_is_full_loses_what_comes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the server away: the oldest frames stay, and are sent when it is back; the run tells of the others."""
    monkeypatch.setattr(sender, "SPOOL_BYTES", 300_000)
    monkeypatch.setattr(delivery, "SETTLED_BYTES", 2**16)
    port, folder, model, said = free_port(), tmp_path / "spool", Model(), ""
    optimizers, address = sgd(model), f"http://127.0.0.1:{port}"
    run = root_dash.watch(
        model, optimizers, server=address, token=WRITE, spool=folder, cadence=EVERY_STEP, max_overhead=math.inf
    )
    (path,) = folder.glob("*.db")
    full = f"{path} is full: 0.3 MiB wait for {address}, and frames are lost until some of it is sent"
    while full not in said:
        train(model, optimizers, 1, run.log)
        while run.pending > 1 and full not in said:
            said += capfd.readouterr().err
            time.sleep(0.001)
    assert f"root-dash: recording waits, training goes on, it is tried again and again: {full}" in said
    monkeypatch.setattr(writer, "QUEUE_BYTES", 2**17)
    while run.lost < 3:
        train(model, optimizers, 1, run.log)
    with Spool.open(path) as spool:
        kept = [frame.step for frame in spool.frames(1)]
        assert 300_000 <= spool.size() < 400_000
    assert kept == list(range(1, run.stored + 1))
    assert run.active
    with serving(tmp_path / "team.db", port):
        while run.pending > 1:
            time.sleep(0.01)
        train(model, optimizers, 5, run.log)
        run.close()
        assert not list(folder.glob("*.db"))
    assert (len(arrived(tmp_path / "team.db")), run.failures) == (run.stored, 0)
    assert run.stored + run.lost == run.step
    with Store.open(tmp_path / "team.db") as store:
        assert [frame.step for frame in store.frames(1)][: len(kept)] == kept
        assert store.run(1).lost == run.lost
        assert any(event.kind == "queue" and event.text.endswith(full) for event in store.events(1))


def test_what_cannot_be_let_go_of_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the spool cannot be written all that is in it is sent; what the server has goes when it can be again."""
    monkeypatch.setattr("root_dash.store.backends.sqlite.BUSY_TIMEOUT", 0.01)
    monkeypatch.setattr(delivery, "SETTLED_BYTES", 1)
    monkeypatch.setattr(delivery, "BATCH_FRAMES", 1)
    path = tmp_path / f"{'a' * 32}.db"
    with serving(tmp_path / "team.db") as (server, _, _):
        mail, held = Mail(server, WRITE), hold(path, new=True)
        assert held is not None
        spool = Spool.create(path)
        recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
        for seq in range(6):
            recording.append(trained(seq))
        going = Delivery(held, spool, mail)
        hog = sqlite3.connect(path, isolation_level=None)
        hog.execute("BEGIN IMMEDIATE")
        while going.advance(ended=False):
            pass
        assert (len(arrived(tmp_path / "team.db")), len(spool.frames(1))) == (6, 6)
        hog.execute("ROLLBACK")
        hog.close()
        recording.append(trained(6))
        while going.advance(ended=False):
            pass
        assert (len(arrived(tmp_path / "team.db")), len(spool.frames(1))) == (7, 1)
        going.close()
        mail.close()


def test_a_spool_that_filled_its_disk_goes_once_the_server_has_it(tmp_path: Path) -> None:
    """Nothing could be let go of in it for want of room: it is deleted, and another one takes the frames that wait."""
    port, folder = free_port(), tmp_path / "spool"
    sink = remote_sink(RUN, LAYERS, f"http://127.0.0.1:{port}", WRITE, folder)
    (path,) = folder.glob("*.db")
    taken = sink._spool._connection.connection.cursor()  # type: ignore[attr-defined]
    taken.execute("PRAGMA max_page_count=200")  # to SQLite the disk is full then
    seq = 0
    with suppress(StoreFull):
        while True:
            sink.append(trained(seq))
            seq += 1
    assert seq > 1
    with pytest.raises(StoreFull):  # nobody has what is in it
        sink.append(trained(seq))
    with serving(tmp_path / "team.db", port):
        for late in (seq, seq + 1):
            while True:
                with suppress(StoreFull):
                    sink.append(trained(late))
                    break
                time.sleep(0.01)
        assert path not in folder.glob("*.db")
        assert len(list(folder.glob("*.db"))) == 1
        sink.end(1.8e9, 0)
        sink.close()
    assert not list(folder.iterdir())
    assert [frame.seq for frame in arrived(tmp_path / "team.db")] == list(range(seq + 2))
    with Store.open(tmp_path / "team.db") as store:
        assert [run.ended_at for run in store.runs()] == [1.8e9]


def test_a_full_spool_that_somebody_deletes_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its room is free again, and taken by what comes."""
    folder = tmp_path / "spool"
    sink = remote_sink(RUN, LAYERS, f"http://127.0.0.1:{free_port()}", WRITE, folder)
    sink.append(trained(0))
    (path,) = folder.glob("*.db")
    monkeypatch.setattr(sender, "SPOOL_BYTES", path.stat().st_size // 2)
    with pytest.raises(StoreFull):
        sink.append(trained(1))
    shutil.rmtree(folder)
    sink.append(trained(1))
    sink.close()
    (other,) = folder.glob("*.db")
    assert [frame.seq for frame in arrived(other)] == [1]


def test_a_spool_that_cannot_be_begun_is_not_left_behind(tmp_path: Path) -> None:
    """Nor its lock: what is tried again and again would fill the folder."""
    with pytest.raises(ValueError, match="a position each"):
        remote_sink(RUN, [LAYERS[0], LAYERS[0]], f"http://127.0.0.1:{free_port()}", WRITE, tmp_path / "spool")
    assert not list((tmp_path / "spool").iterdir())


def test_a_process_that_goes_elsewhere_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that was given as it is seen from one folder stays where it was: database, and spool."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with serving(tmp_path / "team.db") as (server, _, _):
        for place in ({"db": "runs.db"}, {"server": server, "token": WRITE, "spool": "spool"}):
            monkeypatch.chdir(tmp_path / "here")
            model = Model()
            optimizers = sgd(model)
            with root_dash.watch(model, optimizers, cadence=EVERY_STEP, **place) as run:  # type: ignore[arg-type]
                train(model, optimizers, 2, run.log)
                monkeypatch.chdir(tmp_path / "there")
                train(model, optimizers, 2, run.log)
            assert (run.stored, run.failures) == (4, 0)
    assert len(arrived(tmp_path / "here" / "runs.db")) == len(arrived(tmp_path / "team.db")) == 4
    assert not list((tmp_path / "there").iterdir())
    assert not list((tmp_path / "here" / "spool").iterdir())


def test_a_deleted_spool_is_replaced_by_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where somebody clears the folder while a run trains, it says so and goes on in a new file: later steps arrive."""
    model = Model()
    optimizers = sgd(model)
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        run = root_dash.watch(model, optimizers, server=server, token=WRITE, spool=folder, cadence=EVERY_STEP)
        train(model, optimizers, 3, run.log)
        while run.pending or len(arrived(tmp_path / "team.db")) < 3:
            time.sleep(0.01)
        shutil.rmtree(folder)
        train(model, optimizers, 3, run.log)
        run.close()
        assert (run.stored, run.lost) == (6, 0)
    frames = arrived(tmp_path / "team.db")
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert [event.kind for event in frames[3].events] == ["store"]
    assert "it goes on in another one" in capfd.readouterr().err
    with Store.open(tmp_path / "team.db") as store:
        assert len(store.runs()) == 1
        assert store.run(1).ended_at is not None


def test_a_spool_that_is_deleted_before_layers_come_says_so_in_the_next_frame(tmp_path: Path) -> None:
    """As where a frame finds it gone; the layers are in the new one."""
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        sink = remote_sink(RUN, LAYERS[:5], server, WRITE, folder)
        shutil.rmtree(folder)
        sink.extend(LAYERS[5:])
        sink.append(trained(0))
        sink.end(1.8e9, 0)
        sink.close()
    with Store.open(tmp_path / "team.db") as store:
        assert [replace(layer, id=0) for layer in store.layers(1)] == LAYERS
        assert "it goes on in another one" in store.events(1)[-1].text
        assert store.run(1).ended_at == 1.8e9
