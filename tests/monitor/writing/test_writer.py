"""The writer's thread: what a sink that fails, waits or ends makes of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

import root_dash
from root_dash.exceptions import StoreBusy, StoreError, StoreFull
from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.ranks.merge import Joined
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.writer import Writer
from root_dash.records import Frame, Layer
from tests.monitor.training import (
    EVERY_STEP,
    Model,
    OddOptimizer,
    root,
    step,
    train,
)
from tests.store.recorders import impatient
from tests.waiting import until


class BrokenSink:
    """A sink whose disk is gone."""

    def append(self, frame: Frame) -> object:
        """Fail as a full disk does."""
        raise OSError("no space left on device")

    def extend(self, layers: Sequence[Layer]) -> object:
        """There are none."""
        raise AssertionError(layers)

    def end(self, time: float, lost: int) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to close."""


def test_a_failing_sink_is_shown_once_and_given_up_after_three(capfd: pytest.CaptureFixture[str]) -> None:
    """Training goes on to the end; every frame that could not be stored is counted."""
    model = Model()
    optimizers = root(model)
    positions: dict[torch.Tensor, int] = {parameter: i for i, parameter in enumerate(model.parameters())}
    recorder = Recorder(optimizers, positions, BrokenSink, cadence=Cadence(), outlier_quantile=0.9, max_overhead=1e9)
    for index in range(20):
        recorder.log(loss=step(model, optimizers, index))
    recorder.close()
    assert (recorder.failures, recorder.stored, recorder.active) == (3, 0, False)
    assert recorder.lost >= 3
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert err.count("recording is off after 3 failures") == 1


class Endless(BrokenSink):
    """A sink whose end fails, as if another process held the database; and a link beside the sink."""

    def __init__(self, error: StoreError) -> None:
        self.error = error
        self.tried = self.closed = 0

    def end(self, time: float, lost: int) -> None:
        """Refuse."""
        self.tried += 1
        raise self.error

    def close(self) -> None:
        """Note that it was closed."""
        self.closed += 1

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """Nobody to hear."""
        return Joined([])

    def abandon(self) -> None:
        """Nobody to wait for."""


def test_what_cannot_be_ended_is_closed_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """The sink lets go of its database, and the other processes hear that nothing more comes."""
    sink, link = (Endless(StoreBusy("held by another process")) for _ in range(2))
    writer = Writer(sink, link)
    assert writer.close(2.0)
    assert (sink.closed, link.closed, writer.failures.count) == (1, 1, 1)
    said = capfd.readouterr().err
    assert said.count("recording waits") == 1
    assert said.count("failed to end the recording") == 1


def test_a_disk_that_is_full_at_the_end_holds_nobody_up() -> None:
    """Nobody empties it while a process ends: one try, however long the patience."""
    sink = Endless(StoreFull("database or disk is full"))
    writer = Writer(sink)
    assert writer.close(60.0)
    assert (sink.tried, sink.closed, writer.failures.count) == (1, 1, 1)


class LockedSink:
    """A sink whose database another process holds for a while."""

    def __init__(self) -> None:
        self.locked = True
        self.steps: list[int] = []
        self.lost: int | None = None

    def append(self, frame: Frame) -> object:
        """Refuse while locked, as SQLite does."""
        if self.locked:
            raise StoreBusy("held by another process")
        self.steps.append(frame.step)
        return None

    def extend(self, layers: Sequence[Layer]) -> object:
        """There are none."""
        raise AssertionError(layers)

    def end(self, time: float, lost: int) -> None:
        """Keep what is said last."""
        self.lost = lost

    def close(self) -> None:
        """Nothing to close."""


def test_a_store_that_is_busy_is_waited_for_off_the_training_thread() -> None:
    """However often it refuses: nothing is lost while the queue has room, and recording goes on by itself."""
    model = Model()
    optimizers = root(model)
    sink = LockedSink()
    positions: dict[torch.Tensor, int] = {parameter: i for i, parameter in enumerate(model.parameters())}
    recorder = Recorder(optimizers, positions, lambda: sink, cadence=Cadence(), outlier_quantile=0.9, max_overhead=1e9)
    train(model, optimizers, 10, recorder.log)
    assert (recorder.pending, recorder.active) == (10, True)
    sink.locked = False
    train(model, optimizers, 10, recorder.log)
    recorder.close()
    assert sink.steps == list(range(1, 21))
    assert (recorder.lost, recorder.failures, sink.lost) == (0, 0, 0)


def test_a_database_that_is_held_at_the_end_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another process has it when the recording is closed, for many tries: what waits is stored, and the run ends."""
    path, model = tmp_path / "runs.db", Model()
    optimizers = root(model)
    run = impatient(path, model, optimizers, 0.02)
    train(model, optimizers, 2, run.log)
    until(lambda: run.pending <= 1)
    hog = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    hog.execute("BEGIN IMMEDIATE")
    train(model, optimizers, 5, run.log)
    closing = threading.Thread(target=run.close)
    closing.start()
    until(lambda: "recording waits" in capfd.readouterr().err, "a try to store that failed")
    closing.join(0.6)  # further tries
    assert closing.is_alive()
    hog.execute("ROLLBACK")
    closing.join()
    hog.close()
    assert (run.stored, run.lost, run.failures) == (7, 0, 0)
    with root_dash.open(path) as store:
        assert store.run(1).ended_at is not None
        assert "nothing could be stored for" in store.events(1)[0].text


def test_an_end_that_there_is_no_time_for_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All frames are stored, and another process holds the database for longer than `close` may take."""
    path, model = tmp_path / "runs.db", Model()
    optimizers = root(model)
    run = impatient(path, model, optimizers, 60)
    train(model, optimizers, 2, run.log)
    until(lambda: not run.pending)
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    run.close(0.1)
    hog.close()
    run._writer._thread.join()
    assert (run.stored, run.pending, run.lost) == (2, 0, 0)
    said = capfd.readouterr().err
    assert said == "root-dash: all frames are stored, but the end of the recording was not waited for\n"


def test_an_end_that_is_refused_at_first_is_said_again() -> None:
    """If only the end meets the lock, it is tried again, and keeps the time at which training ended."""

    class Held(LockedSink):
        def append(self, frame: Frame) -> object:
            """Take it."""
            self.steps.append(frame.step)
            return None

        def end(self, time: float, lost: int) -> None:
            """Refuse three times."""
            times.append(time)
            if len(times) < 4:
                raise StoreBusy("held by another process")
            self.lost = lost

    times: list[float] = []
    sink = Held()
    writer = Writer(sink)
    writer.count_lost()
    assert writer.close(60.0)
    assert (len(times), len(set(times)), sink.lost, writer.failures.count) == (4, 1, 1, 0)


def test_what_is_lost_at_the_end_is_said_so_in_the_store(tmp_path: Path) -> None:
    """No later frame can carry the count: the end of the run does."""
    model = Model()
    optimizers: list[Optimizer] = [OddOptimizer(model.parameters(), lr=1e-2)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 10)
    (recorded,) = root_dash.open(tmp_path / "runs.db").runs()
    # Off after three failures: the steps after that were not even taken.
    assert recorded.lost == run.lost == 10 - run.step >= 6
