"""Databases that an earlier root-dash wrote, on both engines: read, recorded on, and brought up to date."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import StoreBusy, StoreForeign
from root_dash.records import Attempt, Run
from root_dash.store import Limits, Revisions, Store, examine, migrate
from root_dash.store.tables.versions import BASE_VERSION, SCHEMA_VERSION, check_version
from tests.postgresql import Server
from tests.store.admin.test_doctor import _bad
from tests.store.frames import make_frame, make_layers, record
from tests.store.recorded import answered, answers_then, restore, same_answers, unpacked

REVISION = """
import os, signal
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

def upgrade():
    op.add_column("runs", sa.Column("note", sa.Text))
    op.execute("UPDATE runs SET note = name")
    if os.environ.get("KILLED"):
        op.get_bind().exec_driver_sql("PRAGMA cache_spill=ON")
        os.kill(os.getpid(), signal.SIGKILL)

def downgrade():
    raise NotImplementedError
"""
"""A made-up next revision."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """A database of schema 3, as a file and on a server."""
    if request.param == "sqlite":
        yield unpacked("schema-3.db", tmp_path / "old.db")
        return
    server: Server = request.getfixturevalue("postgres")
    url = restore(server, server.create())
    yield url
    server.drop(url)


@pytest.fixture
def revisions(tmp_path: Path) -> Revisions:
    """Our revisions and a made-up next one."""
    folder = tmp_path / "revisions"
    folder.mkdir()
    (folder / "schema_4.py").write_text(REVISION)
    return Revisions(4, (folder,))


def _rows(place: Path | str, sql: str) -> list[tuple[Any, ...]]:
    with Store.create(place) as store, store._reader.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql)]


def _file_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _version(place: Path | str, server: Server | None) -> str:
    query = "SELECT version_num FROM alembic_version"
    rows = _file_rows(place, query) if isinstance(place, Path) else server.execute(query, place.rpartition("/")[2])  # type: ignore[union-attr]
    return str(rows[0][0])


def test_an_old_database_reads_equal(old: Path | str) -> None:
    """Every verb answers what it answered when the database was written, before and after it was opened for writing."""
    clock = isinstance(old, Path)
    with Store.open(old) as store:
        assert same_answers(answers_then(store), answered(), clock=clock)
    Store.create(old).close()
    assert migrate(old) is None
    with Store.open(old) as store:
        assert same_answers(answers_then(store), answered(), clock=clock)
    assert [found for found in _bad(examine(old)) if found[0] != "note"] == []


def test_an_old_database_is_recorded_on(old: Path | str) -> None:
    """An attempt at a run goes on, a new attempt wins over the steps that it repeats, and a new run begins."""
    layers, rng = make_layers(4), np.random.default_rng(5)
    with Store.open(old) as store:
        (run,) = [run for run in store.runs() if run.uid == "resumed-1"]
        before = store.history(store.layers(run.id)[0].id, "grad_norm")
    described = Run("resumed-1", "resumed", 1.7e9)
    with Store.create(old) as store:
        going_on = store.begin(described, layers, Attempt("a2", 1.7e9 + 7))
        going_on.append(make_frame(8, 15, layers, rng))
        going_on.end(1.8e9)
        again = store.begin(described, layers, Attempt("a3", 1.8e9))
        frames = [make_frame(seq, step, layers, rng) for seq, step in enumerate(range(14, 18))]
        for frame in frames:
            again.append(frame)
        again.end(1.9e9)
        history = store.history(store.layers(run.id)[0].id, "grad_norm")
        assert history.steps.tolist() == [*before.steps.tolist(), 15, 16, 17]
        assert np.array_equal(history.values[:-4], before.values[:-1])
        assert history.values[-4:].tolist() == [float(frame.statistics[0, 0]) for frame in frames]
        assert (store.run(run.id).frames, store.run(run.id).ended_at) == (run.frames + 5, 1.9e9)
        assert store.outlier_counts(store.layers(run.id)[0].id).recorded == run.frames + 5
    record(old, 3, uid="new")
    with Store.open(old) as store:
        assert len(store.runs()) == 4
    assert _bad(examine(old)) == []


def test_a_new_database_and_an_old_one_have_the_same_tables(tmp_path: Path) -> None:
    """SQLite says the same of every table: columns, keys, references and indices."""

    def shape(path: Path) -> dict[str, Any]:
        names = [name for (name,) in _file_rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {
            name: [
                sorted(row[1:] for row in _file_rows(path, f"PRAGMA {what}({name})"))
                for what in ("table_info", "index_list", "foreign_key_list")
            ]
            for name in names
        }

    old = unpacked("schema-3.db", tmp_path / "old.db")
    Store.create(old).close()  # it gets the tables and columns that it lacks
    assert shape(old) == shape(record(tmp_path / "new.db", 3))


def test_a_migration_keeps_every_row(old: Path | str, revisions: Revisions, request: pytest.FixtureRequest) -> None:
    """The next revision runs on both engines, once; a file is kept as it was, and this root-dash reads it no longer."""
    server = None if isinstance(old, Path) else request.getfixturevalue("postgres")
    tables = ("attempts", "layers", "frames", "layer_statistics", "masks", "pyramid")
    before = [_rows(old, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]
    names = _rows(old, "SELECT id, name FROM runs ORDER BY id")
    done = migrate(old, revisions)
    assert done is not None
    assert (done.before, done.after) == (3, 4)
    assert migrate(old, revisions) is None
    assert _version(old, server) == "0004"
    with pytest.raises(StoreForeign, match=r"newer root-dash \(schema 4, this one knows 3\): upgrade"):
        Store.open(old)
    if isinstance(old, Path):
        assert [_file_rows(old, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables] == before
        assert _file_rows(old, "SELECT id, note FROM runs ORDER BY id") == names
        assert _file_rows(old, "PRAGMA user_version") == [(4,)]
        assert _file_rows(old, "PRAGMA integrity_check") == [("ok",)]
        assert done.backup == old.with_name("old.db.schema-3")
        with Store.open(done.backup) as store:
            assert same_answers(answers_then(store), answered())
    else:
        assert server is not None
        name = old.rpartition("/")[2]
        assert server.execute("SELECT id, note FROM runs ORDER BY id", name) == names
        assert server.execute("SELECT * FROM frames ORDER BY 1, 2, 3", name) == before[2]
        assert done.backup is None


def test_a_newer_database_is_refused(old: Path | str, request: pytest.FixtureRequest) -> None:
    """The message says both versions and what to do, and a file is left alone."""
    if isinstance(old, Path):
        connection = sqlite3.connect(old)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        connection.close()
        shown = str(old)
    else:
        server: Server = request.getfixturevalue("postgres")
        server.execute(f"UPDATE alembic_version SET version_num = '{SCHEMA_VERSION + 1:04d}'", old.rpartition("/")[2])
        shown = f"postgresql://127.0.0.1:{server.port}/{old.rpartition('/')[2]}"
    content = old.read_bytes() if isinstance(old, Path) else None
    sentence = (
        f"was written by a newer root-dash (schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}): upgrade"
    )
    for refused in (migrate, Store.open, Store.create):
        with pytest.raises(StoreForeign) as caught:
            refused(old)
        assert str(caught.value) == f"{shown} {sentence}"
    if isinstance(old, Path):
        assert old.read_bytes() == content
        assert not list(old.parent.glob("*.schema-*"))


def test_an_older_version_is_refused_with_advice() -> None:
    """A version that can be brought up to date names the command; a version before the base cannot be."""
    check_version("runs.db", SCHEMA_VERSION)
    with pytest.raises(StoreForeign, match=r"has schema 3, an older one .* \(4\): `root-dash migrate` brings it"):
        check_version("runs.db", 3, newest=4)
    with pytest.raises(StoreForeign, match=f"has schema 2, but this root-dash reads no schema before {BASE_VERSION}"):
        check_version("runs.db", 2)


def test_a_database_that_another_process_has_open_is_not_migrated(
    old: Path | str, revisions: Revisions, request: pytest.FixtureRequest
) -> None:
    """A trainer of the older version would write on into tables that have changed: it must stop first."""
    limits = Limits(lock_seconds=0.05)
    with Store.open(old) as store:
        assert len(store.runs()) == 3
        with pytest.raises(StoreBusy, match="must be migrated, but another process has it open: stop that process"):
            migrate(old, revisions, limits)
        assert len(store.runs()) == 3
    assert migrate(old, revisions) is not None


def test_a_copy_never_takes_anothers_place(tmp_path: Path, revisions: Revisions) -> None:
    """A file under the copy's name, and half a copy of a process that was killed, do not stop the migration."""
    old = unpacked("schema-3.db", tmp_path / "old.db")
    kept, half = old.with_name("old.db.schema-3"), old.with_name("old.db.part")
    kept.write_text("mine")
    half.write_bytes(b"half")
    done = migrate(old, revisions)
    assert done is not None
    assert done.backup == old.with_name("old.db.schema-3.2")
    assert kept.read_text() == "mine"
    assert not half.exists()


@pytest.mark.heavy
def test_kill_9_in_a_migration_leaves_the_old_file(tmp_path: Path, revisions: Revisions) -> None:
    """Killed after the tables were changed, the file is the old one with every row, and is migrated the next time."""
    old = unpacked("schema-3.db", tmp_path / "old.db")
    script = (
        "import sys; from pathlib import Path; from root_dash.store import Revisions, migrate;"
        "migrate(sys.argv[1], Revisions(4, (Path(sys.argv[2]),)))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(old), str(revisions.folders[0])],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"KILLED": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert _file_rows(old, "PRAGMA user_version") == [(3,)]
    assert _file_rows(old, "PRAGMA integrity_check") == [("ok",)]
    with Store.open(old) as store:
        assert same_answers(answers_then(store), answered())
    assert migrate(old, revisions) is not None
