"""SQLite: paths, pragmas, whose file it is, rows in, and what its errors mean."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, Table, UpdateBase, create_engine, event, insert
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreFull, StoreNotFound
from root_dash.store.tables.schema import APPLICATION_ID, SCHEMA_VERSION, alembic_version, metadata, revision

BUSY_TIMEOUT = 5.0  # seconds that a transaction waits for another process

_MAGIC = b"SQLite format 3\0"


def sqlite_has_wal_reset_bug(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether that SQLite can damage a WAL database on which two connections checkpoint.

    Fixed in 3.51.3 and in the backports 3.44.6 and 3.50.7 (https://sqlite.org/wal.html#walresetbug); 3.52.0 was
    withdrawn. Here one process writes and checkpoints and viewers are read-only, which keeps clear of it.
    """
    if version == (3, 52, 0):
        return True
    if version[:2] in ((3, 44), (3, 50)):
        return version[2] < {44: 6, 50: 7}[version[1]]
    return (3, 7, 0) <= version < (3, 51, 3)


def open_reader(path: Path) -> Engine:
    """An engine of read-only connections to a database of ours.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be read.
        StoreForeign: it is no database of ours, or of another schema version.
    """
    check_file(path)
    engine = make_engine(lambda: connect(path, "mode=ro", "PRAGMA query_only=ON"), "BEGIN")
    try:
        with translated(path), engine.connect() as connection:
            _check_schema(connection, path)
    except (StoreForeign, StoreBusy):
        engine.dispose()
        raise
    except StoreError:
        engine.dispose()
        if log_size(path):
            raise
        # A closed WAL database in a folder that we may not write: SQLite cannot create its shared memory beside it.
        engine = make_engine(lambda: connect(path, "mode=ro&immutable=1", "PRAGMA query_only=ON"), "BEGIN")
        engine.update_execution_options(immutable=True)
        with translated(path), engine.connect() as connection:
            _check_schema(connection, path)
    return engine


