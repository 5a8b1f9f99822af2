"""Frames to a server far away: all of them arrive, once, whatever happens to the server."""

from __future__ import annotations

import http.server
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import root_dash
from root_dash import recording, wire
from root_dash.monitor import delivery, remote, writer
from root_dash.monitor.delivery import Delivery, deliver, leftovers
from root_dash.monitor.mail import Mail, Refused, Unreachable
from root_dash.monitor.spools import hold
from root_dash.monitor.watch import Recorder
from root_dash.recording import sync
from root_dash.records import Attempt, Frame, Run
from root_dash.store import Store
from root_dash.store.spool import Spool
from tests.monitor.servers import WRITE, free_port, serving
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.frames import make_layers
from tests.store.test_frames import same_frames, trained

RUN = Run("u" * 32, "far away", 1.7e9, {"lr": 0.1}, {"masks": 3}, {"name": "ROOT"}, rank=1)
LAYERS = make_layers(6)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LINGER_SECONDS", 0.02)
    monkeypatch.setattr(remote, "PAUSE_SECONDS", (0.02, 0.1))


def left(folder: Path, frames: int = 4, *, end: bool = True, uid: str = "a" * 32) -> Path:
    """A spool that a trainer left behind."""
    folder.mkdir(exist_ok=True)
    with Store.create(folder / f"{uid}.db") as store:
        recording = store.begin(replace(RUN, uid=uid), LAYERS, Attempt(uid, 1.7e9, host="far"))
        for seq in range(frames):
            recording.append(trained(seq))
        if end:
            recording.end(1.8e9, 3)
    return folder / f"{uid}.db"


def arrived(path: Path, run: int = 1) -> list[Frame]:
    """All frames of a run in the server's database."""
    with Store.open(path) as store:
        return [store.frame(notice.id) for notice in store.frames(run)] if store.runs() else []


def remaining(folder: Path) -> list[str]:
    """What is still in the folder."""
    return sorted(path.name for path in folder.iterdir())


def send(folder: Path, server: str) -> list[int]:
    """Send what is left in the folder; the frames of each spool."""
    return [frames for _, frames in sync(folder, server, WRITE)]


def start(server: str, folder: Path, token: str = WRITE) -> Recorder:
    """Watch a model, train it for five steps, and leave the recorder open."""
    model = Model()
    optimizers = sgd(model)
    run = root_dash.watch(model, optimizers, server=server, token=token, spool=folder, name="far", cadence=EVERY_STEP)
    train(model, optimizers, 5, run.log)
    return run


