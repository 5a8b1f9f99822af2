"""Opening a database, whichever kind it is: SQLite's ways are in `sqlite.py`, PostgreSQL's in `postgres.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, Table, UpdateBase, literal_column
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from root_dash.records import IntArray
from root_dash.store.backends import postgres, sqlite
from root_dash.store.backends.location import Place
from root_dash.store.tables import schema


class Found(Protocol):
    """What a statement found and did."""

    @property
    def rowcount(self) -> int:
        """The number of rows that it changed."""

    def fetchone(self) -> Any:
        """The next row, or None."""


def open_reader(place: Place) -> Engine:
    """An engine of read-only connections to a database of ours, whose transactions see one moment of it.

    Raises:
        StoreNotFound: the file is missing, a directory, or cannot be read; the server cannot be reached.
        StoreForeign: it is no database of ours, or of another schema version.
    """
    return sqlite.open_reader(place) if isinstance(place, Path) else postgres.open_reader(place)


def open_writer(place: Place) -> Engine:
    """An engine for writing, the tables made where they are missing.

    Raises:
        StoreNotFound: the folder is missing, the path is a directory, or it cannot be written; the server cannot be
            reached.
        StoreForeign: it is a database that is not ours, or of another schema version.
    """
    return sqlite.open_writer(place) if isinstance(place, Path) else postgres.open_writer(place)


def translated(place: Place) -> AbstractContextManager[None]:
    """Turn what SQLAlchemy and the driver raise inside into the store's own errors."""
    return sqlite.translated(place) if isinstance(place, Path) else postgres.translated(place)


def identity(place: Place) -> tuple[int, int] | None:
    """Which file the path names now, by device and inode; None where there is none, and of a server."""
    return sqlite.identity(place) if isinstance(place, Path) else None


def state(engine: Engine, place: Place) -> tuple[int, ...] | None:
    """What has to stay for the engine's connections to see what there is; None where there is no file, of a server."""
    return sqlite.state(engine, place) if isinstance(place, Path) else None


def size(engine: Engine, place: Place) -> int:
    """The bytes on disk of the file, or of the tables."""
    return place.stat().st_size if isinstance(place, Path) else postgres.size(engine, place)


def give_space_back(engine: Engine, place: Place) -> None:
    """Give the room of what was removed back to the disk: everything is written anew."""
    if isinstance(place, Path):
        sqlite.give_space_back(engine, place)
    else:
        postgres.give_space_back(engine, place)


def insert_rows(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of all the table's columns, in their order; NaN is stored as NULL, "not recorded"."""
    if not rows:
        return
    if _of_postgres(connection):
        postgres.insert_rows(connection, table, rows)
    else:
        sqlite.insert_rows(connection, table, rows)


def insert_numbers(connection: Connection, table: Table, keys: IntArray, values: NDArray[np.floating[Any]]) -> None:
    """Insert rows of a table that holds integers, rows x keys, and then numbers, rows x statistics; NaN as NULL."""
    if _of_postgres(connection):
        postgres.insert_numbers(connection, table, keys, values)
    else:
        rows = zip(keys.tolist(), values.tolist(), strict=True)
        sqlite.insert_rows(connection, table, [(*key, *numbers) for key, numbers in rows])


def execute(connection: Connection, statement: UpdateBase, parameters: Mapping[str, Any]) -> Found:
    """Execute a statement of those that every frame needs; its parameters are taken as they are."""
    if _of_postgres(connection):
        found: Found = connection.execute(statement, parameters)
        return found
    return sqlite.execute(connection, statement, parameters)


def insert_or_ignore(connection: Connection, table: Table) -> SqliteInsert | PostgresInsert:
    """An INSERT that can be told what to do where the row is there already."""
    return postgres_insert(table) if _of_postgres(connection) else sqlite_insert(table)


def lock(connection: Connection, run_id: int | None = None, *, telling: bool = False) -> None:
    """Until the transaction ends be the only one that writes to the run, or that begins a run.

    With `telling` those who listen are told that the run has grown, once the transaction is through.

    SQLite's transactions are alone from their start. In PostgreSQL two that wrote to a run at once might become visible
    in another order than that of their cursors, and a follower would never see the one that came late.
    """
    if _of_postgres(connection):
        postgres.lock(connection, run_id, telling=telling)


def cursors(connection: Connection) -> ColumnElement[int]:
    """The frames' ids, to compare and to order one run's by, so that the run's own index is used.

    Told plainly PostgreSQL takes a run's frames for evenly spread over all, and goes through those of the runs after
    it: 80 ms for the newest frame of the first of two runs of 1,000,000.
    """
    ids = schema.frames.c.id
    return ids + literal_column("0") if _of_postgres(connection) else ids


def _of_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
