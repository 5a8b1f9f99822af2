"""Views from the pyramid say what the rows say, whatever was recorded in whatever order."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from root_dash.records import CountArray, Frame, Histogram, Layer, Run, TensorName, histogram_edges, statistic_names
from root_dash.store import Limits, PyramidShape, Store
from root_dash.store.pyramid.summary import interval_of
from tests.store.frames import make_frame, make_layers, record

NAME = "grad_norm"
NAMES = statistic_names("statistics")


NARROW = Limits(pyramid=PyramidShape(tile=4, factor=2, levels=3, block=2, fine_buckets=1, buckets_per_point=2))
"""Buckets so small that a few frames reach every level, and blocks of two layers."""


values = st.one_of(
    st.floats(-9, 9, width=32), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -5.0, 5.0])
)  # few of them, so that magnitudes tie
appended = st.lists(
    st.tuples(st.integers(0, 45), st.lists(st.tuples(st.integers(0, 3), values), max_size=4, unique_by=lambda p: p[0])),
    max_size=25,
)
ascending = st.tuples(st.integers(0, 30), st.integers(0, 40), st.lists(values, min_size=3, max_size=3)).map(
    lambda drawn: [(drawn[0] + i, list(enumerate(drawn[2]))) for i in range(drawn[1])]
)
attempts = st.lists(st.tuples(st.booleans(), st.one_of(appended, ascending)), min_size=1, max_size=3)


def _raw(store: Store, layer_id: int) -> dict[int, float]:
    """The layer's values by step as the rows have them: the newest attempt's last frame counts."""
    with store._reader.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT l.step, l.{NAME} FROM layer_statistics l JOIN frames f ON f.id = l.frame_id"
                " WHERE l.layer_id = :layer ORDER BY l.step, f.attempt_id, f.id"
            ),
            {"layer": layer_id},
        )
        return {step: math.nan if value is None else value for step, value in rows}


def _agrees(store: Store) -> None:
    layers = store.layers(1)
    raw = {layer.id: _raw(store, layer.id) for layer in layers}
    for layer in layers:
        rows = raw[layer.id]
        whole = store.history(layer.id, NAME)
        assert whole.steps.tolist() == sorted(rows) == store.steps(layer.id, "statistics").tolist()
        assert np.array_equal(whole.values, [rows[step] for step in sorted(rows)], equal_nan=True)
        assert whole.total == len(rows)
        for points in (4, 8, 13):
            thin = store.history(layer.id, NAME, points)
            assert len(thin.steps) <= points
            assert thin.total == len(rows)
            assert np.all(np.diff(thin.steps) > 0)
            assert all(np.array_equal(rows[s], v, equal_nan=True) for s, v in zip(thin.steps, thin.values, strict=True))
            if rows:
                assert (thin.steps[0], thin.steps[-1]) == (min(rows), max(rows))
                held = [value for value in rows.values() if not math.isnan(value)]
                if held:
                    assert (np.nanmin(thin.values), np.nanmax(thin.values)) == (min(held), max(held))
    steps = sorted({step for rows in raw.values() for step in rows})
    for buckets in (1, 2, 5, 100):
        grid = store.grid(1, NAME, buckets)
        assert grid.shown == len(grid.starts) <= buckets
        assert grid.total == len(steps)
        bounds = np.column_stack([grid.starts, grid.ends]).ravel()
        assert np.all(np.diff(grid.starts) > 0)
        assert np.all(np.diff(bounds) >= 0)
        assert set(grid.starts.tolist()) | set(grid.ends.tolist()) <= set(steps)
        assert all(((grid.starts <= step) & (step <= grid.ends)).sum() == 1 for step in steps)
        for row, layer in enumerate(grid.layers):
            for start, end, value in zip(grid.starts, grid.ends, grid.values[row], strict=True):
                cell = [v for s, v in raw[layer.id].items() if start <= s <= end and not math.isnan(v)]
                expected = max(cell, key=lambda v: (abs(v), v)) if cell else math.nan
                assert np.array_equal(value, expected, equal_nan=True)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(attempts)
def test_views_agree_with_the_rows(tmp_path_factory: pytest.TempPathFactory, told: Any) -> None:
    """Steps out of order, twice, by several attempts, of changing layers, NaN and Inf: every view is the rows'."""
    path = tmp_path_factory.mktemp("run") / "x.db"
    with Store.create(path, NARROW) as store:
        for number, (ended, frames) in enumerate(told):
            layers = [Layer(f"layer {i}", (2, 2), "root", i) for i in range(3 + (number > 0))]
            recording = store.begin(Run("u", "a run", 1.0), layers)
            for seq, (step, of_layers) in enumerate(frames):
                chosen = sorted((at, value) for at, value in of_layers if at < len(layers))
                statistics = np.full((len(chosen), len(NAMES)), 1.0, np.float32)
                statistics[:, NAMES.index(NAME)] = [value for _, value in chosen]
                recording.append(Frame(seq, step, 1.0, np.array([at for at, _ in chosen], np.int64), statistics))
                if seq == len(frames) // 2:
                    _agrees(store)
            if ended:
                recording.end(1.0)
            recording.close()
            _agrees(store)


