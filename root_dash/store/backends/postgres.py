"""PostgreSQL behind the verbs of a backend: engines, the tables, locks and notifications, and what the errors mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    QueuePool,
    Table,
    UpdateBase,
    create_engine,
    event,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import DropConstraint

from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreFull, StoreNotFound, missing_extra
from root_dash.records import IntArray
from root_dash.store.backends import postgres_rows
from root_dash.store.backends.backend import Executed
from root_dash.store.backends.location import Server
from root_dash.store.backends.postgres_rows import quoted
from root_dash.store.limits import Limits
from root_dash.store.tables import schema
from root_dash.store.tables.growth import grow
from root_dash.store.tables.versions import SCHEMA_VERSION, check_version, revision

CHANNEL = "root_dash"
"""The channel of the notifications. Their payload is the id of a run."""

_SETTINGS: dict[str, Any] = {
    "application_name": "root-dash",
    # A server whose machine is gone does not answer: without these settings a writer would wait for hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_BUSY = ("55P03", "40001", "40P01", "53300", "57P01", "57P02", "57P03")
"""SQLSTATEs of locks, deadlocks, too many connections, and a server that starts or stops: all of these pass."""

_COLUMNS = (
    "SELECT c.relname, a.attname FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
    " WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
)

_CLUSTERED = (*schema.RECORDINGS.values(), schema.scalars)


@dataclass(frozen=True, slots=True)
class PostgresBackend:
    """A database of a PostgreSQL server."""

    location: Server
    limits: Limits = field(default_factory=Limits)

    # Opening

    def open_reader(self) -> Engine:
        """Return an engine of read-only connections whose transactions see one moment of the database."""
        engine = self.engine("REPEATABLE READ", read_only=True)
        try:
            with self.translated(), engine.connect() as connection:
                check_version(self.location, self.version(connection))
        except BaseException:
            engine.dispose()
            raise
        return engine

    def open_writer(self) -> Engine:
        """Return an engine for writing; make missing tables and columns."""
        # A writer must see what another writer committed while this writer waited for the lock.
        engine = self.engine("READ COMMITTED", read_only=False)
        try:
            with self.translated(), engine.begin() as connection:
                self.lock(connection)  # if two trainers start at once, one makes the tables and the other finds them
                found = self.columns(connection)
                if not found:
                    self.make_tables(connection, schema.metadata.sorted_tables)
                    connection.execute(insert(schema.alembic_version), {"version_num": revision(SCHEMA_VERSION)})
                else:
                    check_version(self.location, self.version(connection))
                    grow(connection, found, self.make_tables)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def engine(self, isolation: Any, *, read_only: bool, application: str = "root-dash") -> Engine:
        """Return an engine whose connections read rows in binary.

        Raises:
            StoreError: psycopg is not installed.
        """
        try:
            import psycopg
        except ImportError:
            raise StoreError(missing_extra("PostgreSQL", "psycopg", "postgres")) from None

        class BinaryCursor(psycopg.Cursor[Any]):
            """A cursor that reads rows in binary: arrays need no parsing, and numbers keep their bits."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.format = psycopg.pq.Format.BINARY

        class BinaryServerCursor(psycopg.ServerCursor[Any]):
            """A cursor that reads many rows part by part, in binary."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.format = psycopg.pq.Format.BINARY

        query = self.location.url.query
        settings = {
            **_SETTINGS,
            "application_name": application,
            "connect_timeout": self.limits.connect_seconds,
        }
        # No JIT: to compile a query takes longer than to answer the query.
        options = f"{query.get('options', '')} -c jit=off -c lock_timeout={int(1e3 * self.limits.lock_seconds)}"
        engine = create_engine(
            self.location.url,
            connect_args={name: value for name, value in settings.items() if name not in query} | {"options": options},
            isolation_level=isolation,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=-1,  # a request for a connection would wait behind requests that wait for the disk
            pool_pre_ping=True,  # a server that was restarted is no error for whoever asks next
        )
        engine.update_execution_options(backend=self)

        @event.listens_for(engine, "connect")
        def on_connect(connection: psycopg.Connection[Any], record: object) -> None:
            connection.cursor_factory = BinaryCursor
            connection.server_cursor_factory = BinaryServerCursor
            connection.read_only = read_only

        return engine

    def version(self, connection: Connection) -> int:
        """Return the schema version of the database; 0 if its text is not a number.

        Raises:
            StoreForeign: the database is empty, or holds the tables of somebody else.
        """
        names = self.columns(connection).keys()
        if not names:
            raise StoreForeign(f"{self.location} is empty")
        if not names >= {schema.alembic_version.name, "runs", "layer_statistics"}:
            raise StoreForeign(f"{self.location} holds tables that are not of root-dash: give it a database of its own")
        text = connection.execute(select(schema.alembic_version.c.version_num)).scalar() or ""
        return int(text) if text.isdecimal() else 0

    def make_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Make missing tables, and tune how the server stores them."""
        schema.metadata.create_all(connection, tables=tables)
        for table in tables:
            name = quoted(connection, table.name)
            blobs = [column.name for column in table.c if isinstance(column.type, LargeBinary)]
            if blobs:
                # BLOBs are compressed already: the server must not try again.
                changes = ", ".join(f"ALTER COLUMN {quoted(connection, blob)} SET STORAGE EXTERNAL" for blob in blobs)
                connection.exec_driver_sql(f"ALTER TABLE {name} {changes}")
            if table in _CLUSTERED:
                # The frame of a row is stored in the same transaction, and layers stay: to look both up again for every
                # row took the server 1.1 ms of the 2.1 ms that it worked on a frame of 150 layers.
                # `root-dash doctor --thorough` looks for rows without a frame.
                for key in table.foreign_key_constraints:
                    connection.execute(DropConstraint(key))
            if table is schema.pyramid_cells:
                # A bucket is made anew together with every bucket that covers it: in the room of its old rows.
                connection.exec_driver_sql(f"ALTER TABLE {name} SET (fillfactor = 50)")
            if table is schema.layer_statistics:
                connection.execute(DropConstraint(table.primary_key))
            elif table in schema.RECORDINGS.values():
                # Rows come in the order of their keys: room between the entries would stay empty.
                index = quoted(connection, str(table.primary_key.name))
                connection.exec_driver_sql(f"ALTER INDEX {index} SET (fillfactor = 100)")

    def columns(self, connection: Connection) -> dict[str, set[str]]:
        """Return the names of all columns that the database has, by table."""
        found: dict[str, set[str]] = {}
        for table, column in connection.exec_driver_sql(_COLUMNS):
            found.setdefault(table, set()).add(column)
        return found

    # The database

    def identity(self) -> None:
        """Return None: a server's database has no file of ours."""

    def state(self, engine: Engine) -> None:
        """Return None: a server's connections always see what there is."""

    def size(self, engine: Engine) -> int:
        """Return the bytes of our tables, with their indices and arrays."""
        sizes = [func.pg_total_relation_size(table.name) for table in schema.metadata.sorted_tables]
        with self.translated(), engine.connect() as connection:
            known = self.columns(connection)
            sizes = [
                size for size, table in zip(sizes, schema.metadata.sorted_tables, strict=True) if table.name in known
            ]
            return sum(connection.execute(select(*sizes)).one())

    def compact(self, engine: Engine) -> None:
        """Write our tables anew without removed rows. Nobody can use a table meanwhile."""
        with self.translated(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in schema.metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {quoted(connection, table.name)}")

    # Statements

    def insert_rows(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of all our columns of a table, in the order of the columns; NaN is stored as NULL."""
        postgres_rows.insert_rows(connection, table, rows)

    def insert_numbers(
        self, connection: Connection, table: Table, keys: IntArray, values: NDArray[np.floating[Any]]
    ) -> None:
        """Copy rows of integers, (rows, keys), followed by numbers of 32 bits."""
        postgres_rows.insert_numbers(connection, table, keys, values)

    def execute(self, connection: Connection, statement: UpdateBase, parameters: Mapping[str, Any]) -> Executed:
        """Execute a statement that every frame needs."""
        found: Executed = connection.execute(statement, parameters)
        return found

    def insert(self, table: Table) -> Insert:
        """Return an INSERT with a clause for rows that exist already."""
        return insert_into(table)

    def lock(self, connection: Connection, run_id: int | None = None, *, notify: bool = False) -> None:
        """Lock a run for writing, or without a run the beginning of runs, until the commit.

        With `notify`, listeners are notified at the commit: in the same round trip.
        """
        query = select(func.pg_advisory_xact_lock(schema.APPLICATION_ID << 32 | (run_id or 0) % 2**32))
        connection.execute(query.add_columns(func.pg_notify(CHANNEL, str(run_id))) if notify else query)

    def frame_ids(self) -> ColumnElement[int]:
        """Return the ids of the frames in a form for which the server uses the index of the run.

        If the plain ids are ordered, PostgreSQL takes the frames of a run for evenly spread over all frames, and goes
        through the frames of later runs: 80 ms for the newest frame of the first of two runs of 1,000,000.
        """
        return schema.frames.c.id + literal_column("0")

    def durable(self, connection: Connection) -> AbstractContextManager[None]:
        """Do nothing: PostgreSQL writes every commit through to the disk."""
        return nullcontext()

    # Errors

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy and psycopg inside the block into the store's own errors."""
        import psycopg

        try:
            yield
        except (DBAPIError, psycopg.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            state, operational = getattr(cause, "sqlstate", None), isinstance(cause, psycopg.OperationalError)
            self._raise(error, state, str(cause), operational)
        except SQLAlchemyError as error:
            raise StoreError(f"{self.location}: {error}") from error

    def _raise(self, error: Exception, state: str | None, text: str, operational: bool) -> NoReturn:
        server = self.location
        reason = " ".join(text.split()).removeprefix("connection failed: ")
        if server.url.password:
            reason = reason.replace(str(server.url.password), "***")
        if state == "22003":
            raise ValueError("ids and steps must be integers of 64 bits") from error
        if state in _BUSY:
            raise StoreBusy(f"{server} is busy: {reason}") from error
        if (state is None and operational) or (state or "").startswith(("08", "28", "3D")):
            raise StoreNotFound(f"{server} cannot be reached: {reason}") from error
        if state == "53100":
            raise StoreFull(f"{server}: {reason}") from error
        raise StoreError(f"{server}: {reason}") from error
