"""Frames in, records out."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.records import (
    STATISTICS,
    TENSORS,
    Frame,
    Histogram,
    Kind,
    Layer,
    Quantiles,
    Run,
    Spectrum,
    histogram_edges,
    statistic_names,
)
from root_dash.store import Store
from tests.store.frames import CADENCE, make_frame, make_layers, record, same

RUN = Run("run-1", "a run", 1.7e9)
PARTS: tuple[Kind, Kind] = ("statistics", "scalars")


def test_every_kind_comes_back_bit_for_bit(place: Path | str) -> None:
    """What a frame holds of each kind is what the store answers, with the step it was recorded at."""
    layers, rng = make_layers(6), np.random.default_rng(1)
    frame = make_frame(0, 7, layers, rng)
    with Store.create(place) as store:
        recording = store.begin(RUN, layers)
        recording.append(frame)
        for layer in recording.layers:
            position = layer.position
            for column, name in enumerate(statistic_names("statistics")):
                value = store.history(layer.id, name).values[0]
                assert np.array_equal(np.float32(value), frame.statistics[position, column], equal_nan=True)
            for tensor in TENSORS:
                expected = frame.histograms[position][tensor]
                assert same(store.histogram(layer.id, tensor=tensor), replace(expected, step=7))
                assert same(
                    store.quantiles(layer.id, tensor=tensor), replace(frame.quantiles[position][tensor], step=7)
                )
                history = store.histograms(layer.id, tensor)
                assert history.steps.tolist() == [7]
                assert same(history.counts[0], expected.counts)
            if layer.is_matrix:
                spectrum, by_spectrum = frame.spectra[position]
                mask, by_mask = frame.masks[position]
                assert same(store.spectrum(layer.id), replace(spectrum, step=7))
                assert same(store.spectra(layer.id)[0], replace(spectrum, step=7))
                assert same(store.mask(layer.id), replace(mask, step=7))
                found = store.statistics(layer.id)
                assert list(found) == [s.name for s in STATISTICS]
                assert {name: found[name] for name in by_spectrum} == by_spectrum
                assert found["outlier_row_share"] == by_mask["outlier_row_share"]
        assert store.scalar(1, "loss").values.tolist() == [frame.scalars["loss"]]
        recording.close()


def test_odd_numbers_come_back(place: Path | str) -> None:
    """NaN, infinities, denormals, empty spectra, a missing tensor and a map without its exact mask come back."""
    layers, rng = make_layers(1), np.random.default_rng(1)
    frame = make_frame(0, 0, layers, rng)
    odd = [math.nan, math.inf, -math.inf, 1e-45, -0.0, 3.4e38]
    statistics = np.resize(np.array(odd, np.float32), frame.statistics.shape)
    values = np.resize(np.array(odd, np.float32), 65)
    empty = np.empty(0, np.float32)
    mask, shares = frame.masks[0]
    frame = replace(
        frame,
        statistics=statistics,
        histograms={0: {"gradient": Histogram(np.zeros(515, np.uint32), nan=2**40, inf=3)}},
        quantiles={0: {"gradient": Quantiles(values, count=0)}},
        spectra={0: (Spectrum(values[1:], empty, empty), {"sigma_max": math.inf})},
        masks={0: (replace(mask, packed=b"", largest=mask.largest[:0], largest_values=empty), shares)},
        scalars={"a": math.nan, "b": math.inf},
    )
    with Store.create(place) as store:
        store.begin(RUN, layers).append(frame)
        found = store.statistics(1)
        for name, value in zip(statistic_names("statistics"), statistics[0].tolist(), strict=True):
            assert np.array_equal(found[name], value, equal_nan=True)
        assert found["sigma_max"] == math.inf
        assert math.isnan(found["polar_error"])
        assert (store.histogram(1).nan, store.histogram(1).inf) == (2**40, 3)
        assert store.quantiles(1).values.tobytes() == values.tobytes()
        assert same(store.spectrum(1), Spectrum(values[1:], empty, empty))
        assert store.mask(1).packed == b""
        assert store.mask(1).largest.shape == (0, 2)
        assert math.isnan(store.scalar(1, "a").values[0])
        assert store.scalar(1, "b").values[0] == math.inf
        for read in (store.histogram, store.quantiles):
            with pytest.raises(NotRecorded, match="layer 1 has no .* of the momentum yet"):
                read(1, tensor="momentum")
        assert store.histograms(1, "momentum").counts.shape == (0, 515)
        store.close()


def test_a_frame_stored_twice_is_stored_once(place: Path | str) -> None:
    """Storing the same seq again returns the same cursor and changes nothing."""
    layers, rng = make_layers(2), np.random.default_rng(1)
    with Store.create(place) as store:
        recording = store.begin(RUN, layers)
        first, second = (make_frame(seq, seq, layers, rng) for seq in range(2))
        cursors = [recording.append(frame) for frame in (first, second, first, replace(second, scalars={}))]
        assert cursors == [1, 2, 1, 2]
        assert store.run(1).frames == 2
        assert store.history(1, "grad_norm").steps.tolist() == [0, 1]
        recording.close()


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"masks": {9: make_frame(0, 0, make_layers(1), np.random.default_rng(0)).masks[0]}}, "names layer position 9"),
    ({"statistics": np.zeros((1, 3), np.float32)}, "statistics must have shape"),
    ({"layers": np.array([1, 1])}, "positions in layers must ascend, each once"),
    ({"histograms": {0: {"gradient": Histogram(np.zeros(3, np.uint32))}}}, "a histogram must have 515 counts"),
    (
        {"histograms": {0: {"gradient": Histogram(np.zeros(515, np.uint32), edges=histogram_edges() * 2)}}},
        "a histogram must have the edges of",
    ),
    ({"quantiles": {0: {"gradient": Quantiles(np.zeros(3, np.float32), 1)}}}, "quantiles must have 65"),
    ({"spectra": {0: (Spectrum(*(np.zeros(2, np.float32),) * 3), {"sigma": 1.0})}}, "no such statistic: sigma"),
]


@pytest.mark.parametrize(("fields", "text"), BROKEN)
def test_a_frame_is_stored_whole_or_not_at_all(fields: dict[str, Any], text: str, place: Path | str) -> None:
    """A frame that fails half-way leaves no row in any table, and the next one is stored."""
    layers, rng = make_layers(2), np.random.default_rng(1)
    with Store.create(place) as store:
        recording = store.begin(RUN, layers)
        frame = make_frame(0, 0, layers, rng)
        with pytest.raises(ValueError, match=text):
            recording.append(replace(frame, **fields))
        assert store.latest(1) is None
        assert store.scalar_names(1) == []
        with pytest.raises(NotRecorded):
            store.statistics(1)
        recording.append(frame)
        assert store.run(1).frames == 1
        recording.close()


def test_a_frame_that_sqlite_refuses_leaves_nothing(tmp_path: Path) -> None:
    """An error of the database itself in the middle of a frame rolls all of it back."""
    layers, rng = make_layers(2), np.random.default_rng(1)
    with Store.create(tmp_path / "x.db") as store:
        recording = store.begin(RUN, layers)
        with recording._connection.begin():  # type: ignore[union-attr]
            recording._connection.exec_driver_sql(  # type: ignore[union-attr]
                "CREATE TRIGGER full BEFORE INSERT ON masks BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        with pytest.raises(StoreError, match="disk is full"):
            recording.append(make_frame(0, 0, layers, rng))
        assert store.latest(1) is None
        assert store.history(1, "grad_norm").steps.tolist() == []
        recording.append(make_frame(0, 0, layers, rng, ["statistics"]))
        assert store.run(1).frames == 1
        recording.close()


def test_readers_beside_a_writing_thread(place: Path | str) -> None:
    """While one thread appends, others read whole frames without an error, and see all of them in the end."""
    path, layers = place, make_layers(3)
    steps = 150
    writer = Store.create(path)
    recording = writer.begin(RUN, layers)
    failures: list[BaseException] = []
    done = threading.Event()

    def write() -> None:
        try:
            rng = np.random.default_rng(0)
            for step in range(steps):
                recording.append(make_frame(step, step, layers, rng, ["statistics", "spectra", "scalars"]))
        except BaseException as error:
            failures.append(error)
        done.set()

    def read() -> None:
        try:
            while not done.is_set():
                grid = store.grid(1, "grad_norm", 10_000)
                assert not np.isnan(grid.values).any()  # a frame's layers appear together
                latest = store.latest(1)
                assert latest is None or store.spectrum(1, latest.step).step == latest.step
        except BaseException as error:
            failures.append(error)

    with Store.open(path) as store:
        threads = [threading.Thread(target=target) for target in (write, read, read, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.run(1).frames == steps
        assert store.grid(1, "grad_norm", 10_000).values.shape == (3, steps)
    recording.close()
    writer.close()


def test_runs_are_listed_newest_first_with_their_frames(place: Path | str) -> None:
    """A run comes back as it was described, with its frames counted and the lost ones beside them."""
    layers, rng = make_layers(1), np.random.default_rng(1)
    config = {
        "lr": 1e-3,
        "path": Path("a/b"),
        "nested": {1: [np.float32(0.5), np.int64(3), None, True]},
        "nan": math.nan,
    }
    run = Run("u-1", "grüße \ud800 \0", 100.0, config, {"statistics": 1}, {"name": "ROOT"})
    with Store.create(place) as store:
        recording = store.begin(run, layers)
        store.begin(Run("u-2", "newer", 200.0), [])
        recording.append(replace(make_frame(0, 5, layers, rng, ["statistics"], time=111.0), lost=3))
        recording.end(112.0)
        newer, older = store.runs()
        assert newer == Run("u-2", "newer", 200.0, id=2)
        assert (older.frames, older.lost, older.last_step, older.last_time, older.ended_at) == (1, 3, 5, 111.0, 112.0)
        assert older.name == "grüße \\ud800 \\x00"
        assert math.isnan(older.config.pop("nan"))  # type: ignore[attr-defined]
        assert older.config == {"lr": 1e-3, "path": repr(Path("a/b")), "nested": {"1": [0.5, 3, None, True]}}
        assert store.run(1).cadence == {"statistics": 1}
        assert recording.run.id == 1
        recording.close()


def test_layers_come_in_the_models_order_whatever_their_names(place: Path | str) -> None:
    """Layer names of any script, markup, quotes and emptiness come back in the model's order."""
    names = ["z.weight", "", "ü/../日本🦉", "<img src=x onerror=alert(1)>", "a'; DROP TABLE runs; --", "x" * 5000]
    layers = [Layer(name, (2, 3, 4), "root", position) for position, name in enumerate(names)]
    with Store.create(place) as store:
        recording = store.begin(RUN, list(reversed(layers)))
        stored = store.layers(1)
        assert [replace(layer, id=0) for layer in stored] == layers
        assert store.layer(stored[2].id) == stored[2]
        assert {layer.id for layer in recording.layers} == {layer.id for layer in stored}
        assert store.run_of(stored[2].id) == 1
        recording.close()


