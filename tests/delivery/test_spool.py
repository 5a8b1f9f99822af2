"""Spools on a trainer's disk: who sends them, how much they may hold, and when frames are removed."""

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
from functools import partial
from pathlib import Path

import pytest

import root_dash
from root_dash import wire
from root_dash.delivery.client import IngestClient, Unreachable
from root_dash.delivery.delivery import Delivery, deliver, leftovers
from root_dash.delivery.limits import DeliveryLimits
from root_dash.delivery.spool_lock import lock_spool
from root_dash.exceptions import StoreFull
from root_dash.monitor.writing.sink import Sink
from root_dash.monitor.writing.writer import WriterLimits
from root_dash.records import Attempt, Frame
from root_dash.sending import remote_sink
from root_dash.store import Limits, Store
from root_dash.store.spool import Spool
from tests.delivery.servers import WRITE, free_port, serving
from tests.delivery.spools import HASTY, LAYERS, RUN, arrived, far, left, send
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.frames import record
from tests.store.read.test_frames import same_frames, trained
from tests.waiting import until


def test_a_spool_that_cannot_be_opened_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A spool that disappears while the folder is read, and a spool whose lock cannot be made."""
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
    """A database of somebody, and a copy of a spool under another name, are neither sent nor deleted."""
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
    assert capfd.readouterr().err.count("the file holds runs, but not the attempt of its name") == 2


def test_two_never_send_the_same_spool(tmp_path: Path) -> None:
    """While somebody holds a spool, nobody else gets it, in any process; a living trainer keeps its own."""
    path = left(tmp_path / "spool")
    lock = lock_spool(path)
    assert lock is not None
    assert lock_spool(path) is None
    (tmp_path / "link").symlink_to(path.parent)
    assert lock_spool(tmp_path / "link" / path.name) is None
    script = (
        "import sys; from pathlib import Path; from root_dash.delivery.spool_lock import lock_spool;"
        "print(lock_spool(Path(sys.argv[1])))"
    )
    other = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(other, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout == "None\n"
    client = IngestClient("http://127.0.0.1:1", WRITE)
    assert list(leftovers(path.parent, client)) == []
    lock.release()
    lock.release()
    assert [delivery.path for delivery in leftovers(path.parent, client)] == [path]
    gone = path.with_name(f"{'c' * 32}.db")
    assert lock_spool(gone) is None
    client.close()


def test_a_server_that_lost_frames_gets_them_again(tmp_path: Path) -> None:
    """A server that lost acknowledged frames, or all frames, is noticed at the end, and gets them again."""
    path = left(tmp_path / "spool")
    with serving(tmp_path / "team.db") as (server, _, _):
        client = IngestClient(server, WRITE)
        lock = lock_spool(path)
        assert lock is not None
        delivery = Delivery(lock, Spool.create(path), client)
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
        client.close()
    assert [frame.seq for frame in arrived(tmp_path / "team.db")] == [0, 1, 2, 3]
    path = left(tmp_path / "spool")
    with serving(tmp_path / "new.db") as (server, _, _):
        assert send(tmp_path / "spool", server) == [4]
    assert len(arrived(tmp_path / "new.db")) == 4


def test_frames_that_the_server_has_for_good_are_removed(tmp_path: Path) -> None:
    """Frames are removed while the trainer goes on. Frames that the server may still lose are kept."""
    limits = DeliveryLimits(settled_bytes=3 * len(wire.pack_frame(trained(0))))
    path, port = tmp_path / f"{'a' * 32}.db", free_port()
    client, lock = IngestClient(f"http://127.0.0.1:{port}", WRITE), lock_spool(path, new=True)
    assert lock is not None
    spool = Spool.create(path)
    recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
    going = Delivery(lock, spool, client, limits)
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
    client.close()
    frames = arrived(tmp_path / "team.db")
    assert all(map(same_frames, frames, map(trained, range(40))))
    assert len(frames) == 40
    with Store.open(tmp_path / "team.db") as store:
        assert store.run(1).ended_at == 1.8e9
        assert len(store.history(store.layers(1)[0].id, "grad_norm").steps) == 40


def test_frames_that_the_server_may_still_lose_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server cannot write frames through to its disk, the spool keeps all of them until the server can."""
    path, end = tmp_path / f"{'a' * 32}.db", IngestClient.end

    def refuse(client: IngestClient, message: bytes, uid: str) -> None:
        raise Unreachable("507: the disk of the database is full")

    with serving(tmp_path / "team.db") as (server, _, _):
        client, lock = IngestClient(server, WRITE), lock_spool(path, new=True)
        assert lock is not None
        spool = Spool.create(path)
        recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
        for seq in range(3):
            recording.append(trained(seq))
        going = Delivery(lock, spool, client, DeliveryLimits(settled_bytes=1))
        monkeypatch.setattr(IngestClient, "end", refuse)
        assert going.advance(ended=False)
        assert going.advance(ended=False)
        for _ in range(3):
            with pytest.raises(Unreachable):
                going.advance(ended=False)
        assert len(arrived(tmp_path / "team.db")) == len(spool.frames(1)) == 3
        monkeypatch.setattr(IngestClient, "end", end)
        while going.advance(ended=False):
            pass
        assert [notice.seq for notice in spool.frames(1)] == [2]  # it says when the run ended, should nobody else
        going.close()
        client.close()


