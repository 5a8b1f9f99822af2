"""SQLite behind the verbs of a backend: engines, transactions, rows in, and what the errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, QueuePool, Table, UpdateBase, create_engine, event, insert
from sqlalchemy.dialects.sqlite import Insert, dialect
from sqlalchemy.dialects.sqlite import insert as insert_into
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreFull, StoreNotFound
from root_dash.records import IntArray
from root_dash.store.backends.sqlite_file import (
    check_file,
    check_writable,
    connect,
    identity,
    log_size,
    primary_code,
    set_wal,
)
from root_dash.store.limits import Limits
from root_dash.store.tables import schema
from root_dash.store.tables.growth import grow
from root_dash.store.tables.versions import SCHEMA_VERSION, check_version, revision

_COLUMNS = "SELECT m.name, p.name FROM sqlite_schema m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"


@dataclass(frozen=True, slots=True)
class SqliteBackend:
    """A SQLite file."""

    location: Path
    limits: Limits = field(default_factory=Limits)

    # Opening

    def open_reader(self) -> Engine:
        """Return an engine of read-only connections whose transactions see one moment of the database.

        Raises:
            StoreNotFound: the file is missing, a directory, or cannot be read.
            StoreForeign: the file is not a database of root-dash, or has another schema version.
        """
        check_file(self.location)
        engine = self._engine("mode=ro", "PRAGMA query_only=ON", "BEGIN")
        try:
            self._check_opened(engine)
        except (StoreForeign, StoreBusy):
            engine.dispose()
            raise
        except StoreError:
            engine.dispose()
            if log_size(self.location):
                raise
            # A closed WAL database in a read-only folder: SQLite cannot make the shared memory beside the file.
            engine = self._engine("mode=ro&immutable=1", "PRAGMA query_only=ON", "BEGIN")
            engine.update_execution_options(immutable=True)
            self._check_opened(engine)
        return engine

    def open_writer(self) -> Engine:
        """Return an engine for writing; make the file, and missing tables and columns.

        Transactions take the write lock at their start. A transaction that reads first and then finds the lock taken
        would fail at once, whatever the timeout.

        Raises:
            StoreNotFound: the folder is missing, the path is a directory, or the file cannot be written.
            StoreForeign: the file is not a database of root-dash, or has another schema version.
        """
        path = self.location
        try:
            there = path.exists()
        except OSError as error:  # a name that is too long, a folder that may not be searched
            raise StoreNotFound(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
        if there:
            check_file(path, empty_is_ours=True)
        elif not path.parent.is_dir():
            raise StoreNotFound(f"the folder {path.parent} does not exist")
        check_writable(path)
        engine = self.writing_engine("mode=rwc")
        try:
            with self.translated():
                self._make_tables(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def writing_engine(self, mode: str) -> Engine:
        """Return an engine for writing to a file that is not checked."""
        return self._engine(mode, "PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE")

    def _engine(self, mode: str, pragma: str, begin: str) -> Engine:
        def creator() -> sqlite3.Connection:
            return connect(self.location, mode, pragma, lock_seconds=self.limits.lock_seconds)

        # The number of connections has no limit: a request would wait behind requests that wait for the disk.
        engine = create_engine("sqlite+pysqlite://", creator=creator, poolclass=QueuePool, pool_size=8, max_overflow=-1)
        engine.update_execution_options(backend=self)

        @event.listens_for(engine, "begin")
        def begin_transaction(connection: Connection) -> None:
            _cursor(connection).execute(begin)

        return engine

    def _check_opened(self, engine: Engine) -> None:
        with self.translated(), engine.connect() as connection:
            self._check_schema(connection)

    def _check_schema(self, connection: Connection) -> None:
        application, version = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("application_id", "user_version")
        )
        check_header(self.location, application, version)

    def _make_tables(self, engine: Engine) -> None:
        raw = engine.raw_connection()
        try:
            cursor = raw.cursor()
            if cursor.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                pragmas = ("PRAGMA application_id", "PRAGMA user_version")
                check_header(self.location, *(cursor.execute(pragma).fetchone()[0] for pragma in pragmas))
            mode = set_wal(cursor, self.limits.lock_seconds)
        finally:
            raw.close()
        if mode != "wal":
            raise StoreError(f"{self.location} cannot use a write-ahead log ({mode}): keep it on a local disk")
        with engine.begin() as connection:
            # Under the write lock: if two trainers start at once, only the first makes the tables.
            if connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one() == 0:
                schema.metadata.create_all(connection)
                connection.execute(insert(schema.alembic_version), {"version_num": revision(SCHEMA_VERSION)})
                connection.exec_driver_sql(f"PRAGMA application_id={schema.APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._check_schema(connection)
            grow(connection, self.columns(connection), self.make_tables)

    def make_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Make missing tables."""
        schema.metadata.create_all(connection, tables=tables)

    def columns(self, connection: Connection) -> dict[str, set[str]]:
        """Return the names of all columns that the database has, by table."""
        found: dict[str, set[str]] = {}
        for table, column in connection.exec_driver_sql(_COLUMNS):
            found.setdefault(table, set()).add(column)
        return found

    # The file

    def identity(self) -> tuple[int, int] | None:
        """Return the device and inode of the file at the path, or None if there is no file."""
        return identity(self.location)

    def state(self, engine: Engine) -> tuple[int, ...] | None:
        """Return the state of the file that the engine's connections have opened, or None without a file.

        The state is the identity of the file. If the file was opened as a file without writers, the state includes the
        size, the time of the last change, and the size of the log: SQLite would go on answering with what it has read.
        """
        try:
            status = os.stat(self.location)
        except OSError:
            return None
        still = (status.st_size, status.st_mtime_ns, log_size(self.location))
        return status.st_dev, status.st_ino, *(still if engine.get_execution_options().get("immutable") else ())

    def size(self, engine: Engine) -> int:
        """Return the bytes of the file."""
        return self.location.stat().st_size

    def compact(self, engine: Engine) -> None:
        """Write the file anew without its free pages."""
        with self.translated():
            raw = engine.raw_connection()
            try:
                raw.cursor().execute("VACUUM")
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.close()

    # Statements

    def insert_rows(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of all our columns of a table, in the order of the columns; NaN is stored as NULL."""
        if rows:
            # The driver takes the tuples as they are: SQLAlchemy's way, by name, takes 3 times as long.
            _cursor(connection).executemany(_insertion(table), rows)

    def insert_numbers(
        self, connection: Connection, table: Table, keys: IntArray, values: NDArray[np.floating[Any]]
    ) -> None:
        """Insert rows of integers, (rows, keys), followed by numbers, (rows, statistics)."""
        rows = zip(keys.tolist(), values.tolist(), strict=True)
        self.insert_rows(connection, table, [(*key, *numbers) for key, numbers in rows])

    def execute(self, connection: Connection, statement: UpdateBase, parameters: Mapping[str, Any]) -> DBAPICursor:
        """Execute a statement that every frame needs; the parameters need no conversion.

        Between the steps of a training, SQLAlchemy's own way to the driver takes several times as long as SQLite.
        """
        sql, given = _compiled(statement)
        cursor = _cursor(connection)
        cursor.execute(sql, {**given, **parameters})
        return cursor

    def insert(self, table: Table) -> Insert:
        """Return an INSERT with a clause for rows that exist already."""
        return insert_into(table)

    def lock(self, connection: Connection, run_id: int | None = None, *, notify: bool = False) -> None:
        """Do nothing: a transaction of SQLite is alone from its start, and followers ask again after a while."""

    def frame_ids(self) -> ColumnElement[int]:
        """Return the ids of the frames, by which the frames of a run are compared and ordered."""
        return schema.frames.c.id

    @contextmanager
    def durable(self, connection: Connection) -> Iterator[None]:
        """Make SQLite write its log through to the disk inside the block.

        A commit outlives a killed process without this, but not a loss of power.
        """
        cursor = _cursor(connection)
        cursor.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.close()

    # Errors

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy and SQLite inside the block into the store's own errors."""
        path = self.location
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            code = primary_code(cause)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                seconds = self.limits.lock_seconds
                raise StoreBusy(f"{path} is held by another process for longer than {seconds:g} seconds") from error
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(f"{path}: {cause}") from error
            if code == sqlite3.SQLITE_NOTADB:
                raise StoreForeign(f"{path} is not a root-dash database") from error
            # SQLite quotes what it could not read, lines and all.
            raise StoreError(f"{path}: {' '.join(str(cause).split())}") from error
        except OverflowError:
            raise ValueError("ids and steps must be integers of 64 bits") from None
        except UnicodeDecodeError:
            raise StoreError(f"{path}: the file is damaged: a text in it is not UTF-8") from None
        except SQLAlchemyError as error:
            raise StoreError(f"{path}: {error}") from error


def check_header(path: Path, application: int, version: int, newest: int = SCHEMA_VERSION) -> None:
    """Check the two pragmas for the owner and the schema of the file.

    Raises:
        StoreForeign: the file is not a database of root-dash, or has another schema version.
    """
    if application != schema.APPLICATION_ID:
        raise StoreForeign(f"{path} is a database, but not of root-dash")
    check_version(path, version, newest)


def _cursor(connection: Connection) -> DBAPICursor:
    return connection.connection.cursor()


@cache
def _insertion(table: Table) -> str:
    return str(insert(table).compile(dialect=dialect()))


@lru_cache(64)
def _compiled(statement: UpdateBase) -> tuple[str, Mapping[str, Any]]:
    compiled = statement.compile(dialect=dialect(paramstyle="named"))
    return str(compiled), dict(compiled.params)
