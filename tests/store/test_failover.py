"""A recording whose file is deleted or replaced goes on in another one, with what was recorded before."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from root_dash.exceptions import StoreFull, StoreMoved
from root_dash.records import Attempt, Layer, Run
from root_dash.store import Limits, Store
from root_dash.store.failover import FailoverRecording
from tests.store.frames import make_frame, make_layers, record

LAYERS = make_layers(3)


def begin(path: Path, said: list[str]) -> FailoverRecording:
    """Begin a recording with ten frames."""
    sink = FailoverRecording(Store.create(path), Run("run-1", "a run", 1.7e9), LAYERS, said.append)
    append(sink, 0, 10)
    return sink


def append(sink: FailoverRecording, start: int, stop: int) -> None:
    """Append the frames of these numbers."""
    for seq in range(start, stop):
        sink.append(make_frame(seq, seq + 1, LAYERS, np.random.default_rng(seq)))


def delete(path: Path) -> None:
    """Delete the file alone, as a file manager does."""
    path.unlink()


def delete_all(path: Path) -> None:
    """Delete the file and its log, as `rm runs.db*` does."""
    for file in path.parent.glob("runs.db*"):
        file.unlink()


def replace(path: Path) -> None:
    """Replace the file by another, closed database, as `mv other.db runs.db` does."""
    os.replace(record(path.with_name("other.db"), 3, uid="other"), path)


def replace_by_text(path: Path) -> None:
    """Replace the file by a text."""
    path.with_name("text").write_text("my notes")
    os.replace(path.with_name("text"), path)


@pytest.mark.parametrize("happen", [delete, delete_all, replace, replace_by_text])
def test_a_recording_goes_on_beside_its_file_with_all_frames(happen: Callable[[Path], None], tmp_path: Path) -> None:
    """The file at the path now stays as it is. The other file holds every frame, and an event says why it is there."""
    path, said = tmp_path / "runs.db", list[str]()
    sink = begin(path, said)
    happen(path)
    content = path.read_bytes() if path.exists() else None
    append(sink, 10, 15)
    sink.end(1.8e9)
    sink.close()
    assert (path.read_bytes() if path.exists() else None) == content
    (sentence,) = said
    assert f"{path} was deleted or replaced while it was being recorded to" in sentence
    assert f"it goes on in {path}.2" in sentence
    with sqlite3.connect(f"{path}.2") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with Store.open(f"{path}.2") as store:
        (run,) = store.runs()
        assert (run.uid, run.frames, run.last_step, run.ended_at) == ("run-1", 15, 15, 1.8e9)
        assert store.history(store.layers(run.id)[0].id, "grad_norm").steps.tolist() == list(range(1, 16))
        (event,) = store.events(run.id)
        assert (event.kind, event.step) == ("store", 11)
        assert sentence.endswith(event.text)


def test_a_recording_never_removes_the_log_of_a_later_one(tmp_path: Path) -> None:
    """Another trainer records under the same name while the first one, whose file is gone, goes on and ends."""
    path, said = tmp_path / "runs.db", list[str]()
    sink = begin(path, said)
    delete_all(path)
    with Store.create(path) as store:
        other = store.begin(Run("run-2", "another", 1.7e9), LAYERS)
        for seq in range(5):
            other.append(make_frame(seq, seq, LAYERS, np.random.default_rng(seq)))
        append(sink, 10, 11)
        sink.end(1.8e9)
        sink.close()
        del sink
        assert path.with_name("runs.db-wal").exists()
        other.append(make_frame(5, 5, LAYERS, np.random.default_rng(5)))
    with Store.open(path) as store:
        assert [(run.uid, run.frames) for run in store.runs()] == [("run-2", 6)]
    with Store.open(f"{path}.2") as store:
        assert [(run.uid, run.frames) for run in store.runs()] == [("run-1", 11)]


def test_it_may_happen_again_and_at_the_end(tmp_path: Path) -> None:
    """The numbers go on; layers that came later are taken along."""
    path, said = tmp_path / "runs.db", list[str]()
    sink = begin(path, said)
    delete(path)
    sink.extend([Layer("late.weight", (4, 4), "root", position=3)])
    delete(Path(f"{path}.2"))
    sink.end(1.8e9)
    sink.close()
    assert len(said) == 2
    with Store.open(f"{path}.3") as store:
        assert store.run(1).ended_at == 1.8e9
        assert [layer.name for layer in store.layers(1)] == [*(layer.name for layer in LAYERS), "late.weight"]


def test_a_copy_that_could_not_be_used_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full once all is copied: it is tried again in a file of the same name, and no copy is lost."""
    path, said = tmp_path / "runs.db", list[str]()
    sink = begin(path, said)
    delete(path)
    create = Store.create

    def fail(path: Path, *_: object) -> Store:
        monkeypatch.setattr(Store, "create", create)
        raise StoreFull(f"{path}: database or disk is full")

    monkeypatch.setattr(Store, "create", fail)
    with pytest.raises(StoreFull):
        append(sink, 10, 11)
    append(sink, 10, 11)
    sink.end(1.8e9)
    sink.close()
    assert [file.name for file in sorted(tmp_path.glob("*")) if not file.name.endswith(("-wal", "-shm"))] == [
        "runs.db.2"
    ]
    with Store.open(f"{path}.2") as store:
        assert (store.run(1).frames, store.run(1).ended_at) == (11, 1.8e9)