def open_writer(path: Path) -> Engine:
    """An engine for writing, the file and its tables made where they are missing.

    Its transactions take the write lock at their start: a transaction that reads first and then finds the lock taken
    fails at once, whatever the timeout.

    Raises:
        StoreNotFound: the folder is missing, the path is a directory, or it cannot be written.
        StoreForeign: there is a file that is not a database of ours, or of another schema version.
    """
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise StoreNotFound(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
    if there:
        check_file(path, empty_is_ours=True)
    elif not path.parent.is_dir():
        raise StoreNotFound(f"the folder {path.parent} does not exist")
    check_writable(path)
    engine = make_engine(lambda: connect(path, "mode=rwc", "PRAGMA synchronous=NORMAL"), "BEGIN IMMEDIATE")
    try:
        with translated(path):
            _create_schema(engine, path)
    except BaseException:
        engine.dispose()
        raise
    return engine


def give_space_back(engine: Engine, path: Path) -> None:
    """Write the file anew without the pages that are free."""
    with translated(path):
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("VACUUM")
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            raw.close()


def insert_rows(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of all the table's columns, in their order."""
    # The driver takes them as they are: through SQLAlchemy's own, by name, it is 3 times the work.
    _cursor(connection).executemany(_insertion(table), rows)


def execute(connection: Connection, statement: UpdateBase, parameters: Mapping[str, Any]) -> DBAPICursor:
    """Execute a statement by the driver, whose parameters need no conversion: of what every frame does.

    Between the steps of a training SQLAlchemy's own way to it takes several times as long as SQLite.
    """
    sql, given = _compiled(statement)
    cursor = _cursor(connection)
    cursor.execute(sql, {**given, **parameters})
    return cursor


def _cursor(connection: Connection) -> DBAPICursor:
    return connection.connection.cursor()


@cache
def _insertion(table: Table) -> str:
    return str(insert(table).compile(dialect=dialect()))


@lru_cache(64)
def _compiled(statement: UpdateBase) -> tuple[str, Mapping[str, Any]]:
    compiled = statement.compile(dialect=dialect(paramstyle="named"))
    return str(compiled), dict(compiled.params)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file the path names now, by device and inode; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def state(engine: Engine, path: Path) -> tuple[int, ...] | None:
    """What has to stay for the engine's connections to see what there is; None where there is no file.

    Which file it is, and where that is read as one that nobody writes to, its size, its time and its log's size too:
    SQLite would go on answering with what it has read.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    still = (status.st_size, status.st_mtime_ns, log_size(path))
    return status.st_dev, status.st_ino, *(still if engine.get_execution_options().get("immutable") else ())


def log_size(path: Path) -> int:
    """The bytes of the write-ahead log: beside the file itself, also where the path is a link to that."""
    try:
        return os.stat(f"{os.path.realpath(path)}-wal").st_size
    except OSError:
        return 0


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLAlchemy and SQLite raise inside into the store's own errors."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreBusy(f"{path} is held by another process for longer than {BUSY_TIMEOUT:g} seconds") from error
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull(f"{path}: {cause}") from error
        if code == sqlite3.SQLITE_NOTADB:
            raise StoreForeign(f"{path} is not a root-dash database") from error
        raise StoreError(f"{path}: {cause}") from error
    except OverflowError:
        raise ValueError("ids and steps must be integers of 64 bits") from None
    except UnicodeDecodeError:
        raise StoreError(f"{path}: the file is damaged: a text in it is none") from None
    except SQLAlchemyError as error:
        raise StoreError(f"{path}: {error}") from error


def abandon(connection: Any) -> None:
    """Let go of a connection whose file was deleted or replaced, without SQLite's tidying up.

    Closing the last connection to a file removes its write-ahead log by its path: where another file has taken the
    place, that would be the other's.
    """
    set_config = getattr(connection, "setconfig", None)
    if set_config is not None:
        set_config(1006, True)  # SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE: nothing is removed either
        connection.close()
    else:
        # Python before 3.12 cannot say so: it is never closed, also not when Python ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def connect(path: Path, query: str, *pragmas: str) -> sqlite3.Connection:
    """A connection to the file, with the parameters of its URI, and our pragmas before those that are given."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,  # transactions begin where `_engine` says
        check_same_thread=False,  # the pool hands a connection to one thread at a time
    )
    try:
        for pragma in ("PRAGMA foreign_keys=ON", "PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON", *pragmas):
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads, also where nothing may be written beside the file."""
    connection = connect(path, "mode=ro", "PRAGMA query_only=ON")
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or log_size(path):
            raise
        return connect(path, "mode=ro&immutable=1", "PRAGMA query_only=ON")
    return connection


def make_engine(creator: Callable[[], sqlite3.Connection], begin: str) -> Engine:
    """An engine whose transactions begin with that statement."""
    # No limit on connections: a request that waits for one would wait behind requests that wait for the disk.
    engine = create_engine("sqlite+pysqlite://", creator=creator, poolclass=QueuePool, pool_size=8, max_overflow=-1)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        _cursor(connection).execute(begin)

    return engine


def check_file(path: Path, *, empty_is_ours: bool = False) -> None:
    """Raise StoreNotFound or StoreForeign where the path is no file that can be read, or no SQLite database."""
    try:
        if path.is_dir():
            raise StoreNotFound(f"{path} is a directory, not a database")
        if path.exists() and not path.is_file():
            raise StoreNotFound(f"{path} is not a regular file")  # opening a pipe would wait for its other end
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFound(f"there is no database at {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreNotFound(f"{path} cannot be read: {reason.lower()}") from None
    if start != _MAGIC and not (empty_is_ours and not start):
        raise StoreForeign(f"{path} is {'empty' if not start else 'not a root-dash database'}")


def check_writable(path: Path) -> None:
    """Make the file where there is none; raise StoreNotFound where it, or anything in its folder, cannot be written."""
    rule = "give a path in a folder that you may write to"
    for place in (path, path.parent):  # the folder too: the write-ahead log lies in it
        if place.exists() and not os.access(place, os.W_OK):
            raise StoreNotFound(f"{path} cannot be written, permission denied to {place}: {rule}")
    try:
        # Only a new one: closing a file lets go of the locks that SQLite has on it in this process.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        pass
    except (OSError, ValueError) as error:  # a folder of the system's, such as /proc, a name that is too long
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreNotFound(f"{path} cannot be made, {reason.lower()}: {rule}") from None


def _check_schema(connection: Connection, path: Path) -> None:
    application, version = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("application_id", "user_version")
    )
    refuse_schema(application, version, path)


def refuse_schema(application: int, version: int, path: Path) -> None:
    """Raise StoreForeign where the two pragmas are not those of a database that this version reads."""
    if application != APPLICATION_ID:
        raise StoreForeign(f"{path} is a database, but not of root-dash")
    if version > SCHEMA_VERSION:
        raise StoreForeign(
            f"{path} was written by a newer root-dash (schema {version}, this one knows {SCHEMA_VERSION}): upgrade"
        )
    if version < 1:
        raise StoreForeign(f"{path} has schema {version}, which no root-dash ever wrote")
    if version < SCHEMA_VERSION:
        raise StoreForeign(
            f"{path} has schema {version}, an older one than this root-dash reads ({SCHEMA_VERSION}): "
            f"`root-dash migrate` brings it up to date and keeps a copy"
        )


def _set_wal(cursor: Any) -> str:
    """Turn to a write-ahead log and say which journal the database has now.

    Of two that turn a new file at once, SQLite tells one at once that it is busy, whatever the timeout: both hold what
    the other waits for.
    """
    until = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(0.005)


def _create_schema(engine: Engine, path: Path) -> None:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        ours = cursor.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        if not ours and cursor.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise StoreForeign(f"{path} is a database, but not of root-dash")
        mode = _set_wal(cursor)
    finally:
        raw.close()
    if mode != "wal":
        raise StoreError(f"{path} cannot use a write-ahead log ({mode}): keep it on a local disk")
    with engine.begin() as connection:
        # Under the write lock, so that of two trainers that start at once one creates and the other finds.
        if connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one() == 0:
            metadata.create_all(connection)
            connection.execute(insert(alembic_version), {"version_num": revision(SCHEMA_VERSION)})
            connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        _check_schema(connection, path)
