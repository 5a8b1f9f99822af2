"""Verdicts that are stored with the frames: those of a replay, whoever stored the frames, and at no frame's cost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.health import RULES, Health, replay
from root_dash.records import Attempt, Frame, Run
from root_dash.records.verdict import Changes, Verdict, rule_numbers
from root_dash.store import Limits, PyramidShape, Store, export, prune
from tests.health.synthetic import COLUMN, layers, run
from tests.store.recorded import unpacked

LIMITS = Limits(state_frames=16, pyramid=PyramidShape(tile=4, factor=2, levels=3, block=2, fine_buckets=1))
RUN = Run("u", "a run", 1.0)
LAYERS = layers(8)


def sicken(step: int, numbers: Any) -> None:
    """Let one layer explode for a while, one die for good, and one have NaNs once."""
    if 50 <= step < 90:
        numbers[2, COLUMN["grad_norm"]] *= 40
    if step >= 70:
        numbers[5, COLUMN["grad_norm"]] = 0
    if step == 60:
        numbers[1, COLUMN["grad_nan"]] = 3


FRAMES = run(LAYERS, 110, sicken)


def append(place: Path | str, frames: Sequence[Frame], attempt: str = "a", limits: Limits = LIMITS) -> list[Verdict]:
    """Store frames as a process would that begins the attempt or goes on; return the verdicts of the run."""
    with Store.create(place, limits, judge=Health) as store:
        recording = store.begin(RUN, LAYERS, Attempt(attempt, 1.0))
        for frame in frames:
            recording.append(frame)
        return store.verdicts(1)


def test_stored_verdicts_are_those_of_a_replay(place: Path | str) -> None:
    """Also those of the frames as they are read back; and the newest state is not older than the limit says."""
    expected = replay(LAYERS, FRAMES)
    assert {verdict.rule for verdict in expected} >= {"gradient-explosion", "dead-layer", "non-finite-gradient"}
    assert append(place, FRAMES) == expected
    with Store.open(place) as store:
        assert store.is_judged(1)
        assert replay(store.layers(1), [store.frame(notice.id) for notice in store.frames(1)]) == expected
        assert store.verdicts(1, after=1, limit=1) == expected[1:2]
        with store._reader.connect() as connection:
            (state,) = connection.exec_driver_sql("SELECT frame_id FROM judge_states").one()
        assert len(FRAMES) - LIMITS.state_frames < state <= len(FRAMES)


@settings(max_examples=12)
@given(
    cuts=st.lists(st.integers(1, len(FRAMES) - 1), max_size=4),
    every=st.sampled_from([1, 2, 3]),
    gaps=st.sets(st.integers(0, len(FRAMES) - 1), max_size=20),
    state_frames=st.sampled_from([1, 5, 16, 1000]),
)
def test_whoever_appends_the_verdicts_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], every: int, gaps: set[int], state_frames: int
) -> None:
    """At any cadence, whatever frames are lost, wherever the process is killed, and whenever a state was stored."""
    kept = [frame for at, frame in enumerate(FRAMES) if at % every == 0 and at not in gaps]
    place = tmp_path_factory.mktemp("cut") / "x.db"
    bounds = sorted({0, *(cut for cut in cuts if cut < len(kept)), len(kept)})
    found: list[Verdict] = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        found = append(place, kept[start:end], limits=replace(LIMITS, state_frames=state_frames))
    assert found == replay(LAYERS, kept)


@pytest.mark.parametrize("turn", [1, 7])
def test_two_stores_in_turn_give_the_same_verdicts(place: Path | str, turn: int) -> None:
    """Each goes on with its own fold, and takes over the frames that the other stored."""
    with Store.create(place, LIMITS, judge=Health) as one, Store.create(place, LIMITS, judge=Health) as other:
        recordings = [store.begin(RUN, LAYERS, Attempt(uid, 1.0)) for store, uid in ((one, "a"), (other, "b"))]
        for at, frame in enumerate(FRAMES):
            recordings[at // turn % 2].append(frame)
        assert one.verdicts(1) == replay(LAYERS, FRAMES)
        assert one.is_judged(1)


APPENDING = """
import sys
from pathlib import Path
from tests.store.write.test_judging import FRAMES, LAYERS, LIMITS, RUN
from root_dash.health import Health
from root_dash.records import Attempt
from root_dash.store import Store
recording = Store.create(Path(sys.argv[1]), LIMITS, judge=Health).begin(RUN, LAYERS, Attempt("a", 1.0))
for frame in FRAMES:
    recording.append(frame)
    print(frame.seq, flush=True)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("at", [10, 75])
