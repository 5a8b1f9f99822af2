"""From an older schema to this one: a copy first, then everything in one transaction.

`versions/` holds Alembic's revisions, one for each schema version. They change the tables that hold what was recorded;
what is derived from it, the pyramid, they leave empty, and it is made anew at the end of the same transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select

from root_dash.exceptions import StoreBusy
from root_dash.store.backends.engine import open_reader
from root_dash.store.backends.location import Given, parse
from root_dash.store.backends.sqlite import (
    check_file,
    check_writable,
    connect,
    connect_reader,
    make_engine,
    refuse_schema,
    translated,
)
from root_dash.store.pyramid import run_totals
from root_dash.store.pyramid.fold import Pyramid
from root_dash.store.tables import schema


@dataclass(frozen=True, slots=True)
class Migration:
    """That a database was brought from one schema version to another; `backup` is the copy of what it was."""

    path: Path
    before: int
    after: int
    backup: Path


def migrate(given: Given) -> Migration | None:
    """Bring a database of an older schema up to date; None where it is. A copy is kept beside it.

    PostgreSQL's begin at schema 3, and there is none that is older.

    What a process that is killed meanwhile leaves is the database as it was, or as it is to be.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be written.
        StoreForeign: it is no database of ours, or of a newer schema version.
        StoreBusy: another process has it open.
    """
    path = parse(given)
    if not isinstance(path, Path):
        open_reader(path).dispose()
        return None
    version = older(path)
    if version is None:
        return None
    check_writable(path)
    engine = make_engine(lambda: connect(path, "mode=rw", "PRAGMA synchronous=NORMAL"), "BEGIN IMMEDIATE")
    try:
        with translated(path):
            _be_alone(engine, path)
            backup = _back_up(engine, path, version)
            with engine.begin() as connection:
                # Under the write lock: of two that migrate at once one does and the other finds.
                if connection.exec_driver_sql("PRAGMA user_version").scalar_one() == version:
                    _upgrade(connection, version)
                    connection.exec_driver_sql(f"PRAGMA user_version={schema.SCHEMA_VERSION}")
    finally:
        engine.dispose()
    return Migration(path, version, schema.SCHEMA_VERSION, backup)


def older(path: Path) -> int | None:
    """The schema version of a database of ours where it is an older one.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be read.
        StoreForeign: it is no database of ours, or of a newer schema version.
    """
    check_file(path)
    with translated(path):
        connection = connect_reader(path)
        try:
            application, version = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
            )
        finally:
            connection.close()
    if application == schema.APPLICATION_ID and 1 <= version < schema.SCHEMA_VERSION:
        return version
    refuse_schema(application, version, path)
    return None


def _upgrade(connection: Connection, version: int) -> None:
    # Only here: a trainer whose database is up to date need not wait for Alembic.
    from alembic import command
    from alembic.config import Config

    if not inspect(connection).has_table(schema.alembic_version.name):
        schema.alembic_version.create(connection)
        connection.execute(schema.alembic_version.insert(), {"version_num": schema.revision(version)})
    config = Config()
    config.set_main_option("script_location", "root_dash.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    for run_id in list(connection.scalars(select(schema.runs.c.id))):
        Pyramid(connection, run_id).rebuild()
        run_totals.recount(connection, run_id)


def _be_alone(engine: Engine, path: Path) -> None:
    """Raise StoreBusy where another connection has the database open.

    A trainer of the older version would go on writing what it knows into tables that have changed.
    """
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        try:
            # SQLite leaves the write-ahead log only when nobody else has the database open.
            mode = cursor.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            mode = "wal"
        if mode != "delete":
            raise StoreBusy(f"{path} must be migrated, but another process has it open: stop that first")
        cursor.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        raw.close()


def _back_up(engine: Engine, path: Path, version: int) -> Path:
    """A whole copy of the database, under a name that was free."""
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