def test_a_full_spool_loses_later_frames_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """While the server is away the oldest frames stay, and are sent later. The run reports the lost frames."""
    limits = replace(HASTY, spool_bytes=300_000, settled_bytes=2**16)
    port, folder, model, said = free_port(), tmp_path / "spool", Model(), ""
    optimizers, address = sgd(model), f"http://127.0.0.1:{port}"
    run = far(model, optimizers, address, folder, limits, max_overhead=math.inf)
    (path,) = folder.glob("*.db")
    full = f"{path} is full: 0.3 MiB wait for {address}, and frames are lost until some frames are sent"
    while full not in said:
        train(model, optimizers, 1, run.log)
        while run.pending > 1 and full not in said:
            said += capfd.readouterr().err
            time.sleep(0.001)
    assert f"root-dash: recording waits, training goes on, it is tried again and again: {full}" in said
    run._writer.limits = WriterLimits(queue_bytes=2**17)
    while run.lost < 3:
        train(model, optimizers, 1, run.log)
    with Spool.open(path) as spool:
        kept = [frame.step for frame in spool.frames(1)]
        assert 300_000 <= spool.size() < 400_000
    assert kept == list(range(1, run.stored + 1))
    assert run.active
    with serving(tmp_path / "team.db", port):
        until(lambda: run.pending <= 1)
        train(model, optimizers, 5, run.log)
        run.close()
        assert not list(folder.glob("*.db"))
    assert (len(arrived(tmp_path / "team.db")), run.failures) == (run.stored, 0)
    assert run.stored + run.lost == run.step
    with Store.open(tmp_path / "team.db") as store:
        assert [frame.step for frame in store.frames(1)][: len(kept)] == kept
        assert store.run(1).lost == run.lost
        assert any(event.kind == "queue" and event.text.endswith(full) for event in store.events(1))


def test_a_spool_that_cannot_be_written_is_sent(tmp_path: Path) -> None:
    """If the spool cannot be written, its frames are sent all the same; they are removed once it can be written."""
    path = tmp_path / f"{'a' * 32}.db"
    with serving(tmp_path / "team.db") as (server, _, _):
        client, lock = IngestClient(server, WRITE), lock_spool(path, new=True)
        assert lock is not None
        spool = Spool.create(path, Limits(lock_seconds=0.01))
        recording = spool.begin(RUN, LAYERS, Attempt("a" * 32, 1.7e9))
        for seq in range(6):
            recording.append(trained(seq))
        going = Delivery(lock, spool, client, DeliveryLimits(settled_bytes=1, batch_frames=1))
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
        client.close()