def test_what_does_not_exist_is_not_recorded(place: Path | str) -> None:
    """Unknown runs, layers, scalars and steps before the first recording raise NotRecorded in one sentence."""
    with Store.open(record(place, 30, start=10)) as store:
        for read in (store.run, store.layers, store.frames, store.latest, store.scalar_names):
            with pytest.raises(NotRecorded, match="there is no run 99"):
                read(99)
        for read_layer in (store.layer, store.run_of, store.histogram, store.mask, store.spectra, store.statistics):
            with pytest.raises(NotRecorded, match="there is no layer 99"):
                read_layer(99)
        with pytest.raises(NotRecorded, match="layer 1 has no spectrum at or before step 19"):
            store.spectrum(1, 19)
        with pytest.raises(NotRecorded, match="run 1 logged nothing of that name"):
            store.scalar(1, "accuracy")
        with pytest.raises(ValueError, match="no statistic of the name 'nope'"):
            store.history(1, "nope")
        with pytest.raises(ValueError, match="tensor must be one of gradient, momentum, got 'x'"):
            store.histogram(1, tensor="x")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="64 bits"):
            store.run(2**63)


def test_a_step_answers_with_the_latest_recording_before_it(place: Path | str) -> None:
    """At a step without a recording the one before it answers and says its own step; without a step the newest."""
    with Store.open(record(place, 45)) as store:
        assert [store.histogram(1, step).step for step in (0, 9, 10, 44, None)] == [0, 0, 10, 40, 40]
        assert [store.mask(1, step).step for step in (19, 20, None)] == [0, 20, 40]
        assert store.steps(1, "spectra").tolist() == [0, 20, 40]
        assert store.steps(1, "scalars").tolist() == list(range(45))
        at = store.statistics(1, 39)
        assert at["grad_norm"] == store.history(1, "grad_norm").values[39]
        assert at["sigma_max"] == store.history(1, "sigma_max").values[1]


