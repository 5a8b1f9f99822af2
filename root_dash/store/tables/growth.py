"""Tables that grow: the database of an older or a newer root-dash may have other columns and tables.

Opening for writing adds what is missing. A reader takes a missing column as "not recorded" and a missing table as
empty. Columns are selected and inserted by name, so that unknown columns do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, Subquery, Table, cast, false, null, select
from sqlalchemy.schema import CreateColumn

from root_dash.records import statistic_names
from root_dash.store.backends.backend import backend_of
from root_dash.store.tables import schema

_COMPLETE = "root_dash_complete"


def grow(
    connection: Connection,
    columns: Mapping[str, set[str]],
    make_tables: Callable[[Connection, Sequence[Table]], None],
) -> None:
    """Add missing tables, and missing columns of statistics.

    Call this function under the lock of the database: of two processes that open at once, one adds the columns and the
    other finds them.

    Args:
        connection: a connection inside a writing transaction.
        columns: the names of the existing columns, by table.
        make_tables: makes tables as the backend wants them.
    """
    missing = [table for table in schema.metadata.sorted_tables if table.name not in columns]
    if missing:
        make_tables(connection, missing)
    quote = connection.dialect.identifier_preparer.quote
    for kind, table in schema.RECORDINGS.items():
        for name in statistic_names(kind):
            if table not in missing and name not in columns[table.name]:
                column = CreateColumn(table.c[name]).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {quote(table.name)} ADD COLUMN {column}")


def readable(connection: Connection, table: Table) -> Table | Subquery:
    """Return a table to select from. Missing columns are NULL; a missing table has no rows."""
    if _is_complete(connection):
        return table
    known = backend_of(connection).columns(connection).get(table.name)
    if known is not None and known >= set(table.c.keys()):
        return table
    fields = [
        column if known is not None and column.name in known else cast(null(), column.type).label(column.name)
        for column in table.c
    ]
    query = select(*fields).where(false()) if known is None else select(*fields).select_from(table)
    return query.subquery(table.name)


def _is_complete(connection: Connection) -> bool:
    """Return whether the database has all our columns. Columns never disappear, so the answer "yes" is remembered."""
    if not connection.info.get(_COMPLETE):
        found = backend_of(connection).columns(connection)
        connection.info[_COMPLETE] = all(
            found.get(table.name, set()) >= set(table.c.keys()) for table in schema.metadata.sorted_tables
        )
    return bool(connection.info[_COMPLETE])
