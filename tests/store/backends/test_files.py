"""Files that are ours, and the errors for files that are not."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreNotFound
from root_dash.store import Limits, Store, sqlite_has_wal_reset_bug
from root_dash.store.tables.schema import APPLICATION_ID
from root_dash.store.tables.versions import SCHEMA_VERSION
from tests.store.frames import record
from tests.waiting import LIMIT_SECONDS


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()


def _newer(path: Path) -> None:
    record(path, 1)
    _pragma(path, f"user_version={SCHEMA_VERSION + 1}")


def _older(path: Path) -> None:
    record(path, 1)
    _pragma(path, "user_version=0")


def _pragma(path: Path, text: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA {text}")
    connection.close()


BAD: list[tuple[Callable[[Path], object], type[StoreError], str]] = [
    (lambda path: path.mkdir(), StoreNotFound, "is a directory"),
    (lambda path: path.write_text("hello, I am a text file, long enough to be read"), StoreForeign, "not a root-dash"),
    (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000), StoreError, "x.db"),
    (_foreign, StoreForeign, "but not of root-dash"),
    (_newer, StoreForeign, "newer root-dash"),
    (_older, StoreForeign, "schema 0"),
]


@pytest.mark.parametrize(("make", "error", "text"), BAD)
@pytest.mark.parametrize("opened", [Store.open, Store.create])
def test_a_file_that_is_not_ours_is_refused(
    make: Callable[[Path], object], error: type[StoreError], text: str, opened: Callable[[Path], Store], tmp_path: Path
) -> None:
    """A directory, a text file, junk, another's database and another schema are refused in one line, and kept."""
    path = tmp_path / "x.db"
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(error, match=text) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert before == (None if path.is_dir() else path.read_bytes())


def test_missing_paths_are_named(tmp_path: Path) -> None:
    """The errors name a missing file, a missing folder, and a file that is used as a folder."""
    with pytest.raises(StoreNotFound, match="there is no database at"):
        Store.open(tmp_path / "x.db")
    with pytest.raises(StoreNotFound, match=r"the folder .*nowhere does not exist"):
        Store.create(tmp_path / "nowhere" / "x.db")
    (tmp_path / "file").touch()
    with pytest.raises(StoreNotFound):
        Store.open(tmp_path / "file" / "x.db")
    with pytest.raises(StoreNotFound):
        Store.open("nul\0byte")
    with pytest.raises(StoreNotFound, match="file name too long"):
        Store.create(tmp_path / ("x" * 300))
    assert not (tmp_path / "x.db").exists()


def test_an_empty_file_is_filled_but_not_read(tmp_path: Path) -> None:
    """An empty file, as `mktemp` makes, becomes a store when it is created and is refused when it is opened."""
    path = tmp_path / "x.db"
    path.touch()
    with pytest.raises(StoreForeign, match="is empty"):
        Store.open(path)
    Store.create(path).close()
    with Store.open(path) as store:
        assert store.runs() == []


def test_odd_paths_work(tmp_path: Path) -> None:
    """Spaces, percent signs, question marks, hashes and letters beyond ASCII in a path are taken literally."""
    folder = tmp_path / "ünï %41 ?mode=rw #1"
    folder.mkdir()
    path = record(folder / "日本 #?.db", 2)
    assert path.exists()
    with Store.open(str(path)) as store:
        assert store.run(1).frames == 2


def test_the_header_says_whose_it_is(tmp_path: Path) -> None:
    """The file carries our application id and schema version and is in WAL mode."""
    path = record(tmp_path / "x.db", 1)
    connection = sqlite3.connect(path)
    values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert values == [APPLICATION_ID, SCHEMA_VERSION]
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_creating_again_keeps_what_is_there(tmp_path: Path) -> None:
    """If there is a store already, creating it opens it for writing and keeps its runs."""
    path = record(tmp_path / "x.db", 3)
    record(path, 3, uid="run-2")
    with Store.open(path) as store:
        assert [run.uid for run in store.runs()] == ["run-2", "run-1"]


