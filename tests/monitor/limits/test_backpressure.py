"""What a store that cannot keep up makes of the kinds that are due."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from root_dash.monitor.limits.backpressure import (
    Backpressure,
    describe_backpressure,
    leave_out,
    next_backpressure,
)
from root_dash.monitor.limits.budget import THINNED
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.writer import WriterLimits
from root_dash.records import KINDS, Frame, Kind, Layer
from tests.monitor.training import EVERY_STEP, Model, root, train
from tests.waiting import until


@pytest.mark.parametrize(("fill", "count"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.63, 2), (0.76, 3), (0.9, 4), (1.0, 4)])
def test_the_costly_kinds_go_first(fill: float, count: int) -> None:
    """From half of the room on, one after the other; the statistics and the scalars never."""
    assert next_backpressure(Backpressure(), fill).kinds == THINNED[:count]


def test_what_is_left_out_stays_so_until_the_queue_has_drained() -> None:
    """What is left out is counted by kind; a sentence tells when that begins and when it ends."""
    begun = next_backpressure(Backpressure(), 0.7)
    assert (
        describe_backpressure(Backpressure(), begun)
        == "frames wait to be stored: spectra, masks are left out until they are"
    )
    due: frozenset[Kind] = frozenset({"statistics", "masks"})
    for _ in range(3):
        kept, begun = leave_out(begun, due)
        assert kept == {"statistics"}
    assert next_backpressure(begun, 0.3) == next_backpressure(begun, 0.5) == begun
    assert describe_backpressure(begun, begun) is None
    over = next_backpressure(begun, 0.2)
    assert over == Backpressure()
    text = describe_backpressure(begun, over)
    assert text is not None
    assert text.endswith("left out were 0 of spectra, 3 of masks")


class SlowSink:
    """A sink that stores nothing before it is let."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.free = threading.Event()
        self.busy = threading.Event()
        self.lost = 0

    def append(self, frame: Frame) -> object:
        """Wait, then keep."""
        self.busy.set()
        self.free.wait()
        self.frames.append(frame)
        return None

    def extend(self, layers: Sequence[Layer]) -> object:
        """There are none."""
        raise AssertionError(layers)

    def end(self, time: float, lost: int) -> None:
        """Keep what is said last."""
        self.lost += lost

    def close(self) -> None:
        """Nothing to close."""


def test_a_slow_sink_costs_the_costly_kinds_then_frames_and_never_the_training() -> None:
    """While nothing is stored the queue fills and stays bounded; every recording left out and every frame is counted.

    Once the sink is free again everything is recorded, and the recording itself tells of both.
    """
    alone, model, sink = Model(), Model(), SlowSink()
    train(alone, root(alone), 60)
    optimizers = root(model)
    positions: dict[torch.Tensor, int] = {parameter: i for i, parameter in enumerate(model.parameters())}
    recorder = Recorder(
        optimizers,
        positions,
        lambda: sink,
        cadence=EVERY_STEP,
        outlier_quantile=0.9,
        max_overhead=1e9,
        writer_limits=WriterLimits(queue_bytes=2**20),
    )
    train(model, optimizers, 60, recorder.log)
    assert torch.equal(alone.square.weight, model.square.weight)
    until(sink.busy.is_set, "a frame that is being stored")
    assert sink.frames == []
    assert recorder.lost > 0
    assert recorder.left_out > 0
    assert recorder._writer.fill <= 1.0
    sink.free.set()
    until(lambda: recorder.pending <= 1)
    train(model, optimizers, 3, recorder.log)
    recorder.close()
    assert recorder.failures == 0
    assert recorder.stored + recorder.lost == 63
    assert sum(frame.lost for frame in sink.frames) + sink.lost == recorder.lost
    assert all("statistics" in frame.kinds for frame in sink.frames)
    assert set(sink.frames[0].kinds) == set(sink.frames[-1].kinds) == set(KINDS)
    assert "spectra" not in sink.frames[-4].kinds
    events = [event for frame in sink.frames for event in frame.events]
    assert {event.kind for event in events} == {"queue"}
    assert "are left out until they are" in events[0].text
    assert "all is recorded again" in events[-1].text
