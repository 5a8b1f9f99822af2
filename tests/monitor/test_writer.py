"""The writer's thread: what a sink that fails, waits or ends makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

import root_dash
from root_dash.exceptions import StoreBusy
from root_dash.monitor.cadence import Cadence
from root_dash.monitor.frames import Group
from root_dash.monitor.merging import Joined
from root_dash.monitor.watch import Recorder
from root_dash.monitor.writer import Writer
from root_dash.records import Frame, Layer
from tests.monitor.training import (
    EVERY_STEP,
    Model,
    OddOptimizer,
    root,
    step,
    train,
)


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
    recorder = Recorder(optimizers, positions, BrokenSink(), cadence=Cadence(), outlier_quantile=0.9)
    for index in range(20):
        recorder.log(loss=step(model, optimizers, index))
    recorder.close()
    assert (recorder.failures, recorder.stored, recorder.active) == (3, 0, False)
    assert recorder.lost >= 3
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert err.count("recording is off after 3 failures") == 1


class Endless(BrokenSink):
    """A sink that cannot be told of the end, as where another process holds the database; and a link beside it."""

    def __init__(self) -> None:
        self.closed = 0

    def end(self, time: float, lost: int) -> None:
        """Refuse."""
        raise StoreBusy("held by another process")

    def close(self) -> None:
        """Note that it was closed."""
        self.closed += 1

    def join(self, step: int, groups: Sequence[Group]) -> Joined:
        """Nobody to hear."""
        return Joined([])

    def abandon(self) -> None:
        """Nobody to wait for."""


def test_what_cannot_be_ended_is_closed_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """The sink lets go of its database, and the other processes hear that nothing more comes."""
    sink, link = Endless(), Endless()
    writer = Writer(sink, link)
    assert writer.close(60.0)
    assert (sink.closed, link.closed, writer.failures.count) == (1, 1, 1)
    assert "failed to end the recording" in capfd.readouterr().err


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
    recorder = Recorder(optimizers, positions, sink, cadence=Cadence(), outlier_quantile=0.9)
    train(model, optimizers, 10, recorder.log)
    assert (recorder.pending, recorder.active) == (10, True)
    sink.locked = False
    train(model, optimizers, 10, recorder.log)
    recorder.close()
    assert sink.steps == list(range(1, 21))
    assert (recorder.lost, recorder.failures, sink.lost) == (0, 0, 0)


def test_what_is_lost_at_the_end_is_said_so_in_the_store(tmp_path: Path) -> None:
    """No later frame can carry the count: the end of the run does."""
    model = Model()
    optimizers: list[Optimizer] = [OddOptimizer(model.parameters(), lr=1e-2)]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 10)
    (recorded,) = root_dash.open(tmp_path / "runs.db").runs()
    # Off after three failures: the steps after that were not even taken.
    assert recorded.lost == run.lost == 10 - run.step >= 6
