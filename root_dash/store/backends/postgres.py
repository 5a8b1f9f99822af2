"""PostgreSQL: connections, the tables, rows by COPY, locks and notifications, and what its errors mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    Connection,
    Engine,
    LargeBinary,
    QueuePool,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import DropConstraint

from root_dash.exceptions import StoreBusy, StoreError, StoreForeign, StoreFull, StoreNotFound
from root_dash.extras import missing_extra
from root_dash.records import IntArray
from root_dash.store.backends.location import Server
from root_dash.store.tables.schema import (
    APPLICATION_ID,
    RECORDINGS,
    SCHEMA_VERSION,
    alembic_version,
    layer_statistics,
    metadata,
    pyramid_cells,
    revision,
    scalars,
)

LOCK_TIMEOUT = 5.0  # seconds that a statement waits for another's lock
CONNECT_TIMEOUT = 5  # seconds until a server that does not answer counts as gone

CHANNEL = "root_dash"
"""Where notifications go; what they say is the run's id."""

_SETTINGS: dict[str, Any] = {
    "application_name": "root-dash",
    "connect_timeout": CONNECT_TIMEOUT,
    # A server whose machine is gone answers nothing at all: without these a writer would wait for it for hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_FEW = 4
"""Rows up to which an INSERT, one round trip, is quicker than a COPY, which is two."""

_COPY_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_VALUE = np.dtype([("size", ">i4"), ("x", ">f4")])

_BUSY = ("55P03", "40001", "40P01", "53300", "57P01", "57P02", "57P03")
"""Of locks, deadlocks, too many connections, and a server that starts or stops: all of them pass."""


def open_reader(server: Server) -> Engine:
    """An engine of read-only connections to a database of ours, whose transactions see one moment of it."""
    engine = _engine(server, "REPEATABLE READ", read_only=True)
    try:
        with translated(server), engine.connect() as connection:
            check_schema(connection, server)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_writer(server: Server) -> Engine:
    """An engine for writing, the tables made where the database has none."""
    # What another has committed while this one waited for its lock is to be seen.
    engine = _engine(server, "READ COMMITTED", read_only=False)
    try:
        with translated(server), engine.begin() as connection:
            lock(connection)  # of two trainers that start at once one creates and the other finds
            if not inspect(connection).get_table_names():
                _create_schema(connection)
            check_schema(connection, server)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _engine(server: Server, isolation: Any, *, read_only: bool) -> Engine:
    try:
        import psycopg
    except ImportError:
        raise StoreError(missing_extra("PostgreSQL", "psycopg", "postgres")) from None

    class Binary(psycopg.Cursor[Any]):
        """A cursor that takes rows in binary: arrays need no parsing then, and numbers are what they were."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.format = psycopg.pq.Format.BINARY

    class BinaryOfServer(psycopg.ServerCursor[Any]):
        """So does one that takes many rows bit by bit."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.format = psycopg.pq.Format.BINARY

    said = server.url.query
    # No JIT: to compile a query of ours takes longer than to answer it.
    options = f"{said.get('options', '')} -c jit=off -c lock_timeout={int(1e3 * LOCK_TIMEOUT)}"
    engine = create_engine(
        server.url,
        connect_args={name: value for name, value in _SETTINGS.items() if name not in said} | {"options": options},
        isolation_level=isolation,
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=-1,  # a request that waits for a connection would wait behind requests that wait for the disk
        pool_pre_ping=True,  # a server that was restarted is no error to who asks next
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: psycopg.Connection[Any], record: object) -> None:
        connection.cursor_factory = Binary
        connection.server_cursor_factory = BinaryOfServer
        connection.read_only = read_only

    return engine


def check_schema(connection: Connection, server: Server) -> None:
    """Raise StoreForeign where the tables are not those of a database that this version reads."""
    names = set(inspect(connection).get_table_names())
    if not names:
        raise StoreForeign(f"{server} is empty")
    if not names >= {alembic_version.name, "runs", "layer_statistics"}:
        raise StoreForeign(f"{server} holds tables that are not of root-dash: give it a database of its own")
    said = connection.execute(select(alembic_version.c.version_num)).scalar() or ""
    version = int(said) if said.isdecimal() else 0
    if version > SCHEMA_VERSION:
        raise StoreForeign(
            f"{server} was written by a newer root-dash (schema {version}, this one knows {SCHEMA_VERSION}): upgrade"
        )
    if version < SCHEMA_VERSION:
        raise StoreForeign(
            f"{server} has schema {said or 'none'}, which no root-dash ever kept in PostgreSQL: "
            f"record to a database of its own"
        )


def _create_schema(connection: Connection) -> None:
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        blobs = [column.name for column in table.c if isinstance(column.type, LargeBinary)]
        if blobs:
            # They are compressed already: the server is not to try again.
            changes = ", ".join(f"ALTER COLUMN {_quoted(connection, name)} SET STORAGE EXTERNAL" for name in blobs)
            connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, table.name)} {changes}")
    for table in (*RECORDINGS.values(), scalars):
        # Their frame is stored in the same transaction, and layers stay: to look both up again for every row took the
        # server 1.1 ms of the 2.1 ms that it worked on a frame of 150 layers. `root-dash doctor --thorough` looks.
        for key in table.foreign_key_constraints:
            connection.execute(DropConstraint(key))
    # Buckets are made anew with every one that they cover: in the room that the ones before leave on their pages.
    connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, pyramid_cells.name)} SET (fillfactor = 50)")
    connection.execute(DropConstraint(layer_statistics.primary_key))
    for table in RECORDINGS.values():
        if table is not layer_statistics:
            # Rows come in the order of their keys: room between them would stay empty.
            name = _quoted(connection, str(table.primary_key.name))
            connection.exec_driver_sql(f"ALTER INDEX {name} SET (fillfactor = 100)")
    connection.execute(insert(alembic_version), {"version_num": revision(SCHEMA_VERSION)})