def _record_anew(place: Path | str, again: list[int], ended: bool) -> None:
    layers = make_layers(3)
    with Store.create(place, NARROW) as store:
        for attempt, steps in enumerate((range(32), again)):
            recording = store.begin(Run("u", "a run", 1.0), layers)
            for seq, step in enumerate(steps):
                level = -100.0 if attempt == 0 and step in again else 1 + step / 100
                statistics = np.full((3, len(NAMES)), level, np.float32)
                recording.append(Frame(seq, step, 1.0, np.arange(3), statistics))
                if attempt:
                    _agrees(store)
            if ended:
                recording.end(1.0)
            recording.close()
            _agrees(store)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("again", [[5], [31], [5, 14], list(range(3, 29)), [40, 2]])
def test_a_step_recorded_anew_changes_every_level(again: list[int], ended: bool, tmp_path: Path) -> None:
    """The extremes that an older attempt left behind are gone from all that covered them, at once."""
    _record_anew(tmp_path / "x.db", again, ended)


@pytest.mark.heavy
def test_a_step_recorded_anew_on_a_server(database: str) -> None:
    """So they are in PostgreSQL."""
    _record_anew(database, [5, 14], ended=True)


@pytest.mark.parametrize("steps", [3, 4, 5, 37, 64])
def test_a_mean_is_that_of_the_finite_values(steps: int, place: Path | str) -> None:
    """Over any number of levels a bucket's mean is that of its finite values: NaN and Inf do not poison it."""
    rng = np.random.default_rng(steps)
    numbers = rng.normal(size=steps).astype(np.float32)
    numbers[1], numbers[2] = np.nan, np.inf
    with Store.create(place, NARROW) as store:
        recording = store.begin(Run("u", "a run", 1.0), make_layers(1))
        for step, value in enumerate(numbers):
            frame = make_frame(step, step, make_layers(1), rng, ["statistics"])
            recording.append(replace(frame, statistics=np.full_like(frame.statistics, value)))
        recording.end(1.0)
        from root_dash.store.pyramid.fold import Pyramid

        with store._reader.connect() as connection:
            parts = Pyramid(connection, 1).summaries("statistics", 3, (NAME,))
        assert parts is not None
        for row, bucket in enumerate(parts.buckets):
            summary = parts.summaries[row]
            held = numbers[16 * bucket : 16 * (bucket + 1)]
            finite = held[np.isfinite(held)]
            assert summary.finite[0, 0] == len(finite)
            assert summary.mean[0, 0] == pytest.approx(finite.mean(dtype=np.float64), rel=1e-5)


def _held(counts: CountArray) -> dict[int, dict[TensorName, Histogram]]:
    return {1: {"gradient": Histogram(counts.copy())}}


def test_kinds_without_statistics_are_found_at_any_length(place: Path | str) -> None:
    """Histograms are spread over all of a long run, first and newest among them, and the newest attempt's count."""
    counts = np.zeros(len(histogram_edges()) - 1, np.uint32)
    with Store.create(place, NARROW) as store:
        for attempt, span in enumerate((range(60), range(50, 80))):
            recording = store.begin(Run("u", "a run", 1.0, cadence={"histograms": 2}), make_layers(2))
            for seq, step in enumerate(span):
                counts[7] = 100 * attempt + step
                held = _held(counts) if step % 2 == 0 else {}
                recording.append(Frame(seq, step, 1.0, histograms=held))
            recording.close()
        found = store.histograms(2, max_points=1000)
        assert found.steps.tolist() == list(range(0, 80, 2))
        assert found.counts[:, 7].tolist() == [step + 100 * (step >= 50) for step in range(0, 80, 2)]
        few = store.histograms(2, max_points=6)
        assert (len(few.steps), few.total) == (6, 40)
        assert few.steps[[0, -1]].tolist() == [0, 78]
        assert store.histograms(1).total == 0
        assert store.histogram(2, 55).counts[7] == 154


def test_an_interval_of_the_cadence_widens_the_buckets(place: Path | str) -> None:
    """A kind that is recorded every second step shares buckets as a kind that is recorded at every step."""
    path = record(place, 200, make_layers(2), cadence={"statistics": 1, "spectra": 2})
    with Store.open(path) as store, store._reader.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT kind, count(*), sum(steps) FROM pyramid WHERE level = 0 AND kind >= 0 GROUP BY kind"
        )
        assert [tuple(row) for row in rows] == [(0, 4, 200), (3, 2, 100)]
        assert store.grid(1, "sigma_max", 2).values[0].tolist() == [
            max(store.history(1, "sigma_max").values[:50]),
            max(store.history(1, "sigma_max").values[50:]),
        ]


@pytest.mark.parametrize(
    ("every", "interval"),
    [(5, 5), (0, 1), (-3, 1), (2.5, 2), (math.inf, 2**16), (-math.inf, 1), (math.nan, 1), ("x", 1)],
)
def test_any_cadence_is_an_interval(every: Any, interval: int) -> None:
    """Whatever a run's cadence says, its recordings can be stored and read."""
    assert interval_of("masks", {"masks": every}) == interval
