"""What is PostgreSQL's own: whose database it is, who waits for whom, and a server that goes and comes back."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event
from typer.testing import CliRunner

from root_dash.cli.main import app
from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreNotFound
from root_dash.records import Notice, Run
from root_dash.server.stream import tail
from root_dash.store import Limits, Store, examine, repair
from root_dash.store.tables.schema import RECORDINGS
from root_dash.store.tables.versions import SCHEMA_VERSION
from tests.postgresql import PASSWORD, Server
from tests.store.admin.test_doctor import _bad
from tests.store.frames import make_frame, make_layers, record
from tests.waiting import LIMIT_SECONDS, at_once

pytestmark = pytest.mark.heavy

RUN = Run("run-1", "a run", 1.7e9)


@pytest.fixture
def empty(postgres: Server) -> Iterator[str]:
    """The URL of a database without tables."""
    url = postgres.create()
    yield url
    postgres.drop(url)


def _execute(postgres: Server, url: str, statement: str) -> list[tuple[Any, ...]]:
    return postgres.execute(statement, url.rpartition("/")[2])


def test_many_may_create_at_once(empty: str) -> None:
    """Threads that begin to record into the same empty database at the same moment all get a working store."""
    at_once(lambda number: record(empty, 3, uid=f"run-{number}"))
    with Store.open(empty) as store:
        assert [run.frames for run in store.runs()] == [3] * 4


def test_a_database_with_wider_ids_in_another_order_is_written_as_it_is(postgres: Server, empty: str) -> None:
    """Rows of few and of many layers land in their columns in tables as they were first made, with ids of 64 bits."""
    record(empty, 3, uid="before")
    for table in (table.name for table in RECORDINGS.values()):
        for statement in (
            f"ALTER TABLE {table} ALTER COLUMN layer_id TYPE bigint",
            f"ALTER TABLE {table} RENAME COLUMN step TO old_step",
            f"ALTER TABLE {table} ADD COLUMN step bigint",  # after all others
            f"UPDATE {table} SET step = old_step",
            f"ALTER TABLE {table} DROP COLUMN old_step",
        ):
            _execute(postgres, empty, statement)
    record(empty, 40, uid="after")
    with Store.open(empty) as store:
        before, after = sorted(store.runs(), key=lambda run: run.frames)
        for run, frames in ((before, 3), (after, 40)):
            for layer in store.layers(run.id):
                for kind in RECORDINGS:
                    assert set(store.steps(layer.id, kind)) <= set(range(frames))
                assert len(store.steps(layer.id, "statistics")) == frames


@pytest.mark.parametrize(
    ("statement", "error", "text"),
    [
        (None, StoreForeign, "is empty"),
        ("CREATE TABLE alembic_version (version_num text)", StoreForeign, "tables that are not of root-dash"),
        (f"UPDATE alembic_version SET version_num = '{SCHEMA_VERSION + 1:04d}'", StoreForeign, "newer root-dash"),
        (
            "UPDATE alembic_version SET version_num = '0001'",
            StoreForeign,
            "has schema 1, but this root-dash reads no schema before 3",
        ),
        ("DELETE FROM alembic_version", StoreForeign, "has schema 0"),
        ("DROP TABLE runs CASCADE", StoreForeign, "not of root-dash"),
    ],
)
def test_a_database_that_is_not_ours_is_refused(
    statement: str | None, error: type[StoreError], text: str, postgres: Server, empty: str
) -> None:
    """One without our tables, with others' or of another schema is refused in one line, and left alone."""
    if statement is not None:
        if not statement.startswith("CREATE"):
            Store.create(empty).close()
        _execute(postgres, empty, statement)
    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    before = _execute(postgres, empty, tables)
    for opened in (Store.open, Store.create) if statement else (Store.open,):
        with pytest.raises(error, match=text) as caught:
            opened(empty)
        assert "\n" not in str(caught.value)
    assert _execute(postgres, empty, tables) == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace("@127.0.0.1:", "@127.0.0.1:1"), "cannot be reached: .*"),
        (lambda url: url.replace("root_dash:", "nobody:"), "cannot be reached: .*password authentication failed"),
        (lambda url: url + "_none", "cannot be reached: .*does not exist"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_without_the_password(
    change: Callable[[str], str], text: str, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server, another user and another database are one line, from the store, the doctor and the command."""
    url = change(postgres.url("with_tables"))
    if "@127.0.0.1:1" in url:
        url = url.replace(f":1{postgres.port}", ":1")
    for opened in (Store.open, Store.create):
        with pytest.raises(StoreNotFound, match=text) as caught:
            opened(url)
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
    assert [(found.level, found.what) for found in examine(url)] == [("error", "database")]
    result = CliRunner().invoke(app, ["runs", url])
    assert result.exit_code == 2
    assert "cannot be reached" in result.output
    assert not any(secret in result.output for secret in (PASSWORD, "se%2Fcret", "root_dash:"))


def test_without_psycopg_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver is missing a URL is refused with the command that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"PostgreSQL needs psycopg: run pip install '.\[postgres\]' in a clone"):
        Store.open("postgresql://localhost/runs")


def test_a_frame_is_never_seen_after_a_later_one(database: str) -> None:
    """If two write to a run at once, the frame with the earlier cursor is seen first: no follower misses it."""
    layers, rng = make_layers(1), np.random.default_rng(0)
    seen: list[int] = []
    begun, stored = threading.Event(), threading.Event()
    with Store.create(database) as first, Store.create(database) as second, Store.open(database) as reader:
        slow, quick = first.begin(RUN, layers), second.begin(RUN, layers)
        add = slow._pyramid.add

        def late(*arguments: Any) -> None:
            begun.set()
            stored.wait(1)  # the other has that long to be stored, which it must not be
            add(*arguments)

        def follow() -> None:
            seen.extend(notice.id for notice in reader.frames(1, after=seen[-1] if seen else 0))

        slow._pyramid.add = late  # type: ignore[assignment, method-assign]
        thread = threading.Thread(target=slow.append, args=(make_frame(0, 0, layers, rng, ["statistics"]),))
        thread.start()
        assert begun.wait(LIMIT_SECONDS)
        quick.append(make_frame(0, 1, layers, rng, ["statistics"]))
        follow()
        stored.set()
        thread.join()
        follow()
        assert seen == [notice.id for notice in reader.frames(1)]
        assert len(seen) == 2


def test_followers_are_notified(database: str) -> None:
    """Those who follow a run hear of its frames rather than asking, and of no other run's."""

    async def follow(store: Store, reader: Store) -> list[list[int]]:
        rng = np.random.default_rng(0)
        first, second = store.begin(RUN, []), store.begin(Run("run-2", "another", 1.7e9), [])
        seen: list[list[int]] = [[], []]

        async def listen(index: int) -> None:
            async for notice in tail(reader, 1, 0, follow=True):
                assert isinstance(notice, Notice)
                seen[index].append(notice.seq)
                if len(seen[index]) == 5:
                    return

        listening = [asyncio.create_task(listen(index)) for index in range(2)]
        for seq in range(5):
            for recording in (first, second):
                await asyncio.to_thread(recording.append, make_frame(seq, seq, [], rng, ["scalars"]))
        async with asyncio.timeout(LIMIT_SECONDS):
            await asyncio.gather(*listening)
        return seen

    with Store.create(database) as store, Store.open(database, Limits(quiet_seconds=600)) as reader:
        assert asyncio.run(follow(store, reader)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("crash", [False, True])
def test_a_server_that_comes_back_is_written_to_again(crash: bool, postgres: Server, database: str) -> None:
    """While a server is away appending fails as the writer retries it; afterwards all is there, and reading goes on."""
    layers, rng = make_layers(2), np.random.default_rng(0)
    with Store.create(database) as store, Store.open(database) as reader:
        recording = store.begin(RUN, layers)
        frames = [make_frame(seq, seq, layers, rng) for seq in range(4)]
        recording.append(frames[0])
        assert reader.run(1).frames == 1
        (postgres.kill if crash else postgres.stop)()
        try:
            for _ in range(2):
                with pytest.raises(StoreError, match="cannot be reached|busy"):
                    recording.append(frames[1])
            with pytest.raises(StoreError):
                reader.runs()
        finally:
            postgres.start()
        for frame in frames[1:]:
            recording.append(frame)
        recording.end(2.0)
        assert [notice.seq for notice in reader.frames(1)] == [0, 1, 2, 3]
        assert reader.history(1, "grad_norm").total == 4
    assert _bad(examine(database)) == []


def test_a_lock_that_another_holds_is_store_busy(postgres: Server, database: str) -> None:
    """What another holds for longer than the timeout is StoreBusy, and stored when it is let go."""
    rng = np.random.default_rng(0)
    with Store.create(database, Limits(lock_seconds=0.05)) as store:
        recording = store.begin(RUN, [])
        with postgres.connect(database.rpartition("/")[2]) as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE frames")
            with pytest.raises(StoreBusy, match="is busy"):
                recording.append(make_frame(0, 0, [], rng, ["scalars"]))
        recording.append(make_frame(0, 0, [], rng, ["scalars"]))
        assert store.run(1).frames == 1


def test_a_reader_cannot_write(database: str) -> None:
    """The connections of an opened store refuse every change."""
    with Store.open(database) as store, store._reader.connect() as connection:
        with pytest.raises(Exception, match="read-only transaction"):
            connection.exec_driver_sql("DELETE FROM runs")


def test_views_that_lack_frames_are_found_and_repaired(postgres: Server, database: str) -> None:
    """The doctor reports missing frames and how the server is run; making the views anew brings the frames back."""
    record(database, 200)
    found = examine(database, thorough=True)
    assert _bad(found) == []
    assert {f.what for f in found} >= {"PostgreSQL", "schema", "integrity", "run 1, a run"}
    assert "without fsync" in next(f.text for f in found if f.what == "PostgreSQL")
    _execute(postgres, database, "DELETE FROM pyramid WHERE kind = 0 AND level = 0 AND bucket = 1")
    assert "the views of its statistics hold 136 of 200 frames" in _bad(examine(database))[0][2]
    assert repair(database) == 1
    assert _bad(examine(database)) == []


def test_rows_without_a_frame_are_found(postgres: Server, database: str) -> None:
    """The doctor, asked to be thorough, finds rows whose frame is gone: the server does not look for each row."""
    record(database, 5)
    _execute(postgres, database, "DELETE FROM frames WHERE step = 3")
    found = [f.text for f in examine(database, thorough=True) if (f.level, f.what) == ("error", "integrity")]
    assert found == [
        "4 rows of layer_statistics belong to a row of frames that is gone",
        "2 rows of scalars belong to a row of frames that is gone",
    ]


def test_every_command_takes_a_url(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, doctor, migrate, prune and export work on a URL, given or in the environment, and never repeat it."""
    record(database, 40)
    out = tmp_path / "out.csv"
    for arguments, text in (
        (["runs"], "a run"),
        (["doctor"], "complete"),
        (["migrate"], "up to date"),
        (["prune", "--keep-steps", "10", "--yes"], "removed 30 frames"),
        (["export", "-o", str(out)], "40 rows"),
    ):
        monkeypatch.setenv("ROOT_DASH_DB", database if arguments[0] == "runs" else "")
        given = arguments[:1] + ([] if arguments[0] == "runs" else [database]) + arguments[1:]
        result = CliRunner().invoke(app, given)
        assert (result.exit_code, text in result.output) == (0, True), result.output
        assert "se%2Fcret" not in result.output
    assert out.exists()


def test_the_frames_of_a_run_are_found_beside_those_of_later_runs(database: str, postgres: Server) -> None:
    """The newest frame of a run, and those beyond a cursor, are looked up, however many a later run has stored."""
    asked: list[tuple[str, Any]] = []

    def remember(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        asked.append((statement, parameters))

    with Store.create(database) as store:
        for run in (1, 2):
            store.begin(Run(f"run-{run}", "a run", 1.0), make_layers(1)).close()
            _execute(
                postgres,
                database,
                "INSERT INTO frames (run_id, attempt_id, seq, step, time, kinds, lost)"
                f" SELECT {run}, {run}, i, i, i, 0, 0 FROM generate_series(0, 9999) i",
            )
        _execute(postgres, database, "ANALYZE frames")
        event.listen(store._reader, "before_cursor_execute", remember)
        newest = store.latest(1)
        assert newest is not None
        assert [notice.id for notice in store.frames(1, after=newest.id - 3)] == [9998, 9999, 10000]
    with postgres.connect(database.rpartition("/")[2]) as connection:
        for statement, parameters in asked:
            plan = str(connection.execute(f"EXPLAIN ANALYZE {statement}".encode(), parameters).fetchall())
            assert "ix_frames_run_id_id" in plan
            assert "Rows Removed" not in plan
    assert len(asked) == 2
