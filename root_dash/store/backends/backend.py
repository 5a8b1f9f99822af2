"""The protocol of a database, which a SQLite file and a PostgreSQL database implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, Table, UpdateBase
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

from root_dash.records import IntArray
from root_dash.store.backends.location import Location
from root_dash.store.limits import Limits


class Executed(Protocol):
    """What a statement found and changed."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""


class Backend(Protocol):
    """A database. Methods with a connection as argument run inside the transaction of the connection."""

    @property
    def location(self) -> Location:
        """Where the database is."""

    @property
    def limits(self) -> Limits:
        """How long the database is waited for, and how its pyramid is divided."""

    def open_reader(self) -> Engine:
        """Return an engine of read-only connections whose transactions see one moment of the database.

        Raises:
            StoreNotFound: the file is missing, a directory, or cannot be read; the server cannot be reached.
            StoreForeign: the database is not one of root-dash, or has another schema version.
        """

    def open_writer(self) -> Engine:
        """Return an engine for writing; make what the database lacks.

        Raises:
            StoreNotFound: the folder is missing, the path is a directory, or the file cannot be written; the server
                cannot be reached.
            StoreForeign: the database is not one of root-dash, or has another schema version.
        """

    def columns(self, connection: Connection) -> dict[str, set[str]]:
        """Return the names of all columns that the database has, by table."""

    def identity(self) -> tuple[int, int] | None:
        """Return the device and inode of the file, or None if there is no file; None for a server."""

    def state(self, engine: Engine) -> tuple[int, ...] | None:
        """Return the state of the file that the engine has opened; None without a file or for a server."""

    def size(self, engine: Engine) -> int:
        """Return the bytes on disk of the file, or of the tables."""

    def compact(self, engine: Engine) -> None:
        """Give the room of removed rows back to the disk: everything is written anew."""

    def insert_rows(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of all our columns of a table, in the order of the columns; NaN is stored as NULL."""

    def insert_numbers(
        self, connection: Connection, table: Table, keys: IntArray, values: NDArray[np.floating[Any]]
    ) -> None:
        """Insert rows of integers, (rows, keys), followed by numbers, (rows, statistics)."""

    def execute(self, connection: Connection, statement: UpdateBase, parameters: Mapping[str, Any]) -> Executed:
        """Execute a statement that every frame needs; the parameters need no conversion."""

    def insert(self, table: Table) -> SqliteInsert | PostgresInsert:
        """Return an INSERT with a clause for rows that exist already."""

    def lock(self, connection: Connection, run_id: int | None = None, *, notify: bool = False) -> None:
        """Lock a run for writing, or without a run the beginning of runs, until the commit.

        With `notify`, followers of the run are notified at the commit. In PostgreSQL, two transactions that
        write to a run at once might become visible in another order than the order of their cursors, and a follower
        would never see the late one.
        """

    def frame_ids(self) -> ColumnElement[int]:
        """Return the ids of the frames, by which the frames of a run are compared and ordered."""

    def durable(self, connection: Connection) -> AbstractContextManager[None]:
        """Make what is committed inside the block outlive a loss of power."""

    def translated(self) -> AbstractContextManager[None]:
        """Turn errors of SQLAlchemy and the driver inside the block into the store's own errors."""


def backend_of(connection: Connection) -> Backend:
    """Return the backend of a connection."""
    return cast("Backend", connection.get_execution_options()["backend"])