def test_many_may_create_at_once(tmp_path: Path) -> None:
    """Threads that create the same file at the same moment all get a working store."""
    limits = Limits(lock_seconds=LIMIT_SECONDS)  # on a busy machine they wait for longer
    path = tmp_path / "x.db"
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(n: int) -> None:
        start.wait()
        try:
            record(path, 3, uid=f"run-{n}", limits=limits)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Store.open(path) as store:
        assert len(store.runs()) == 8


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """A closed store raises rather than opening the file again; closing twice is fine."""
    store = Store.open(record(tmp_path / "x.db", 1))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.runs()


def test_a_busy_database_is_store_busy(tmp_path: Path) -> None:
    """A lock that another holds for longer than the timeout is StoreBusy."""
    path = record(tmp_path / "x.db", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="another process"):
        record(path, 1, uid="run-2", limits=Limits(lock_seconds=0.05))
    other.execute("ROLLBACK")
    other.close()


def test_a_damaged_database_is_a_store_error(tmp_path: Path) -> None:
    """Pages overwritten with junk raise StoreError, not SQLAlchemy's or SQLite's own."""
    path = record(tmp_path / "x.db", 30)
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
    path.write_bytes(content)
    with Store.open(path) as store, pytest.raises(StoreError, match=r"x\.db: "):
        store.grid(1, "grad_norm")


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("UPDATE histograms SET gradient_counts = x'00'", Store.histogram),
        ("UPDATE histograms SET gradient_counts = 7", Store.histogram),
        ("UPDATE quantiles SET gradient_values = x'00112233'", Store.quantiles),
        ("UPDATE spectra SET base = x'001122'", Store.spectrum),
        ("UPDATE masks SET rows = 1 << 40", Store.mask),
        ("UPDATE masks SET pooled_cols = 3", Store.mask),
        ("UPDATE masks SET packed = 'text'", Store.mask),
        ("UPDATE layers SET shape = '[1'", Store.layer),
        ("UPDATE runs SET config = '{'", Store.run),
    ],
)
def test_a_damaged_value_is_a_store_error(change: str, read: Callable[[Store, int], object], tmp_path: Path) -> None:
    """A BLOB or text that is not what it should be is a StoreError that says so."""
    path = record(tmp_path / "x.db", 1)
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.commit()
    connection.close()
    with Store.open(path) as store, pytest.raises(StoreError, match="damaged"):
        read(store, 1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_readable(tmp_path: Path) -> None:
    """A finished run in a folder that we may not write to can be read, and not written."""
    path = record(tmp_path / "x.db", 3)
    tmp_path.chmod(0o555)
    try:
        with Store.open(path) as store:
            assert store.run(1).frames == 3
        with pytest.raises(StoreNotFound, match="cannot be written"):
            Store.create(tmp_path / "y.db")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="anybody may write anywhere")
def test_a_reader_without_write_access_sees_a_finished_run_go_on() -> None:
    """A file that was whole when it was opened, in a folder that we may not write to, is read anew as it grows."""
    with TemporaryDirectory() as folder:  # one that others may search
        path = record(Path(folder, "x.db"), 3)
        with _as_reader(path.parent):
            store = Store.open(path)
            assert store.run(1).frames == 3
        with store:
            record(path, 4, start=3, end=False)
            with _as_reader(path.parent):
                assert (store.run(1).frames, store.history(1, "grad_norm").steps[-1]) == (7, 6)


@contextmanager
def _as_reader(folder: Path) -> Iterator[None]:
    """As one who may not write to that folder."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), True),
        ((3, 53, 0), False),
    ],
)
def test_the_wal_reset_bug_is_known_by_version(version: tuple[int, int, int], affected: bool) -> None:
    """The versions of SQLite with the WAL-reset bug are recognized."""
    assert sqlite_has_wal_reset_bug(version) is affected


def test_a_viewer_follows_a_file_that_takes_the_place_of_its_own(tmp_path: Path) -> None:
    """`rm runs.db` and training again beside an open dashboard shows the new runs, not those that are gone."""
    path = tmp_path / "runs.db"
    with Store.open(record(path, 3)) as store:
        for name in ("runs.db", "runs.db-wal", "runs.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        assert store.runs()[0].frames == 3  # nothing has taken its place yet
        record(path, 2)
        assert store.runs()[0].frames == 2


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Opening one would wait for its other end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreNotFound, match="is not a regular file"):
        Store.open(tmp_path / "pipe")
