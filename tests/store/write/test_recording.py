"""Attempts and recordings: what may be appended, and the errors for what may not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import StoreError
from root_dash.records import (
    Attempt,
    Kind,
    Layer,
    Run,
)
from root_dash.store import Store
from tests.store.frames import CADENCE, make_frame, make_layers, record, same

RUN = Run("run-1", "a run", 1.7e9)


def test_a_resumed_run_is_a_new_attempt_that_wins(tmp_path: Path, place: Path | str) -> None:
    """Where two attempts recorded the same step the newer one counts, in every verb, and the older stays stored."""
    layers, cadence = make_layers(2), {kind: 2 for kind in CADENCE}
    path = record(place, 20, layers, cadence=cadence, seed=1)
    record(path, 20, layers, cadence=cadence, seed=2, start=10, end=False)
    only = record(tmp_path / "y.db", 20, layers, cadence=cadence, seed=2, start=10)
    with Store.open(path) as store, Store.open(only) as second:
        assert len(store.runs()) == 1
        assert store.run(1).frames == 40
        assert store.run(1).ended_at is None
        assert len(store.layers(1)) == 2
        for name in ("grad_norm", "sigma_max", "outlier_row_share"):
            history = store.history(1, name)
            assert history.steps.tolist() == list(range(0, 30, 2))
            assert np.array_equal(history.values[5:], second.history(1, name).values)
            assert np.array_equal(store.grid(1, name).values[:, 5:], second.grid(1, name).values)
        assert store.scalar(1, "loss").values[5:].tolist() == second.scalar(1, "loss").values.tolist()
        assert same(store.spectrum(1, 15), second.spectrum(1, 15))
        assert same(store.histogram(1, 18), second.histogram(1, 18))
        assert store.histogram(1, 9).step == 8
        assert store.histograms(1).steps.tolist() == list(range(0, 30, 2))
        assert np.array_equal(store.histograms(1).counts[5:], second.histograms(1).counts)
        assert same(store.spectra(1)[-1], second.spectra(1)[-1])


def test_a_resumed_run_may_not_change_its_layers_shapes(place: Path | str) -> None:
    """A layer of another shape under the same name is refused; a new layer is added."""
    path = record(place, 2, [Layer("a", (4, 4), "root", 0)])
    with Store.create(path) as store:
        with pytest.raises(ValueError, match=r"layer 'a' of the run has shape \[4, 4\], got \[4, 5\]"):
            store.begin(RUN, [Layer("a", (4, 5), "root", 0)])
        with pytest.raises(ValueError, match="a position each"):
            store.begin(RUN, [Layer("a", (4, 4), "root", 0), Layer("b", (4, 4), "root", 0)])
        store.begin(RUN, [Layer("a", (4, 4), "root", 0), Layer("b", (4, 4), "root", 1)]).close()
        assert [layer.name for layer in store.layers(1)] == ["a", "b"]


def test_the_end_of_an_earlier_attempt_is_not_the_runs(place: Path | str) -> None:
    """What was left of it may arrive while the run goes on, or after it has ended: the last attempt says when."""
    with Store.create(place) as store:
        early, late, last = (store.begin(RUN, [], Attempt(uid * 32, 1.7e9)) for uid in "abc")
        early.end(1.8e9)
        assert store.run(1).ended_at is None
        last.end(1.9e9)
        late.end(None)
        assert store.run(1).ended_at == 1.9e9
        assert [store.attempt(uid * 32).ended_at for uid in "abc"] == [1.8e9, None, 1.9e9]


def test_a_deleted_or_replaced_file_stops_the_recording(tmp_path: Path) -> None:
    """SQLite would write on into the unlinked file; the recording says that it is gone instead."""
    path, layers, rng = tmp_path / "x.db", make_layers(1), np.random.default_rng(1)
    with Store.create(path) as store:
        recording = store.begin(RUN, layers)
        recording.append(make_frame(0, 0, layers, rng))
        path.rename(tmp_path / "y.db")
        with pytest.raises(StoreError, match="deleted or replaced"):
            recording.append(make_frame(1, 1, layers, rng))
        recording.close()


def test_a_closed_recording_says_so(place: Path | str) -> None:
    """A recording that was closed, and a store that was opened for reading, take no frames."""
    path, kinds = place, list[Kind](["scalars"])
    with Store.create(path) as store:
        recording = store.begin(RUN, [])
        recording.close()
        recording.close()
        with pytest.raises(StoreError, match="is closed"):
            recording.append(make_frame(0, 0, [], np.random.default_rng(0), kinds))
    with Store.open(path) as store, pytest.raises(StoreError, match="not open for writing"):
        store.begin(RUN, [])


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    """The connections of an opened store refuse every change."""
    with Store.open(record(tmp_path / "x.db", 1)) as store, store._reader.connect() as connection:
        with pytest.raises(Exception, match="readonly"):
            connection.exec_driver_sql("DELETE FROM runs")


def test_a_forked_process_cannot_append(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording inherited by a forked data loader refuses to write: two processes on one connection corrupt it."""
    with Store.create(place) as store:
        recording = store.begin(RUN, make_layers(1))
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: -1)
            with pytest.raises(StoreError, match="forked process"):
                recording.append(make_frame(0, 0, recording.layers, np.random.default_rng(0)))
        recording.append(make_frame(0, 0, recording.layers, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("step", 2**63 - 1, "step must be within"),
        ("step", 1.5, "must be integers"),
        ("seq", 2**63, "64 bits"),
        ("time", math.nan, "time must be finite"),
    ],
)
def test_a_number_that_has_no_place_is_refused(field: str, value: Any, text: str, tmp_path: Path) -> None:
    """A frame that would make its whole run unreadable is a ValueError, and the frames after it are stored."""
    layers, rng = make_layers(1), np.random.default_rng(0)
    with Store.create(tmp_path / "x.db") as store:
        recording = store.begin(RUN, layers)
        with pytest.raises(ValueError, match=text):
            recording.append(replace(make_frame(0, 0, layers, rng), **{field: value}))
        recording.append(make_frame(1, 1, layers, rng))
        assert store.history(1, "grad_norm").steps.tolist() == [1]


