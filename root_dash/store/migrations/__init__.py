"""Migrations from an older schema to the newest, on SQLite and on PostgreSQL: every revision in one transaction.

`versions/` holds Alembic's revisions, one for each schema version. Schema 3 is the base. A process that is killed
during a migration leaves the database in the old or in the new state. A new statistic or table needs no revision:
see `tables/growth.py`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from sqlalchemy import Connection, Engine

from root_dash.exceptions import StoreBusy
from root_dash.store.backends.backend import Backend
from root_dash.store.backends.choose import backend_for
from root_dash.store.backends.location import Location, LocationLike, parse
from root_dash.store.backends.postgres import PostgresBackend
from root_dash.store.backends.sqlite import SqliteBackend, check_header
from root_dash.store.backends.sqlite_file import check_file, check_writable, connect_reader, primary_code
from root_dash.store.limits import Limits
from root_dash.store.tables.schema import APPLICATION_ID
from root_dash.store.tables.versions import BASE_VERSION, SCHEMA_VERSION, check_version

_MIGRATING = "root-dash migrate"
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'root-dash' AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of the schema."""

    newest: int = SCHEMA_VERSION
    """The schema version after the last of them."""
    folders: tuple[Path, ...] = ()
    """Folders of more revisions beside our own."""


@dataclass(frozen=True, slots=True)
class Migration:
    """The result of a migration: the schema versions before and after, and the copy of the old file."""

    location: Location
    before: int
    after: int
    backup: Path | None
    """The copy of the old file. None for a server, whose administrator makes the backups."""


def migrate(given: LocationLike, revisions: Revisions | None = None, limits: Limits | None = None) -> Migration | None:
    """Bring a database of an older schema up to date; return None if there is nothing to do.

    A copy of a SQLite file is kept beside the file.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be written; the server cannot be reached.
        StoreForeign: the database is not one of root-dash, or has a schema version that cannot be brought up to date.
        StoreBusy: another process has the database open. A trainer of the older version would go on writing what it
            knows into tables that have changed.
    """
    return migrate_backend(backend_for(parse(given), limits), revisions)


def migrate_backend(backend: Backend, revisions: Revisions | None = None) -> Migration | None:
    """Bring the database of a backend up to date, as `migrate` does."""
    revisions = Revisions() if revisions is None else revisions
    if isinstance(backend, SqliteBackend):
        return _migrate_file(backend, revisions)
    assert isinstance(backend, PostgresBackend)
    return _migrate_server(backend, revisions)


def _migrate_file(backend: SqliteBackend, revisions: Revisions) -> Migration | None:
    path = backend.location
    before = _file_version(backend)
    if before == revisions.newest or not _is_older(path, before, revisions.newest):
        return None
    check_writable(path)
    engine = backend.writing_engine("mode=rw")
    try:
        with backend.translated():
            _require_no_other_connection(engine, path)
            backup = _back_up(engine, path, before)
            with engine.begin() as connection:
                # Under the write lock: if two processes migrate at once, only the first does the work.
                if connection.exec_driver_sql("PRAGMA user_version").scalar_one() == before:
                    _upgrade(connection, revisions)
                    connection.exec_driver_sql(f"PRAGMA user_version={revisions.newest}")
    finally:
        engine.dispose()
    return Migration(path, before, revisions.newest, backup)


def _migrate_server(backend: PostgresBackend, revisions: Revisions) -> Migration | None:
    server = backend.location
    engine = backend.engine("READ COMMITTED", read_only=False, application=_MIGRATING)
    try:
        with backend.translated(), engine.begin() as connection:
            if not backend.columns(connection):
                return None  # an empty database: opening for writing makes the tables
            if backend.version(connection) == revisions.newest:
                return None
            backend.lock(connection)  # if two processes migrate at once, one does and the other finds it done
            before = backend.version(connection)
            if not _is_older(server, before, revisions.newest):
                return None
            if connection.exec_driver_sql(_OTHERS).scalar_one():
                raise _busy(server)
            _upgrade(connection, revisions)
    finally:
        engine.dispose()
    return Migration(server, before, revisions.newest, None)


def _is_older(location: Location, version: int, newest: int) -> bool:
    """Return whether a version can be brought up to date.

    Raises:
        StoreForeign: the version is newer, or too old.
    """
    if BASE_VERSION <= version < newest:
        return True
    check_version(location, version, newest)
    return False


def _file_version(backend: SqliteBackend) -> int:
    """Return the schema version of a file of root-dash.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be read.
        StoreForeign: the file is not a database of root-dash.
    """
    path = backend.location
    check_file(path)
    with backend.translated():
        connection = connect_reader(path, backend.limits.lock_seconds)
        try:
            application, version = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
            )
        finally:
            connection.close()
    if application != APPLICATION_ID:
        check_header(path, application, version)
    return version


def _upgrade(connection: Connection, revisions: Revisions) -> None:
    # Imported only here: a trainer whose database is up to date need not wait for Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "root_dash.store:migrations")
    config.set_main_option("path_separator", "os")
    if revisions.folders:
        own = Path(__file__).parent / "versions"
        config.set_main_option("version_locations", ":".join(str(folder) for folder in (own, *revisions.folders)))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _require_no_other_connection(engine: Engine, path: Path) -> None:
    """Raise StoreBusy if another connection has the file open."""
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        try:
            # SQLite leaves the write-ahead log only if nobody else has the database open.
            mode = cursor.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        except sqlite3.OperationalError as error:
            if primary_code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            mode = "wal"
        if mode != "delete":
            raise _busy(path)
        cursor.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        raw.close()


def _busy(location: Location) -> StoreBusy:
    return StoreBusy(f"{location} must be migrated, but another process has it open: stop that process first")


def _back_up(engine: Engine, path: Path, version: int) -> Path:
    """Write a whole copy of the file under a free name, and return its path."""
    endings = chain([""], (f".{number}" for number in count(2)))
    names = (path.with_name(f"{path.name}.schema-{version}{ending}") for ending in endings)
    backup = next(name for name in names if not name.exists())
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("VACUUM INTO ?", (str(part),))
    finally:
        raw.close()
    part.replace(backup)
    return backup
