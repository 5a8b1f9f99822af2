"""Retention: only what a rule names goes, only when it is meant, and the views follow."""

from __future__ import annotations

import math
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.records import KINDS
from root_dash.store import Store, examine, prune
from tests.postgresql import Server
from tests.store.admin.test_doctor import _bad
from tests.store.frames import CADENCE, Location, make_layers, record


def _two_runs(place: Location) -> Location:
    """Two runs of 200 steps, a frame a second."""
    record(place, 200, make_layers(3))
    return record(place, 200, make_layers(3), uid="run-2", seed=1)


@pytest.fixture(scope="module")
def recorded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs in a file, to be copied."""
    return _two_runs(tmp_path_factory.mktemp("recorded") / "x.db")


@pytest.fixture(scope="module")
def recorded_database(postgres: Server) -> str:
    """The runs in a database of a server, to be copied."""
    return _two_runs(postgres.create("with_tables"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """A copy of them, in either kind of database."""
    if request.param == "sqlite":
        yield Path(shutil.copy(request.getfixturevalue("recorded_file"), tmp_path / "x.db"))
        return
    server: Server = request.getfixturevalue("postgres")
    url = server.create(request.getfixturevalue("recorded_database").rpartition("/")[2])
    yield url
    server.drop(url)


def _content(path: Path | str) -> object:
    if isinstance(path, Path):
        return path.read_bytes()
    with Store.open(path) as store:
        return [store.frames(run.id) for run in store.runs()], store.history(1, "grad_norm").values.tolist()


def test_nothing_goes_by_default(path: Path | str) -> None:
    """Without a word to the contrary the rows are counted, and the file stays as it is."""
    content = _content(path)
    pruned = prune(path, keep_steps=150)
    assert (pruned.dry_run, pruned.frames) == (True, 100)
    assert pruned.rows["statistics"] == 300
    assert pruned.rows["histograms"] == 2 * 3 * 5
    assert _content(path) == content


@pytest.mark.parametrize("rule", [{"keep_steps": 70}, {"before": 1.7e9 + 130}])
def test_old_frames_go_whole(rule: dict[str, Any], path: Path | str) -> None:
    """By steps or by age, of one run: its newest 70 frames stay with all that they hold, and the other run's all."""
    with Store.open(path) as store:
        before = store.history(1, "grad_norm")
        spectra = store.steps(1, "spectra")
    counted = prune(path, **rule, runs=[1])
    pruned = prune(path, **rule, runs=[1], dry_run=False)
    assert pruned.rows == counted.rows
    assert (pruned.frames, counted.frames) == (130, 130)
    with Store.open(path) as store:
        assert [run.frames for run in store.runs()] == [200, 70]
        after = store.history(1, "grad_norm")
        assert after.steps.tolist() == list(range(130, 200))
        assert np.array_equal(after.values, before.values[130:])
        assert store.grid(1, "grad_norm").total == 70
        assert store.steps(1, "spectra").tolist() == [step for step in spectra if step >= 130]
        assert store.scalar(1, "loss").steps[0] == 130
        assert store.history(4, "grad_norm").total == 200
    assert _bad(examine(path)) == []
    assert prune(path, **rule, runs=[1]).frames == 0


def test_kinds_go_alone(path: Path | str) -> None:
    """With kinds the frames stay, and say that they no longer hold these."""
    pruned = prune(path, kinds=["masks", "scalars"], keep_steps=100, dry_run=False)
    assert (pruned.frames, set(pruned.rows)) == (0, {"masks", "scalars"})
    with Store.open(path) as store:
        assert store.run(1).frames == 200
        assert store.steps(1, "masks").tolist() == list(range(100, 200, CADENCE["masks"]))
        assert store.history(1, "outlier_row_share").steps.tolist() == store.steps(1, "masks").tolist()
        assert store.scalar(1, "loss").steps.tolist() == list(range(100, 200))
        assert len(store.steps(1, "spectra")) == 10
        assert set(store.frames(1)[0].kinds) == set(KINDS) - {"masks", "scalars"}
    assert _bad(examine(path)) == []


def test_a_vacuum_gives_the_space_back(path: Path | str) -> None:
    """The file shrinks with it, and does not without."""
    kept = prune(path, keep_steps=20, dry_run=False)
    assert kept.bytes_after >= kept.bytes_before
    small = prune(path, keep_steps=20, dry_run=False, vacuum=True)
    assert small.bytes_after < small.bytes_before / 2
    assert _bad(examine(path)) == []


def test_a_rule_is_needed(path: Path | str) -> None:
    """No rule, an unknown kind, no steps, no time and an unknown run are refused before anything is removed."""
    for arguments, text in (
        ({}, "prune needs a rule"),
        ({"kinds": ["spectrum"]}, "kinds must be among"),
        ({"keep_steps": 0}, "keep_steps must be at least 1, got 0"),
        ({"before": math.nan}, "before must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=text):
            prune(path, **arguments, dry_run=False)
    with pytest.raises(NotRecorded, match="there is no run 9"):
        prune(path, keep_steps=1, runs=[9], dry_run=False)
    with Store.open(path) as store:
        assert store.run(1).frames == 200


def test_to_count_writes_nothing(tmp_path: Path) -> None:
    """What would be removed is counted also while another process holds the write lock."""
    path = record(tmp_path / "x.db", 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert prune(path, keep_steps=5).frames == 15
        with pytest.raises(ValueError, match="64 bits"):
            prune(path, keep_steps=2**70)
        other.execute("ROLLBACK")


def test_an_error_of_a_vacuum_says_that_the_frames_were_removed(tmp_path: Path) -> None:
    """What was to be removed is, and the error says so."""
    path = record(tmp_path / "x.db", 200)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        with pytest.raises(StoreError, match="the frames were removed, but their room was not given back"):
            prune(path, keep_steps=190, dry_run=False, vacuum=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with Store.open(path) as store:
        assert store.run(1).frames == 190