def test_numbers_of_numpy_are_numbers(place: Path | str) -> None:
    """NumPy's integers are stored as such, not as the bytes that they lie in; names that are one as text are one."""
    layers, rng = make_layers(1), np.random.default_rng(0)
    frame = make_frame(0, 0, layers, rng, ["statistics", "histograms"])
    held = frame.histograms[0]["gradient"]
    numbers: dict[str, Any] = {"seq": np.int64(3), "step": np.int64(7), "time": np.float32(5)}
    nan: dict[str, Any] = {"nan": np.int64(4)}
    scalars = {"a\0": 1.0, "a\\x00": 2.0}
    frame = replace(frame, **numbers, histograms={0: {"gradient": replace(held, **nan)}}, scalars=scalars)
    with Store.create(place) as store:
        cursor = store.begin(RUN, layers).append(frame)
        stored = store.frame(cursor)
        assert (stored.seq, stored.step, stored.time, stored.scalars) == (3, 7, 5.0, {"a\\x00": 2.0})
        assert stored.histograms[0]["gradient"].nan == 4


def test_an_attempt_goes_on_beside_one_that_adds_layers(place: Path | str) -> None:
    """A bucket that a later attempt folded with more layers is opened again by an earlier one that knows fewer."""
    layers, rng = make_layers(3), np.random.default_rng(0)
    with Store.create(place) as store, Store.create(place) as other:
        first, second = store.begin(RUN, layers[:1]), other.begin(RUN, layers[:1])
        second.extend(layers[1:])
        for step in range(200):
            second.append(make_frame(step, step, layers, rng, ["statistics"]))
        first.append(make_frame(0, 0, layers[:1], rng, ["statistics"]))
        assert len(store.history(3, "grad_norm").steps) == 200
        assert store.grid(1, "grad_norm", 2).values.shape == (3, 2)
