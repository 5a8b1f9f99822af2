"""What is due at a step: the cadence, thinned to the budget, and what was asked for."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import root_dash
from root_dash.monitor.limits.budget import Charge
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.pace import Pace
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.sink import NullSink
from root_dash.records import Frame, Kind
from tests.monitor.training import EVERY_STEP, MATRICES, Model, adamw, layers_of, root, step, train
from tests.waiting import until


def test_a_budget_that_cannot_be_kept_thins_every_kind_and_says_so(tmp_path: Path) -> None:
    """Recording never costs nothing: of a hundred and more steps the later ones are recorded less often."""
    path = tmp_path / "runs.db"
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=path, cadence=EVERY_STEP, max_overhead=1e-12) as run:
        train(model, optimizers, 120, run.log)
        # Bills come in when the writer has stored their frames; a step more settles what has come in by now.
        until(lambda: run.pending <= 1)
        train(model, optimizers, 5, run.log)
        thinned, overhead = run.cadence, run.overhead
    assert all(interval > 1 for interval in asdict(thinned).values())
    assert overhead > 0
    assert (run.lost, run.failures) == (0, 0)
    store = root_dash.open(path)
    (recorded,) = store.runs()
    events = store.events(recorded.id)
    assert {event.kind for event in events} == {"cadence", "budget"}
    assert "statistics every" in events[0].text
    steps = store.steps(layers_of(store)["square.weight"].id, "statistics").tolist()
    first = next(event.step for event in events)
    assert steps[: first - 1] == list(range(1, first))  # as asked until then
    assert not set(range(first + 1, first + 3)) <= set(steps)


def test_an_infinite_budget_records_every_step(tmp_path: Path) -> None:
    """However much it costs."""
    path = tmp_path / "runs.db"
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=path, cadence=EVERY_STEP, max_overhead=math.inf) as run:
        train(model, optimizers, 120, run.log)
        assert run.cadence == EVERY_STEP
    store = root_dash.open(path)
    assert store.steps(layers_of(store)["square.weight"].id, "masks").tolist() == list(range(1, 121))


def test_what_all_kinds_need_is_charged_to_the_lightest_that_is_due() -> None:
    """Seconds of no kind's own: with histograms alone they are the histograms', with nothing due the sentinels'."""
    cases: list[tuple[frozenset[Kind], Charge]] = [
        (frozenset({"statistics", "histograms"}), "statistics"),
        (frozenset({"histograms", "spectra"}), "histograms"),
        (frozenset(), "sentinels"),
    ]
    for due, charged in cases:
        pace = Pace(EVERY_STEP, 0.03)
        list(pace.settle(frozenset(), 1))
        pace.meter.charge("spectra", 0.25)
        pace.spent = 1.0
        assert list(pace.settle(due, 2)) == []
        assert pace.budget.costs == {"spectra": 0.25, charged: 0.75}


def test_what_is_logged_in_parts_still_waits_for_what_the_writer_takes() -> None:
    """A second `log` in a step is no reason to settle the first one's frame before it is stored."""
    held = threading.Event()

    class Held(NullSink):
        def append(self, frame: Frame) -> object:
            return held.wait()

    model = Model()
    optimizers = root(model)
    positions: dict[torch.Tensor, int] = {parameter: place for place, parameter in enumerate(model.parameters())}
    with Recorder(optimizers, positions, Held, cadence=EVERY_STEP, outlier_quantile=0.9) as run:
        for index in range(6):
            run.log(loss=step(model, optimizers, index))
            run.log(accuracy=0.5)
        known = run.overhead
        held.set()
    assert known == 0


def test_what_is_gathered_before_a_step_is_charged_to_a_kind_that_is_due(tmp_path: Path) -> None:
    """If statistics are never due, the histograms are charged: the budget leaves out a kind that is never due."""
    model = Model()
    optimizers = adamw(model)
    cadence = Cadence(statistics=0, histograms=1, quantiles=0, spectra=0, masks=0)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=cadence) as run:
        train(model, optimizers, 6, run.log)
        until(lambda: run.pending <= 1)
        train(model, optimizers, 1)
        assert set(run._pace.budget.costs) == {"histograms"}


@pytest.mark.parametrize(
    ("value", "error"),
    [(0.0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("1 %", TypeError)],
)
def test_what_is_no_budget_is_refused(value: Any, error: type[Exception], tmp_path: Path) -> None:
    """Before anything is recorded."""
    model = Model()
    with pytest.raises(error, match="max_overhead must be"):
        root_dash.watch(model, root(model), db=tmp_path / "runs.db", max_overhead=value)
    assert not (tmp_path / "runs.db").exists()


def test_masks_are_captured_on_demand(tmp_path: Path) -> None:
    """`capture_masks` adds the exact masks of the next step alone, also if the cadence has no masks."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=Cadence(masks=0)) as run:
        train(model, optimizers, 2, run.log)
        run.capture_masks()
        train(model, optimizers, 2, run.log)
    with root_dash.open(tmp_path / "runs.db") as store:
        layer = layers_of(store)[MATRICES[0]]
        assert store.steps(layer.id, "masks").tolist() == [3]
        assert store.mask(layer.id).dense().mean() == pytest.approx(store.statistics(layer.id, 3)["outlier_fraction"])
        assert store.outlier_counts(layer.id).recorded == 1
