"""Files of older schemas: migrated with all that they hold, or left as they were."""

from __future__ import annotations

import gzip
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import StoreBusy, StoreForeign
from root_dash.records import KINDS, TENSORS, statistic_names
from root_dash.store import Store, migrate
from root_dash.store.tables.blobs import decode
from root_dash.store.tables.histogram_codec import unpack
from root_dash.store.tables.schema import RECORDINGS, SCHEMA_VERSION
from tests.store.frames import make_layers, record

FIXTURES = Path(__file__).parent / "fixtures"
"""A file of each older schema: two runs, one of them resumed with overlapping steps, stored by the code of then.

Schema 1 at 964f18c, schema 2 at b056774.
"""


@pytest.fixture(params=range(1, SCHEMA_VERSION))
def version(request: pytest.FixtureRequest) -> int:
    """Each schema version before this one."""
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, version: int) -> Path:
    """A database of that schema."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress((FIXTURES / f"schema-{version}.db.gz").read_bytes()))
    return path


def _rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


Rows = dict[str, tuple[list[str], list[tuple[Any, ...]]]]
"""The columns and the rows of tables by name."""


def _recorded(path: Path, like: Rows | None = None) -> Rows:
    """Every row of every table that holds what was recorded, in the columns that the file has, or that `like` has."""
    names = ("runs", "attempts", "layers", "frames", "scalars", "events", *(t.name for t in RECORDINGS.values()))
    found: Rows = {}
    for name in names:
        columns = like[name][0] if like else sorted(row[1] for row in _rows(path, f"PRAGMA table_info({name})"))
        chosen = ", ".join(f'"{column}"' for column in columns)
        found[name] = columns, sorted(_rows(path, f"SELECT {chosen} FROM {name}"), key=repr)
    return found


def _shape(path: Path) -> dict[str, Any]:
    """What SQLite says of every table: columns, keys, references and indices."""
    tables = [name for (name,) in _rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return {
        name: [
            sorted(row[1:] for row in _rows(path, f"PRAGMA {what}({name})"))
            for what in ("table_info", "index_list", "foreign_key_list")
        ]
        + [_rows(path, f"SELECT wr, strict FROM pragma_table_list WHERE name = '{name}'")]
        for name in tables
    }


def test_an_old_file_is_migrated_with_every_row(old: Path, version: int, tmp_path: Path) -> None:
    """All rows of an older schema come through, the tables are those of a new file, and a copy is kept."""
    before = _recorded(old)
    done = migrate(old)
    assert done is not None
    assert (done.path, done.before, done.after) == (old, version, SCHEMA_VERSION)
    assert _recorded(old, before) == before
    assert _shape(old) == _shape(record(tmp_path / "new.db", 3))
    assert _rows(old, "PRAGMA integrity_check") == [("ok",)]
    assert _rows(old, "PRAGMA foreign_key_check") == []
    assert _rows(old, "SELECT * FROM alembic_version") == [(f"{SCHEMA_VERSION:04d}",)]
    assert sorted(path.name for path in tmp_path.glob("old*")) == ["old.db", f"old.db.schema-{version}"]
    assert migrate(old) is None
    assert _recorded(done.backup) == before
    assert _rows(done.backup, "PRAGMA user_version") == [(version,)]


def test_what_an_old_file_holds_is_answered(old: Path, version: int) -> None:
    """Histories, grids and arrays of a migrated file are those of its rows, the resumed attempt's where both have."""
    newest = {}
    for name in (*statistic_names("statistics"), *statistic_names("spectra")):
        table = "spectra" if name.startswith(("sigma", "stable", "effective", "condition", "polar")) else None
        table = table or "layer_statistics"
        newest[name] = dict(_rows(old, f"SELECT step, {name} FROM {table} WHERE layer_id = 1 ORDER BY frame_id"))
    counts = dict(_rows(old, "SELECT step, gradient_counts FROM histograms WHERE layer_id = 1 ORDER BY frame_id"))
    migrate(old)
    with Store.open(old) as store:
        assert [(run.name, run.frames) for run in store.runs()] == [("short", 2), ("a run", 56)]
        for name, by_step in newest.items():
            history = store.history(1, name)
            assert history.steps.tolist() == sorted(by_step)
            expected = np.array([by_step[step] for step in sorted(by_step)], np.float64)
            assert np.array_equal(history.values, expected, equal_nan=True)
            assert np.array_equal(store.grid(1, name).values[0], expected, equal_nan=True)
        histograms = store.histograms(1)
        assert histograms.steps.tolist() == sorted(counts)
        for row, step in zip(histograms.counts, histograms.steps.tolist(), strict=True):
            packed = unpack([counts[step]])[0] if version > 1 else decode(counts[step], "<u4", 515, compressed=True)
            assert np.array_equal(row, packed)
        assert store.quantiles(1, 30).step == 24
        assert store.mask(1).step == 48
        masks = [store.mask(1, step) for step in store.steps(1, "masks").tolist()]
        assert store.outlier_counts(1).recorded >= len(masks) > 1
        assert {tensor: store.histogram(2, 50, tensor).step for tensor in TENSORS} == dict.fromkeys(TENSORS, 48)