def test_a_second_frame_of_a_step_may_hold_scalars_only(place: Path | str) -> None:
    """A later frame of the same step adds its scalars and hides nothing of the first."""
    layers, rng = make_layers(2), np.random.default_rng(1)
    with Store.create(place) as store:
        recording = store.begin(RUN, layers)
        recording.append(make_frame(0, 4, layers, rng, ["statistics"]))
        recording.append(Frame(1, 4, 1.0, scalars={"loss": 1.5}))
        recording.append(Frame(2, 4, 1.0, scalars={"loss": 2.5, "accuracy": 0.5}))
        assert [notice.kinds for notice in store.frames(1)] == [("statistics",), ("scalars",), ("scalars",)]
        assert store.history(1, "grad_norm").steps.tolist() == [4]
        assert store.scalar(1, "loss").values.tolist() == [2.5]
        assert store.scalar_names(1) == ["accuracy", "loss"]
        recording.close()


def test_frames_are_paged_by_cursor(place: Path | str) -> None:
    """Frames beyond a cursor come in the order of storing, and the newest is the latest."""
    path = record(place, 10)
    record(path, 5, uid="run-2", cadence={"statistics": 1})
    with Store.open(path) as store:
        assert [notice.id for notice in store.frames(1, after=4, limit=3)] == [5, 6, 7]
        assert [notice.id for notice in store.frames(2)] == [11, 12, 13, 14, 15]
        assert store.frames(1, after=10) == []
        latest = store.latest(2)
        assert latest is not None
        assert (latest.id, latest.run, latest.seq, latest.step, latest.kinds) == (15, 2, 4, 4, ("statistics",))