def test_a_recording_alone_stops_and_says_so(tmp_path: Path) -> None:
    """Nothing is written into a file that nobody can open again."""
    with Store.create(tmp_path / "runs.db") as store:
        recording = store.begin(Run("u", "run", 1.0), LAYERS)
        delete_all(tmp_path / "runs.db")
        with pytest.raises(StoreMoved, match="was deleted or replaced"):
            recording.append(make_frame(0, 1, LAYERS, np.random.default_rng(0)))
        with pytest.raises(StoreMoved):
            recording.end(2.0)


def test_dangers_for_the_database_are_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's disk, another process under a SQLite that two can damage, and a log that grows are said once each."""
    path, said = tmp_path / "runs.db", list[str]()
    with Store.create(path, Limits(log_bytes=10_000_000)) as store:
        there = Attempt("there", 1.0, pid=os.getppid(), host=platform.node())
        gone = Attempt("gone", 1.0, pid=2**22 + 1, host=platform.node())  # beyond what Linux gives
        far = Attempt("far", 1.0, pid=os.getppid(), host="elsewhere")
        for attempt in (there, gone, far):
            store.begin(Run(attempt.uid, attempt.uid, 1.0), LAYERS, attempt)
        for kind, sqlite_is_old in (("ext4", False), ("nfs4", False), ("ext4", True)):
            monkeypatch.setattr("root_dash.store.failover.filesystem", lambda path, kind=kind: kind)
            monkeypatch.setattr("root_dash.store.failover.sqlite_has_wal_reset_bug", lambda old=sqlite_is_old: old)
            sink = FailoverRecording(store, Run(f"{kind} {sqlite_is_old}", "run", 1.0), LAYERS, said.append)
            append(sink, 0, 3)
    monkeypatch.setattr("root_dash.store.failover.sqlite_has_wal_reset_bug", lambda: False)
    with Store.create(path, Limits(log_bytes=1000)) as small:
        sink = FailoverRecording(small, Run("log", "run", 1.0), LAYERS, said.append)
        append(sink, 0, 6)
        sink.end(2.0)
        events = [event.text for run in reversed(small.runs()) for event in small.events(run.id)]
    assert [f"root-dash: {text}" for text in sorted(events)] == sorted(said)
    network, twin, log = said
    assert f"{path} is on nfs4" in network
    assert f"process {os.getppid()} records to {path} too" in twin
    assert f"the write-ahead log of {path} has" in log