def taken_by(sink: Sink, frame: Frame) -> bool:
    """Whether a sink had room for a frame."""
    try:
        sink.append(frame)
    except StoreFull:
        return False
    return True


def test_a_spool_that_filled_its_disk_goes_once_the_server_has_it(tmp_path: Path) -> None:
    """Nothing could be removed from it without room. It is deleted, and another spool takes the waiting frames."""
    port, folder = free_port(), tmp_path / "spool"
    sink = remote_sink(RUN, LAYERS, f"http://127.0.0.1:{port}", WRITE, folder, HASTY)
    (path,) = folder.glob("*.db")
    taken = sink._spool._connection.connection.cursor()  # type: ignore[attr-defined]
    taken.execute("PRAGMA max_page_count=200")  # to SQLite the disk is full then
    seq = 0
    with suppress(StoreFull):
        while True:
            sink.append(trained(seq))
            seq += 1
    assert seq > 1
    with pytest.raises(StoreFull):  # the server has none of it
        sink.append(trained(seq))
    with serving(tmp_path / "team.db", port):
        for late in (seq, seq + 1):
            until(partial(taken_by, sink, trained(late)))
        assert path not in folder.glob("*.db")
        assert len(list(folder.glob("*.db"))) == 1
        sink.end(1.8e9, 0)
        sink.close()
    assert not list(folder.iterdir())
    assert [frame.seq for frame in arrived(tmp_path / "team.db")] == list(range(seq + 2))
    with Store.open(tmp_path / "team.db") as store:
        assert [run.ended_at for run in store.runs()] == [1.8e9]


def test_a_full_spool_that_somebody_deletes_is_replaced(tmp_path: Path) -> None:
    """Its room is free again for later frames."""
    folder = tmp_path / "spool"
    limits = replace(HASTY, spool_bytes=left(tmp_path / "other", 0).stat().st_size + 2**15)
    sink = remote_sink(RUN, LAYERS, f"http://127.0.0.1:{free_port()}", WRITE, folder, limits)
    seq = 0
    with suppress(StoreFull):
        while True:
            sink.append(trained(seq))
            seq += 1
    assert seq > 0
    shutil.rmtree(folder)
    sink.append(trained(seq))
    sink.close()
    (other,) = folder.glob("*.db")
    assert [frame.seq for frame in arrived(other)] == [seq]


def test_a_spool_that_cannot_be_begun_is_not_left_behind(tmp_path: Path) -> None:
    """The spool and its lock are removed: repeated tries would fill the folder."""
    with pytest.raises(ValueError, match="a position each"):
        remote_sink(RUN, [LAYERS[0], LAYERS[0]], f"http://127.0.0.1:{free_port()}", WRITE, tmp_path / "spool")
    assert not list((tmp_path / "spool").iterdir())


def test_a_process_that_goes_elsewhere_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path keeps its meaning if the process changes its folder: for the database and for the spool."""
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
    """If somebody clears the folder while a run trains, the run says so and goes on in a new file."""
    model = Model()
    optimizers = sgd(model)
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        run = far(model, optimizers, server, folder)
        train(model, optimizers, 3, run.log)
        until(lambda: not run.pending and len(arrived(tmp_path / "team.db")) == 3)
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
    """The next frame says so, and the layers are in the new spool."""
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        sink = remote_sink(RUN, LAYERS[:5], server, WRITE, folder, HASTY)
        shutil.rmtree(folder)
        sink.extend(LAYERS[5:])
        sink.append(trained(0))
        sink.end(1.8e9, 0)
        sink.close()
    with Store.open(tmp_path / "team.db") as store:
        assert [replace(layer, id=0) for layer in store.layers(1)] == LAYERS
        assert "it goes on in another one" in store.events(1)[-1].text
        assert store.run(1).ended_at == 1.8e9