def test_a_killed_process_leaves_the_verdicts_of_its_frames(tmp_path: Path, at: int) -> None:
    """And whoever goes on with the attempt gives the verdicts of the whole run."""
    path = tmp_path / "x.db"
    with subprocess.Popen([sys.executable, "-c", APPENDING, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= at:
                process.kill()
                break
    with Store.open(path) as store:
        stored = store.run(1).frames
        assert stored >= at
        assert store.verdicts(1) == replay(LAYERS, FRAMES[:stored])
    assert append(path, FRAMES[stored:]) == replay(LAYERS, FRAMES)


def test_layers_that_come_later_and_other_positions_change_nothing(tmp_path: Path) -> None:
    """An attempt may count the layers otherwise; the verdicts name the same layers."""
    few = [without(frame, 6) if frame.step < 40 else frame for frame in FRAMES]
    expected = replay(LAYERS, few)
    with Store.create(tmp_path / "x.db", LIMITS, judge=Health) as store:
        first = store.begin(RUN, LAYERS[:6])
        for frame in few[:60]:
            if frame.step == 40:
                first.extend(LAYERS[6:])
            first.append(frame)
        turned = [replace(layer, position=7 - layer.position) for layer in LAYERS]
        second = store.begin(RUN, turned)
        for frame in few[60:]:
            second.append(replace(frame, statistics=frame.statistics[::-1].copy()))
        assert store.verdicts(1) == expected


def without(frame: Frame, count: int) -> Frame:
    """Return a frame of the first layers alone."""
    return replace(frame, layers=frame.layers[:count], statistics=frame.statistics[:count])


def test_the_worst_severity_and_its_rule_are_seen_at_any_length(tmp_path: Path) -> None:
    """In the rows, and in the pyramid, where the rule is the one of the worst severity."""
    health, scores, rules = Health(LAYERS), [], []
    for frame in FRAMES:
        health.update(frame)
        scores.append(health.scores.copy())
        rules.append(health.worst_rules.copy())
    worst = np.stack(scores, 1)
    append(tmp_path / "x.db", FRAMES)
    with Store.open(tmp_path / "x.db", LIMITS) as store:
        layer = store.layers(1)[2].id
        assert np.array_equal(store.history(layer, "severity").values, worst[2])
        assert rule_numbers(store.history(layer, "severity_rule").values).tolist() == [row[2] for row in rules]
        for buckets in (200, 8):
            severity, rule = (store.grid(1, name, buckets) for name in ("severity", "severity_rule"))
            for column, (start, end) in enumerate(zip(severity.starts, severity.ends, strict=True)):
                span = worst[:, start - 1 : end]
                assert np.array_equal(severity.values[:, column], span.max(1))
                for slot in np.flatnonzero(span.max(1) > 1).tolist():
                    at = [start - 1 + i for i, score in enumerate(span[slot]) if score >= span[slot].max() - 1 / 16]
                    assert rule_numbers(rule.values[slot, column : column + 1])[0] in {rules[i][slot] for i in at}


def test_a_frame_that_could_not_be_stored_is_judged_once(tmp_path: Path) -> None:
    """If the same frame is given again; and if it is not, the fold has never seen it."""
    path, lost = tmp_path / "x.db", 70
    with Store.create(path, replace(LIMITS, lock_seconds=0.01), judge=Health) as store:
        recording = store.begin(RUN, LAYERS)
        for at, frame in enumerate(FRAMES):
            if at % 9 == 0 or at == lost:
                with refusing(path), pytest.raises(StoreError, match="no room"):
                    recording.append(frame)
            if at != lost:
                recording.append(frame)
        assert store.verdicts(1) == replay(LAYERS, [frame for at, frame in enumerate(FRAMES) if at != lost])


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Let the database refuse what is stored last of a frame."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TRIGGER t BEFORE UPDATE ON pyramid BEGIN SELECT RAISE(ABORT, 'no room'); END")
    connection.execute("CREATE TRIGGER u BEFORE INSERT ON pyramid BEGIN SELECT RAISE(ABORT, 'no room'); END")
    connection.commit()
    try:
        yield
    finally:
        connection.execute("DROP TRIGGER t")
        connection.execute("DROP TRIGGER u")
        connection.commit()
        connection.close()


class Failing(Health):
    """A fold that fails at a step."""

    def update(self, frame: Frame) -> Changes:
        """Fail, or do as the fold does."""
        if frame.step == 80:
            raise RuntimeError("a mistake")
        return super().update(frame)


def test_a_fold_that_fails_costs_no_frame_and_is_said_once(tmp_path: Path) -> None:
    """The verdicts so far stay; the run is not taken as judged; and the next process judges what is left."""
    path = tmp_path / "x.db"
    with Store.create(path, LIMITS, judge=Failing) as store:
        recording = store.begin(RUN, LAYERS)
        for frame in FRAMES[:100]:
            recording.append(frame)
        assert store.run(1).frames == 100
        assert store.verdicts(1) == replay(LAYERS, FRAMES[:79])
        assert not store.is_judged(1)
        (event,) = store.events(1)
        assert (event.kind, event.step) == ("diagnosis", 80)
        assert "RuntimeError: a mistake" in event.text
    assert append(path, FRAMES[100:], "b") == replay(LAYERS, FRAMES)


def test_a_run_without_diagnosis_is_judged_when_it_goes_on(tmp_path: Path) -> None:
    """Unless that would take long: then an event says so, and nothing is judged."""
    for most in (1000, 50):
        path = tmp_path / f"{most}.db"
        with Store.create(path, LIMITS) as store:
            recording = store.begin(RUN, LAYERS)
            for frame in FRAMES[:60]:
                recording.append(frame)
            assert store.verdicts(1) == []
            assert not store.is_judged(1)
        found = append(path, FRAMES[60:], "b", replace(LIMITS, judged_again=most))
        with Store.open(path) as store:
            assert store.is_judged(1) == (most == 1000)
            assert [event.step for event in store.events(1)] == ([] if most == 1000 else [61])
        assert found == (replay(LAYERS, FRAMES) if most == 1000 else [])


def test_a_state_of_another_version_is_judged_anew(tmp_path: Path) -> None:
    """As if no state were stored."""
    path = tmp_path / "x.db"
    append(path, FRAMES[:80])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE judge_states SET content = x'00', size = 1")
    connection.commit()
    connection.close()
    assert append(path, FRAMES[80:]) == replay(LAYERS, FRAMES)


def test_what_was_judged_again_is_not_lost_with_its_transaction(tmp_path: Path) -> None:
    """If frames without diagnosis are judged in a transaction that fails, they are judged in the next one."""
    path = tmp_path / "x.db"
    with Store.create(path, LIMITS, judge=Health) as store, Store.create(path, LIMITS) as blind:
        recording, other = store.begin(RUN, LAYERS, Attempt("a", 1.0)), blind.begin(RUN, LAYERS, Attempt("b", 1.0))
        for frame in FRAMES[:40]:
            recording.append(frame)
        for frame in FRAMES[40:100]:
            other.append(frame)
        with refusing(path), pytest.raises(StoreError, match="no room"):
            recording.append(FRAMES[100])
        for frame in FRAMES[100:]:
            recording.append(frame)
        assert store.verdicts(1) == replay(LAYERS, FRAMES)


def test_what_changed_is_listed_by_its_frame(tmp_path: Path) -> None:
    """Whoever asks for what changed since a cursor has the verdicts' present form in the end; and is told of each."""
    told: list[Changes] = []
    known: dict[int, Verdict] = {}
    with Store.create(tmp_path / "x.db", LIMITS, judge=Health) as store:
        recording, seen = store.begin(RUN, LAYERS, tell=told.append), 0
        for at, frame in enumerate(FRAMES):
            cursor = recording.append(frame)
            if at % 5 == 0:
                known |= {verdict.id: verdict for verdict in store.changed_verdicts(1, seen, cursor)}
                assert [known[number] for number in sorted(known)] == store.verdicts(1)
                seen = cursor
    health = Health(LAYERS)
    assert told == [health.update(frame) for frame in FRAMES]


def test_a_database_of_before_has_no_verdicts(tmp_path: Path) -> None:
    """Read as it is, in a file that lacks the tables, and after they were made."""
    path = unpacked("schema-3.db", tmp_path / "old.db")
    for make in (False, True):
        if make:
            Store.create(path).close()
        with Store.open(path) as store:
            assert store.verdicts(1) == store.changed_verdicts(1, 0, 10**6) == []
            assert not store.is_judged(1)
            assert export(path, tmp_path / "out.csv", "verdicts").rows == 0
            with pytest.raises(NotRecorded):
                store.verdicts(99)


def test_no_verdict_of_a_run_is_left_out(tmp_path: Path) -> None:
    """Thousands are read as one list: a fault after the first thousand is still shown."""
    path = tmp_path / "x.db"
    found = append(path, FRAMES)
    connection = sqlite3.connect(path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(verdicts)") if row[1] != "number"]
    connection.execute(
        f"WITH RECURSIVE numbers(number) AS (SELECT 1000 UNION ALL SELECT number + 1 FROM numbers WHERE number < 3000) "
        f"INSERT INTO verdicts(number, {', '.join(columns)}) SELECT numbers.number, {', '.join(columns)} "
        f"FROM verdicts JOIN numbers WHERE verdicts.number = 1"
    )
    connection.commit()
    connection.close()
    with Store.open(path) as store:
        assert len(store.verdicts(1)) == len(found) + 2001


def test_verdicts_go_with_their_frames(place: Path | str) -> None:
    """A verdict that ended goes with the frame that ended it; what lasts stays; without frames nothing is left."""
    before = append(place, FRAMES)
    first = min(verdict.since for verdict in before if verdict.until is None)
    prune(place, keep_steps=2, dry_run=False)
    with Store.open(place) as store:
        assert store.verdicts(1) == [verdict for verdict in before if verdict.until is None]
        assert store.verdicts(1)[0].since == first
        assert store.is_judged(1)
    again = append(place, run(LAYERS, 112, sicken)[110:], "b")
    assert {verdict.id for verdict in again} >= {verdict.id for verdict in before if verdict.until is None}
    prune(place, before=1e9, dry_run=False)
    with Store.open(place) as store, store._reader.connect() as connection:
        assert store.verdicts(1) == []
        for table in ("judge_states", "judged"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0


def test_verdicts_are_exported(tmp_path: Path) -> None:
    """A row for each, with the name of its layer."""
    verdicts = append(tmp_path / "x.db", FRAMES)
    export(tmp_path / "x.db", tmp_path / "out.csv", "verdicts")
    header, *rows = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "run,run_name,number,layer,rule,severity,since,until,text,evidence,under"
    assert len(rows) == len(verdicts)
    assert rows[0].startswith(f"1,a run,1,blocks.{verdicts[0].layer}.weight,{verdicts[0].rule},")


@pytest.mark.parametrize(
    "change",
    ["severity = 'grave'", "evidence = '{\"a\": 1}'", "candidates = '[99]'", "layer_id = 99", "evidence = '['"],
)
def test_a_damaged_verdict_is_an_error_of_the_store(tmp_path: Path, change: str) -> None:
    """And names the verdict."""
    path = tmp_path / "x.db"
    append(path, FRAMES)
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE verdicts SET {change} WHERE number = 1")
    connection.commit()
    connection.close()
    with Store.open(path) as store, pytest.raises(StoreError, match="verdict 1 of run 1 in the database is damaged"):
        store.verdicts(1)


def test_numbers_of_rules_never_change() -> None:
    """Databases hold them: a rule that is new comes after these."""
    assert RULES[:11] == (
        "none", "gradient-explosion", "gradient-collapse", "outlier-entries", "heavy-tails", "outlier-energy",
        "dead-rows", "update-jump", "update-collapse", "absolute", "non-finite-gradient",
    )  # fmt: skip
    assert len(set(RULES)) == len(RULES) <= 128