@pytest.mark.parametrize("batch", [1, 2**22])
def test_a_spool_arrives_bit_for_bit(tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame a batch, since each is larger than a batch may be, or all in one; then the spool is deleted."""
    monkeypatch.setattr(delivery, "BATCH_BYTES", batch)
    left(tmp_path / "spool")
    with serving(tmp_path / "team.db") as (server, _, app):
        assert send(tmp_path / "spool", server) == [4]
        assert app.requests == (6 if batch == 1 else 3)
    assert all(map(same_frames, arrived(tmp_path / "team.db"), [trained(seq) for seq in range(4)]))
    assert remaining(tmp_path / "spool") == []
    with Store.open(tmp_path / "team.db") as store:
        run = store.run(1)
        assert (run.frames, run.ended_at, run.lost, run.rank) == (4, 1.8e9, 3 + 0 + 1 + 2 + 3, 1)
        assert store.attempt("a" * 32).host == "far"


def test_a_frame_that_is_too_large_travels_without_its_exact_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so; all else arrives, as do the frames after it."""
    small, large = trained(0, ["scalars"]), trained(1)
    monkeypatch.setattr(delivery, "FRAME_BYTES", len(wire.pack_frame(large)) - 1)
    folder = tmp_path / "spool"
    left(folder, 0, end=False)
    with Store.create(folder / f"{'a' * 32}.db") as store:
        recording = store.begin(replace(RUN, uid="a" * 32), LAYERS, Attempt("a" * 32, 1.7e9, host="far"))
        for frame in (large, replace(small, seq=2)):
            recording.append(frame)
    with serving(tmp_path / "team.db") as (server, _, _):
        assert send(folder, server) == [2]
    first, second = arrived(tmp_path / "team.db")
    assert all(not mask.packed for mask, _ in first.masks.values())
    masks = {at: (replace(mask, packed=large.masks[at][0].packed), found) for at, (mask, found) in first.masks.items()}
    assert "too large to be sent" in first.events[-1].text
    assert same_frames(replace(first, masks=masks, events=first.events[:-1]), large)
    assert same_frames(second, replace(small, seq=2))


def test_a_killed_trainers_run_ends_with_its_last_frame(tmp_path: Path) -> None:
    """All frames arrive, the run reads as ended then, and the spool goes; one that never began just goes."""
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


@pytest.mark.heavy
def test_only_a_trainer_that_is_dead_is_said_to_have_ended(tmp_path: Path) -> None:
    """While the process lives, `sync` leaves its run alone, also where it is stopped; once killed, it has ended."""
    script = (
        "import sys, time; from pathlib import Path; from tests.monitor.test_remote import start;"
        "run = start(sys.argv[1], Path(sys.argv[2]))\n"
        "while run.pending: time.sleep(0.01)\n"
        "print('stored', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        trainer = subprocess.Popen(
            [sys.executable, "-c", script, server, str(folder)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "stored\n"
        while len(arrived(tmp_path / "team.db")) < 5:
            time.sleep(0.01)
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
        run = start(server, tmp_path / "spool")
        run.close()
        assert (run.stored, run.lost, run.failures) == (5, 0, 0)
    frames = arrived(tmp_path / "team.db")
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5]
    assert all(len(frame.kinds) == 6 for frame in frames)
    with Store.open(tmp_path / "team.db") as store:
        assert store.run(1).ended_at is not None
    assert remaining(tmp_path / "spool") == []


def test_a_server_that_comes_later_gets_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody listens while the run trains; it is said once, as is that somebody does, and what waited arrives."""
    port = free_port()
    run = start(f"http://127.0.0.1:{port}", tmp_path / "spool")
    while run.pending:
        time.sleep(0.01)
    while "training goes on" not in capfd.readouterr().err:
        time.sleep(0.01)
    with serving(tmp_path / "team.db", port):
        # At once after it came up the sender may still have failed its last try: it goes on in the background.
        while len(arrived(tmp_path / "team.db")) < 5:
            time.sleep(0.01)
        run.close()
    assert [frame.step for frame in arrived(tmp_path / "team.db")] == [1, 2, 3, 4, 5]
    said = capfd.readouterr().err
    assert said == f"root-dash: http://127.0.0.1:{port} takes frames again: 5 waited\n"


def test_a_server_that_is_away_for_a_moment_is_not_spoken_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One try that fails, and the next one does not: neither that it went nor that it is back."""
    send, tries = Mail._send, list[str]()

    def fail_once(mail: Mail, method: str, path: str, message: bytes) -> object:
        tries.append(method)
        if len(tries) in (1, 3):
            raise Unreachable(f"{mail.server} cannot be reached")
        return send(mail, method, path, message)

    monkeypatch.setattr(Mail, "_send", fail_once)
    with serving(tmp_path / "team.db") as (server, _, _):
        start(server, tmp_path / "spool").close(20.0)
        while list((tmp_path / "spool").glob("*.db")):
            time.sleep(0.01)
    assert len(arrived(tmp_path / "team.db")) == 5
    said = capfd.readouterr().err
    assert "training goes on" not in said
    assert "takes frames again" not in said


def test_a_server_that_hangs_does_not_hold_the_training(tmp_path: Path) -> None:
    """While the server holds its first answer back all steps are trained and stored in the spool."""
    with serving(tmp_path / "team.db", held=True) as (server, gate, app):
        run = start(server, tmp_path / "spool")
        while app.requests == 0 or run.stored < 5:
            time.sleep(0.01)
        with Store.open(tmp_path / "team.db") as store:
            assert store.runs() == []
        gate.set()
        run.close()
    assert [frame.step for frame in arrived(tmp_path / "team.db")] == [1, 2, 3, 4, 5]


@pytest.mark.heavy
def test_what_is_not_sent_is_said_and_sent_by_the_next_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run that ends while the server is away says what waits where; the next run sends it beside its own."""
    port, folder = free_port(), tmp_path / "spool"
    script = (
        "import sys; from pathlib import Path; from tests.monitor.test_remote import start;"
        "start(sys.argv[1], Path(sys.argv[2])).close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, f"http://127.0.0.1:{port}", str(folder)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    (spool,) = folder.glob("*.db")
    assert f"5 frames are not at http://127.0.0.1:{port} yet" in result.stderr
    assert f"they are kept in {spool}, and `root-dash sync` or the next run sends them" in result.stderr
    with serving(tmp_path / "team.db", port) as (server, _, _):
        run = start(server, folder)
        run.close()
        while list(folder.glob("*.db")):
            time.sleep(0.01)
    with Store.open(tmp_path / "team.db") as store:
        assert sorted(run.frames for run in store.runs()) == [5, 5]


def test_a_wrong_token_is_said_once_and_keeps_the_spool(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The training goes on, and what was refused is there for a `sync` with the right one."""
    folder = tmp_path / "spool"
    with serving(tmp_path / "team.db") as (server, _, _):
        run = start(server, folder, token="wrong")  # noqa: S106 (none)
        run.close()
        said = capfd.readouterr().err
        assert said.count("refuses the frames (401: the write token is required)") == 2  # once, and at the end why
        assert (run.stored, run.failures) == (5, 0)
        assert len(list(folder.glob("*.db"))) == 1
        assert send(folder, server) == []  # the process still tries itself


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


def test_two_never_send_the_same_spool(tmp_path: Path) -> None:
    """While one holds a spool, also another process, nobody else gets it; a trainer that lives keeps its own."""
    path = left(tmp_path / "spool")
    held = hold(path)
    assert held is not None
    assert hold(path) is None
    script = (
        "import sys; from pathlib import Path; from root_dash.monitor.spools import hold;print(hold(Path(sys.argv[1])))"
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


def test_a_spool_that_is_full_loses_what_comes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the server away: the oldest frames stay, and are sent when it is back; the run tells of the others."""
    monkeypatch.setattr(remote, "SPOOL_BYTES", 300_000)
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


def test_layers_that_appear_later_arrive(tmp_path: Path) -> None:
    """The server is told of a layer before the first frame that names it."""
    path = tmp_path / f"{'a' * 32}.db"
    with serving(tmp_path / "team.db") as (server, _, _):
        mail, held = Mail(server, WRITE), hold(path, new=True)
        assert held is not None
        spool = Spool.create(path)
        recording = spool.begin(RUN, LAYERS[:1], Attempt("a" * 32, 1.7e9))
        delivery = Delivery(held, spool, mail)
        first = trained(0, ["statistics"])
        recording.append(replace(first, layers=first.layers[:1], statistics=first.statistics[:1]))
        while delivery.advance(ended=False):
            pass
        recording.extend(LAYERS[1:])
        recording.append(trained(1, ["statistics"]))
        recording.end(1.8e9)
        deliver(delivery)
        mail.close()
    assert [len(frame.layers) for frame in arrived(tmp_path / "team.db")] == [1, 6]
    with Store.open(tmp_path / "team.db") as store:
        assert [replace(layer, id=0) for layer in store.layers(1)] == LAYERS


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
        sink = recording._remote(RUN, LAYERS[:5], server, WRITE, folder)
        shutil.rmtree(folder)
        sink.extend(LAYERS[5:])
        sink.append(trained(0))
        sink.end(1.8e9, 0)
        sink.close()
    with Store.open(tmp_path / "team.db") as store:
        assert [replace(layer, id=0) for layer in store.layers(1)] == LAYERS
        assert "it goes on in another one" in store.events(1)[-1].text
        assert store.run(1).ended_at == 1.8e9


@contextmanager
def answering(status: int, content: bytes = b"", **headers: str) -> Iterator[str]:
    """A server of somebody else's that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "content", "headers", "error", "says"),
    [
        (503, b'{"detail": "busy"}', {"Retry_After": "7"}, Unreachable, "cannot take frames now .503: busy"),
        (507, b"", {"Retry_After": "soon"}, Unreachable, "507"),
        (429, b"[]", {"Retry_After": "99999"}, Unreachable, "429"),
        (200, b"<html>", {}, Unreachable, "answers as no root-dash does"),
        (200, b'{"attempt": "a"}', {}, Unreachable, "answers as no root-dash does"),
        (404, b"", {}, Refused, "no root-dash of this version"),
        (302, b"", {"Location": "http://127.0.0.1:1/"}, Refused, "302"),
        (401, b'{"detail": "the write token is required"}', {}, Refused, "401: the write token is required"),
        (409, b"", {}, Refused, "409"),
        (413, b"", {}, Refused, "413"),
        (422, b"\xff", {}, Refused, "422"),
    ],
)
def test_what_an_answer_means(
    status: int, content: bytes, headers: dict[str, str], error: type[Exception], says: str
) -> None:
    """A server that is busy or full is tried again, when it says so; one that refuses is not asked as often."""
    with answering(status, content, **headers) as server:
        mail = Mail(server, WRITE)
        with pytest.raises(error, match=says) as raised:
            mail.begin(b"x", "a" * 32)
        mail.close()
    asked = {"7": 7.0, "99999": 300.0}.get(headers.get("Retry_After", ""), 0.0)
    assert getattr(raised.value, "retry_after", 0.0) == asked
    assert remote._pause(0, raised.value) >= min(asked, 0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"server": "far:8050"}, "which begins with http:// or https://, got 'far:8050'"),
        ({"server": "far"}, "which begins with http:// or https://, got 'far'"),
        ({"server": "ftp://far"}, "which begins with http:// or https://, got 'ftp://far'"),
        ({"server": "http://:8050"}, "which names a host, got 'http://:8050'"),
        ({"server": "http://far :8050"}, "got 'http://far :8050'"),
        ({"server": "http://far:99999"}, "its port from 1 to 65535, got 'http://far:99999'"),
        ({"server": "http://far:-1"}, "its port from 1 to 65535, got 'http://far:-1'"),
        ({"server": "http://far:port"}, "got 'http://far:port'"),
        ({"server": "http://far:8050/api/v1"}, "without a path, got 'http://far:8050/api/v1'"),
        ({"server": "http://user:secret@far:8050"}, "without a user and password, got one that may hold a secret"),
        ({"server": "user:secret@far:8050"}, "which begins with http:// or https://, got one that may hold a secret"),
        ({"server": "http://user:secret@far:port"}, "got one that may hold a secret"),
        ({"server": "http://far:8050/?token=secret"}, "without a query or fragment: the token is an argument"),
        ({"server": "http://far:8050#secret"}, "without a query or fragment"),
        ({"server": "http://far:8050", "token": "a\nb"}, "token must be the write token"),
        ({"server": "http://far:8050", "token": None}, "server needs the write token"),
        ({"server": "http://far:8050", "db": "x.db"}, "give db or server, not both"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, str], says: str, tmp_path: Path) -> None:
    """An address that is none, or says more than where the server is and maybe a secret, and no token."""
    model = Model()
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        root_dash.watch(model, sgd(model), **{"token": WRITE, "spool": tmp_path / "spool", **arguments})  # type: ignore[arg-type]
    assert "secret" not in str(raised.value).replace("may hold a secret", "")
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "server", ["http://far:8050/", "http://far", "https://far", "http://[::1]:8050", "HTTP://Far:1"]
)
def test_an_address_that_says_where_the_server_is_is_taken(server: str) -> None:
    """With a slash at its end or without, a name or an address, and a port or none."""
    mail = Mail(server, WRITE)
    assert mail.server == server.rstrip("/")
    mail.close()
