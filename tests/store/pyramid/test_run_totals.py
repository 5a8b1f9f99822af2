"""What a list of runs says of their frames is what a plain count says, whatever was recorded, repeated or removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from root_dash.records import Frame, Run
from root_dash.store import Store, prune
from root_dash.store.admin.prune import repair
from tests.store.frames import make_layers

LAYERS = make_layers(1)
appends = st.tuples(
    st.just("append"),
    st.integers(0, 3),  # of which of two attempts at each of two runs
    st.integers(0, 9),  # its number: some come twice, some in another order
    st.integers(0, 2),  # how many were lost before it
)
prunes = st.tuples(st.just("prune"), st.integers(1, 6), st.sampled_from([(), (1,), (2,)]))
histories = st.lists(
    st.one_of(appends, appends, appends, prunes, st.sampled_from([("fail",), ("repair",)])), max_size=25
)


def _frame(attempt: int, seq: int, lost: int, **held: Any) -> Frame:
    step = 3 * attempt + seq
    return Frame(seq, step, 100.0 + step, scalars={"loss": 1.0}, lost=lost, **held)


def _count(store: Store) -> list[tuple[Any, ...]]:
    """Return the number of frames and of lost frames of each run, and the step and time of the frame stored last."""
    with store._reader.connect() as connection:
        return [
            tuple(row)
            for row in connection.exec_driver_sql(
                "SELECT r.id, count(f.id), coalesce(sum(f.lost), 0),"
                " (SELECT step FROM frames WHERE run_id = r.id ORDER BY id DESC LIMIT 1),"
                " (SELECT time FROM frames WHERE run_id = r.id ORDER BY id DESC LIMIT 1)"
                " FROM runs r LEFT JOIN frames f ON f.run_id = r.id GROUP BY r.id ORDER BY r.id"
            )
        ]


def _agrees(store: Store) -> None:
    expected = _count(store)
    said = [(run.id, run.frames, run.lost, run.last_step, run.last_time) for run in reversed(store.runs())]
    assert said == expected
    assert [store.run(run_id).frames for run_id, *_ in expected] == [frames for _, frames, *_ in expected]


def _live(place: Path | str, history: list[Any]) -> None:
    with Store.create(place) as store:
        attempts = [store.begin(Run(f"run-{at % 2}", "a run", float(at % 2)), LAYERS) for at in range(4)]
        stored: dict[tuple[int, int], Frame] = {}
        _agrees(store)
        for what, *how in history:
            if what == "append":
                attempt, seq, lost = how
                attempts[attempt].append(stored.setdefault((attempt, seq), _frame(attempt, seq, lost)))
            elif what == "prune":
                prune(place, keep_steps=how[0], runs=how[1], dry_run=False)
                stored.clear()  # what was removed may be stored again, with another loss
            elif what == "repair":
                repair(place)
            else:
                statistics = np.zeros((1, 1), np.float32)
                with pytest.raises(ValueError, match="statistics must have shape"):
                    attempts[0].append(_frame(0, 10, 5, layers=np.array([0]), statistics=statistics))
            _agrees(store)
        for attempt in attempts:
            attempt.end(200.0)
            attempt.close()
        _agrees(store)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(histories)
def test_totals_are_those_of_a_plain_count(tmp_path_factory: pytest.TempPathFactory, history: list[Any]) -> None:
    """Attempts in turns, frames twice, frames that fail, pruned runs: after each the totals are the frames'."""
    _live(tmp_path_factory.mktemp("runs") / "x.db", history)


@pytest.mark.heavy
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories)
def test_totals_are_those_of_a_plain_count_on_a_server(postgres: Any, history: list[Any]) -> None:
    """So they are in PostgreSQL."""
    url = postgres.create("with_tables")
    try:
        _live(url, history)
    finally:
        postgres.drop(url)


def test_frames_are_counted_where_there_is_no_total(place: Path | str) -> None:
    """A database that was recorded before there were totals says the same, and has one from its next frame on."""
    with Store.create(place) as store:
        recording = store.begin(Run("run-0", "a run", 0.0), LAYERS)
        for seq in range(5):
            recording.append(_frame(0, seq, seq))
        with store._writer.begin() as connection:  # type: ignore[union-attr]
            assert connection.exec_driver_sql("DELETE FROM pyramid WHERE kind = -1").rowcount == 1
        _agrees(store)
        recording.append(_frame(0, 5, 1))
        _agrees(store)
        with store._reader.connect() as connection:
            rows = connection.exec_driver_sql("SELECT frames, steps FROM pyramid WHERE kind = -1").all()
        assert [tuple(row) for row in rows] == [(6, 11)]
        recording.close()