def test_histories_are_thinned_but_keep_their_extremes(place: Path | str) -> None:
    """With `max_points` a history keeps its ends and extremes, arrays are spread evenly."""
    with Store.open(record(place, 120, make_layers(1), cadence={kind: 1 for kind in CADENCE})) as store:
        whole, thin = store.history(1, "grad_norm"), store.history(1, "grad_norm", 20)
        assert len(whole.steps) == 120
        assert len(thin.steps) <= 20
        assert (thin.values.min(), thin.values.max()) == (whole.values.min(), whole.values.max())
        assert np.array_equal(whole.values[thin.steps], thin.values)
        assert store.scalar(1, "loss", 8).steps[[0, -1]].tolist() == [0, 119]
        assert store.histograms(1, max_points=7).steps[[0, -1]].tolist() == [0, 119]
        assert len(store.spectra(1, max_points=7)) == 7
        with pytest.raises(ValueError, match="max_points must be at least"):
            store.spectra(1, max_points=0)


def test_what_recording_cost_is_kept_by_step(place: Path | str) -> None:
    """The seconds of all frames of a step are added up. If it was trained again, the newest attempt counts."""
    layers = make_layers(1)
    with Store.create(place) as store:
        for first, costs in ((0, (1.0, 2.0, 3.0)), (2, (8.0, 9.0))):
            recording = store.begin(RUN, layers)
            for seq, seconds in enumerate(costs):
                for part, kind in enumerate(PARTS):
                    frame = make_frame(2 * seq + part, first + seq, layers, np.random.default_rng(0), [kind])
                    recording.append(replace(frame, cost=seconds / 4 * (1 + 2 * part)))
            recording.close()
        history = store.cost(recording.run.id)
        assert (history.steps.tolist(), history.values.tolist(), history.total) == ([0, 1, 2, 3], [1, 2, 8, 9], 4)
        with pytest.raises(NotRecorded, match="no run 9"):
            store.cost(9)


def test_a_grid_has_a_row_for_every_layer(place: Path | str) -> None:
    """The rows of a grid are the layers of the run, NaN without such a recording. An empty run has no columns."""
    path = record(place, 50, make_layers(5))
    with Store.create(path) as store:
        store.begin(Run("run-2", "empty", 0.0), make_layers(5))
        grid = store.grid(1, "sigma_max")
        assert [layer.name for layer in grid.layers] == [layer.name for layer in store.layers(1)]
        assert grid.starts.tolist() == grid.ends.tolist() == [0, 20, 40]
        assert np.isnan(grid.values[4]).all()
        assert not np.isnan(grid.values[:4]).any()
        thin = store.grid(1, "grad_norm", 20)
        assert (thin.shown, thin.total, thin.values.shape) == (17, 50, (5, 17))
        for i, layer in enumerate(grid.layers):
            assert np.array_equal(thin.values[i, 0], store.history(layer.id, "grad_norm").values[:3].max())
        empty = store.grid(2, "grad_norm")
        assert (empty.values.shape, empty.shown, empty.total) == ((5, 0), 0, 0)
        assert store.history(6, "grad_norm").steps.tolist() == []


def test_nothing_is_left_beside_a_closed_file(tmp_path: Path) -> None:
    """When the last writer closes, the write-ahead log is folded into the file: one file to copy."""
    record(tmp_path / "x.db", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