def lock(connection: Connection, run_id: int | None = None, *, telling: bool = False) -> None:
    """Until the transaction ends be the only one that writes to the run, or that begins one.

    With `telling` those who listen are notified, once the transaction is through: in the same round trip.
    """
    query = select(func.pg_advisory_xact_lock(APPLICATION_ID << 32 | (run_id or 0) % 2**32))
    connection.execute(query.add_columns(func.pg_notify(CHANNEL, str(run_id))) if telling else query)


def size(engine: Engine, server: Server) -> int:
    """The bytes of our tables, with their indices and arrays."""
    sizes = [func.pg_total_relation_size(table.name) for table in metadata.sorted_tables]
    with translated(server), engine.connect() as connection:
        return sum(connection.execute(select(*sizes)).one())


def give_space_back(engine: Engine, server: Server) -> None:
    """Write our tables anew without the rows that are gone. Nobody can use a table meanwhile."""
    with translated(server), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in metadata.sorted_tables:
            connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {_quoted(connection, table.name)}")


# Rows


def insert_rows(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of all the columns that the table has here, in the order of that; NaN as NULL."""
    if len(rows) <= _FEW:
        cursor: Any = connection.connection.cursor()
        places = ", ".join(["%b"] * len(table.c))
        try:
            cursor.executemany(
                f"INSERT INTO {_columns(connection, table)} VALUES ({places})",  # noqa: S608 (of our own names)
                [[None if value != value else value for value in row] for row in rows],
            )
        finally:
            cursor.close()
        return
    types = list(_types(connection, table))
    with _copying(connection, table) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row([None if value != value else value for value in row])


def insert_numbers(connection: Connection, table: Table, keys: IntArray, values: NDArray[np.floating[Any]]) -> None:
    """Copy rows of a table that holds integers and then numbers of 32 bits; NaN as NULL."""
    types = _types(connection, table)[: keys.shape[1]]
    kinds = [np.dtype(">i4" if name == "int4" else ">i8") for name in types]
    with _copying(connection, table) as copy:
        copy.write(_packed(keys, kinds, values))


def _packed(keys: IntArray, kinds: Sequence[np.dtype[Any]], values: NDArray[np.floating[Any]]) -> bytes:
    """Rows as COPY reads them in binary: the number of fields, and of each its length and its bytes."""
    rows, narrow = values.shape
    places = [(f"key {at}", [("size", ">i4"), ("n", kind)]) for at, kind in enumerate(kinds)]
    content = np.empty(rows, [("fields", ">i2"), *places, ("values", _VALUE, narrow)])
    content["fields"] = len(kinds) + narrow
    for at, ((place, _), kind) in enumerate(zip(places, kinds, strict=True)):
        content[place]["size"], content[place]["n"] = kind.itemsize, keys[:, at]
    missing = np.isnan(values)
    content["values"]["size"], content["values"]["x"] = np.where(missing, -1, 4), values
    packed = content.view(np.uint8).reshape(rows, -1)
    if missing.any():
        kept = np.ones(packed.shape, np.bool_)
        kept[:, -narrow * _VALUE.itemsize :].reshape(rows, narrow, 8)[:, :, 4:] = ~missing[:, :, None]  # NULL: no bytes
        packed = packed[kept]
    return _COPY_START + packed.tobytes() + _COPY_END


@contextmanager
def _copying(connection: Connection, table: Table) -> Iterator[Any]:
    cursor: Any = connection.connection.cursor()  # psycopg's own: SQLAlchemy has no COPY
    try:
        with cursor.copy(f"COPY {_columns(connection, table)} FROM STDIN (FORMAT BINARY)") as copy:
            yield copy
    finally:
        cursor.close()


def _columns(connection: Connection, table: Table) -> str:
    names = ", ".join(_quoted(connection, name) for name in table.c.keys())
    return f"{_quoted(connection, table.name)} ({names})"


def _types(connection: Connection, table: Table) -> tuple[str, ...]:
    """The types of the table's columns, in our order, as the database has them: some were made with wider ids."""
    known: dict[Table, tuple[str, ...]] = connection.info.setdefault("root_dash_types", {})
    if table not in known:
        cursor: Any = connection.connection.cursor()
        try:
            names = ", ".join(_quoted(connection, name) for name in table.c.keys())
            cursor.execute(f"SELECT {names} FROM {_quoted(connection, table.name)} LIMIT 0")  # noqa: S608
            known[table] = tuple(column.type_display.partition("(")[0] for column in cursor.description)
        finally:
            cursor.close()
    return known[table]


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


# Errors


@contextmanager
def translated(server: Server) -> Iterator[None]:
    """Turn what SQLAlchemy and psycopg raise inside into the store's own errors."""
    import psycopg

    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        _raise(server, error, getattr(cause, "sqlstate", None), str(cause), isinstance(cause, psycopg.OperationalError))
    except SQLAlchemyError as error:
        raise StoreError(f"{server}: {error}") from error


def _raise(server: Server, error: Exception, state: str | None, text: str, operational: bool) -> NoReturn:
    said = " ".join(text.split()).removeprefix("connection failed: ")
    if server.url.password:
        said = said.replace(str(server.url.password), "***")
    if state == "22003":
        raise ValueError("ids and steps must be integers of 64 bits") from error
    if state in _BUSY:
        raise StoreBusy(f"{server} is busy: {said}") from error
    if (state is None and operational) or (state or "").startswith(("08", "28", "3D")):
        raise StoreNotFound(f"{server} cannot be reached: {said}") from error
    if state == "53100":
        raise StoreFull(f"{server}: {said}") from error
    raise StoreError(f"{server}: {said}") from error