def test_an_old_file_is_written_on(old: Path, version: int) -> None:
    """Opening it for writing migrates it; another attempt of its run goes on where it was."""
    record(old, 10, make_layers(3), start=50, seed=2)
    with Store.open(old) as store:
        assert store.history(1, "grad_norm").steps.tolist() == list(range(60))
        assert set(store.frames(1)[-1].kinds) <= set(KINDS)
    assert old.with_name(f"old.db.schema-{version}").exists()


def test_an_old_file_is_not_read_as_it_is(old: Path, version: int) -> None:
    """A reader says which command brings it up to date, and leaves it alone."""
    content = old.read_bytes()
    sentence = rf"has schema {version}, an older one .* `root-dash migrate` brings it up to date"
    with pytest.raises(StoreForeign, match=sentence):
        Store.open(old)
    assert old.read_bytes() == content


def test_a_newer_file_is_refused(old: Path) -> None:
    """The message says both versions and what to do, and the file is left alone."""
    connection = sqlite3.connect(old)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    content = old.read_bytes()
    sentence = (
        f"was written by a newer root-dash (schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}): upgrade"
    )
    for refused in (migrate, Store.open, Store.create):
        with pytest.raises(StoreForeign) as caught:
            refused(old)
        assert str(caught.value) == f"{old} {sentence}"
    assert old.read_bytes() == content
    assert not list(old.parent.glob("*.schema-*"))


def test_a_file_that_another_process_has_open_is_not_migrated(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer of the older version would write on into tables that have changed: it must stop first."""
    monkeypatch.setattr("root_dash.store.backends.sqlite.BUSY_TIMEOUT", 0.05)
    other = sqlite3.connect(old)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("SELECT count(*) FROM runs").fetchone()
    with pytest.raises(StoreBusy, match="must be migrated, but another process has it open: stop that first"):
        migrate(old)
    other.close()
    assert migrate(old) is not None


def test_a_copy_never_takes_anothers_place(old: Path, version: int) -> None:
    """A file under the copy's name, and half a copy of a process that was killed, do not stop the migration."""
    kept, half = old.with_name(f"old.db.schema-{version}"), old.with_name("old.db.part")
    kept.write_text("mine")
    half.write_bytes(b"half")
    done = migrate(old)
    assert done is not None
    assert done.backup.name == f"old.db.schema-{version}.2"
    assert kept.read_text() == "mine"
    assert not half.exists()


KILLED = """
import os, signal, sys
from root_dash.store import folding, migrate
rebuild, done = folding.Pyramid.rebuild, []
def killing(self):
    self.connection.exec_driver_sql("PRAGMA cache_size=2")  # what was changed is in the write-ahead log
    rebuild(self)
    done.append(self)
    if len(done) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
folding.Pyramid.rebuild = killing
migrate(sys.argv[1])
"""


@pytest.mark.heavy
@pytest.mark.parametrize("runs", [2])
def test_kill_9_in_a_migration_leaves_the_old_file(old: Path, version: int, runs: int) -> None:
    """Killed after the tables were changed, the file is the old one with every row, and is migrated the next time."""
    before = _recorded(old)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(old), str(runs)], cwd=Path(__file__).parents[2], env=os.environ, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert _rows(old, "PRAGMA user_version") == [(version,)]
    assert _recorded(old) == before
    assert _rows(old, "PRAGMA integrity_check") == [("ok",)]
    assert migrate(old) is not None
    assert _recorded(old, before) == before
