"""Whole frames come back as they were appended, and an attempt goes on after its last frame."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import AlreadyRecorded, NotRecorded
from root_dash.records import Attempt, Event, Frame, Histogram, Run, Spectrum
from root_dash.store import Store
from tests.store.frames import CADENCE, make_frame, make_layers, same

RUN = Run("run-1", "a run", 1.7e9, rank=2)
ATTEMPT = Attempt("a" * 32, 1.7e9, pid=7, host="far")


def at_its_step(record: Any, step: int) -> Any:
    """The record, those within it saying that step, as frames of the trainer do."""
    if isinstance(record, dict):
        return {key: at_its_step(value, step) for key, value in record.items()}
    if isinstance(record, tuple):
        return tuple(at_its_step(value, step) for value in record)
    return replace(record, step=step) if hasattr(record, "step") and not isinstance(record, Event) else record


def trained(seq: int, kinds: list[Any] | None = None) -> Frame:
    """A frame with what a trainer's holds: NaN, an infinity, an estimate, events, losses; step and seq differ."""
    rng, layers, step = np.random.default_rng(seq), make_layers(6), 10 + 3 * seq
    frame = make_frame(seq, step, layers, rng, list(CADENCE) if kinds is None else kinds)
    if len(frame.layers):
        frame.statistics[0, :2] = np.nan, np.inf
    spectra = dict(frame.spectra)
    for position, (spectrum, statistics) in frame.spectra.items():
        odd = np.frombuffer(b"\x01\x00\xc0\x7f\x00\x00\xa0\xff", np.float32)  # NaNs that carry bits of their own
        spectra[position] = Spectrum(odd, spectrum.base, spectrum.update[:0], estimated=True), statistics
    events = (Event("cadence", "thinner", step - 1, 1.5), Event("cadence", "thicker", step, 2.5))
    scalars = {**frame.scalars, "odd": float("nan")} if frame.scalars else {}
    whole = replace(frame, spectra=spectra, scalars=scalars, events=events if seq % 2 else (), lost=seq)
    parts = ("histograms", "quantiles", "spectra", "masks")
    return replace(whole, **{name: at_its_step(getattr(whole, name), step) for name in parts})


def same_frames(a: Frame, b: Frame) -> bool:
    """Whether two frames are equal bit for bit, in whatever order their mappings are."""

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        if isinstance(one, tuple):
            return len(one) == len(other) and all(map(equal, one, other))
        if isinstance(one, float):
            return np.float64(one).tobytes() == np.float64(other).tobytes()
        return same(one, other)

    return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Frame))


@pytest.mark.parametrize("kinds", [None, *([kind] for kind in CADENCE)])
def test_a_frame_comes_back_as_it_was_appended(place: Path | str, kinds: list[Any] | None) -> None:
    """All kinds together and each alone, bit for bit: NaNs, estimates, events, losses and costs."""
    frames = [trained(seq, kinds) for seq in range(4)]
    with Store.create(place) as store:
        recording = store.begin(RUN, make_layers(6))
        cursors = [recording.append(frame) for frame in frames]
        for cursor, frame in zip(cursors, frames, strict=True):
            assert same_frames(store.frame(cursor), frame)


def test_a_tensor_that_was_not_recorded_stays_away(place: Path | str) -> None:
    """A histogram of the gradient alone comes back alone."""
    layers = make_layers(1)
    frame = trained(0, ["histograms"])
    alone: dict[int, dict[Any, Histogram]] = {0: {"gradient": frame.histograms[0]["gradient"]}}
    with Store.create(place) as store:
        cursor = store.begin(RUN, layers).append(replace(frame, histograms=alone, events=()))
        assert store.frame(cursor).histograms[0].keys() == {"gradient"}
        with pytest.raises(NotRecorded, match="no frame 99"):
            store.frame(99)


def test_an_attempt_goes_on_after_a_restart(place: Path | str) -> None:
    """Begun again under its uid it is the same attempt, frames stored before are known, and the run's end stays."""
    layers = make_layers(6)
    for times in range(2):
        with Store.create(place) as store:
            recording = store.begin(RUN, layers, ATTEMPT)
            for seq in range(3 + times):
                recording.append(trained(seq))
            assert store.attempt(ATTEMPT.uid) == replace(ATTEMPT, run=1, last_seq=2 + times)
    with Store.create(place) as store:
        store.begin(RUN, layers, ATTEMPT).end(1.8e9, lost=5)
        store.begin(RUN, layers, ATTEMPT).close()
        assert (store.run(1).ended_at, store.run(1).rank, store.run(1).frames) == (1.8e9, 2, 4)
        assert store.attempt(ATTEMPT.uid).lost == 5
        store.begin(RUN, layers).close()  # another attempt, at which the run trains again
        assert store.run(1).ended_at is None
        with pytest.raises(AlreadyRecorded, match="at another run"):
            store.begin(replace(RUN, uid="run-2"), layers, ATTEMPT)
        assert len(store.runs()) == 1
        with pytest.raises(NotRecorded):
            store.attempt("b" * 32)


def test_another_frame_under_the_same_number_is_refused(place: Path | str) -> None:
    """The frame that is stored stays; the same again is no error."""
    with Store.create(place) as store:
        recording = store.begin(RUN, make_layers(6))
        cursor = recording.append(trained(1))
        assert recording.append(trained(1)) == cursor
        with pytest.raises(AlreadyRecorded, match="stored already as frame 1"):
            recording.append(replace(trained(1), step=99))
        assert same_frames(store.frame(cursor), trained(1))
