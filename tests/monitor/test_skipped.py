"""Steps that are skipped or refused because of a gradient that is not finite are events of the recording."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler
from torch.optim import SGD

import root_dash
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.skipped import SkippedSteps, SkipReporter
from root_dash.optim.root import ROOT
from root_dash.records import Event
from tests.monitor.training import EVERY_STEP, Model


def events(
    path: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    steps: int,
    break_at: Callable[[int], bool],
    run_step: Callable[[], object],
    cadence: Cadence = EVERY_STEP,
) -> Sequence[Event]:
    """Train some steps, of which some have a NaN in two gradients; return the events."""
    with root_dash.watch(model, optimizer, db=path, name="test", cadence=cadence, max_overhead=math.inf) as run:
        for index in range(1, steps + 1):
            optimizer.zero_grad()
            model(torch.arange(12).view(3, 4)).square().mean().backward()
            for weight in (model.up.weight, model.down.weight) if break_at(index) else ():
                assert weight.grad is not None
                weight.grad[1, 1] = torch.nan
            run_step()
    assert (run.lost, run.failures) == (0, 0)
    with root_dash.open(path) as store:
        return [event for event in store.events(1) if event.kind in ("skip", "refused")]


def test_parameters_that_root_skips_are_named_at_their_step(tmp_path: Path) -> None:
    """By their names, once for both."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite="skip")
    (event,) = events(tmp_path / "runs.db", model, optimizer, 6, lambda index: index == 4, optimizer.step)
    assert (event.kind, event.step) == ("skip", 4)
    assert "up.weight" in event.text
    assert "down.weight" in event.text
    assert "square" not in event.text
    assert event.text.endswith("nonfinite='skip' found NaN or Inf in the gradient; 1 time so far")


def test_skips_of_which_no_frame_told_are_told_with_the_next() -> None:
    """The counts do not forget: the host reads them after two skipped steps, and after two more."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite="skip")
    skipped, reporter = SkippedSteps(optimizer, 0), SkipReporter()

    def told() -> list[str]:
        return reporter.texts({known: counts.numpy() for known, counts in skipped.counts()})

    for last in ("2 times so far", "4 times so far"):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.arange(12).view(3, 4)).square().mean().backward()
            assert model.up.weight.grad is not None
            model.up.weight.grad[1, 1] = torch.nan
            optimizer.step()
        assert [text.rpartition("; ")[2] for text in told()] == [last]
    assert told() == []


def test_skips_between_the_steps_of_the_cadence_are_told_at_their_own_step(tmp_path: Path) -> None:
    """The flight recorder records the steps from the first NaN on."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite="skip")
    cadence = Cadence(statistics=5, histograms=0, quantiles=0, spectra=0, masks=0)
    found = events(tmp_path / "runs.db", model, optimizer, 10, lambda index: index in (2, 3), optimizer.step, cadence)
    assert [(event.step, event.text.rpartition("; ")[2]) for event in found] == [
        (2, "1 time so far"),
        (3, "2 times so far"),
    ]


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_training_that_never_recovers_has_few_events(tmp_path: Path, nonfinite: str) -> None:
    """One at each power of two, although the program catches every error and goes on."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite=nonfinite)  # type: ignore[arg-type]

    def stubborn() -> None:
        try:
            optimizer.step()
        except FloatingPointError:
            pass

    found = events(tmp_path / "runs.db", model, optimizer, 40, lambda index: True, stubborn)
    assert 5 <= len(found) <= 6
    assert {event.kind for event in found} == {"skip" if nonfinite == "skip" else "refused"}


def test_skips_before_the_recording_are_not_told(tmp_path: Path) -> None:
    """A checkpoint has the counts of an earlier run."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite="skip")
    assert len(events(tmp_path / "first.db", model, optimizer, 3, lambda index: index == 2, optimizer.step)) == 1
    (event,) = events(tmp_path / "second.db", model, optimizer, 6, lambda index: index == 4, optimizer.step)
    assert (event.step, event.text.rpartition("; ")[2]) == (4, "1 time so far")


def test_a_refused_step_names_what_was_not_finite(tmp_path: Path) -> None:
    """The error leaves the `with` block; the event is stored all the same, at the step that was not taken."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), nonfinite="raise")
    with pytest.raises(FloatingPointError):
        events(tmp_path / "runs.db", model, optimizer, 6, lambda index: index == 4, optimizer.step)
    with root_dash.open(tmp_path / "runs.db") as store:
        (event,) = [event for event in store.events(1) if event.kind == "refused"]
    assert event.step == 4
    assert "up.weight" in event.text
    assert "no parameter was changed" in event.text


def test_a_fused_step_that_a_scaler_skips_is_an_event(tmp_path: Path) -> None:
    """The optimizer is called and told to change nothing."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1, fused=True)
    scaler = GradScaler("cpu", init_scale=1.0)

    def scaled() -> None:
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()

    (event,) = events(tmp_path / "runs.db", model, optimizer, 5, lambda index: index == 3, scaled)
    assert (event.kind, event.step) == ("skip", 3)
    assert event.text == "skipped the whole step: the GradScaler found NaN or Inf; 1 time so far"
