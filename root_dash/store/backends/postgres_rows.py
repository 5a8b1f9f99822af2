"""Rows into PostgreSQL by binary COPY, or by INSERT if there are few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Table

from root_dash.records import IntArray

_INSERTED_ROWS = 4
"""Rows up to which an INSERT, with one round trip, is quicker than a COPY, with two."""

_COPY_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_VALUE = np.dtype([("size", ">i4"), ("x", ">f4")])


def insert_rows(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of all our columns of a table, in the order of the columns; NaN is stored as NULL."""
    if not rows:
        return
    if len(rows) <= _INSERTED_ROWS:
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
    """Copy rows of integers, (rows, keys), followed by numbers of 32 bits; NaN is stored as NULL."""
    types = _types(connection, table)[: keys.shape[1]]
    kinds = [np.dtype(">i4" if name == "int4" else ">i8") for name in types]
    with _copying(connection, table) as copy:
        copy.write(_packed(keys, kinds, values))


def quoted(connection: Connection, name: str) -> str:
    """Return a name as an SQL identifier."""
    return connection.dialect.identifier_preparer.quote(name)


def _packed(keys: IntArray, kinds: Sequence[np.dtype[Any]], values: NDArray[np.floating[Any]]) -> bytes:
    """Return rows in the binary format of COPY: the number of fields, and then the length and bytes of each field."""
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
    names = ", ".join(quoted(connection, name) for name in table.c.keys())
    return f"{quoted(connection, table.name)} ({names})"


def _types(connection: Connection, table: Table) -> tuple[str, ...]:
    """Return the types of the table's columns, in our order, as the database has them: some tables have wider ids."""
    known: dict[Table, tuple[str, ...]] = connection.info.setdefault("root_dash_types", {})
    if table not in known:
        cursor: Any = connection.connection.cursor()
        try:
            names = ", ".join(quoted(connection, name) for name in table.c.keys())
            cursor.execute(f"SELECT {names} FROM {quoted(connection, table.name)} LIMIT 0")  # noqa: S608
            known[table] = tuple(column.type_display.partition("(")[0] for column in cursor.description)
        finally:
            cursor.close()
    return known[table]
