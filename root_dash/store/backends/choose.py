"""The backend of a location."""

from __future__ import annotations

from pathlib import Path

from root_dash.store.backends.backend import Backend
from root_dash.store.backends.location import Location
from root_dash.store.backends.postgres import PostgresBackend
from root_dash.store.backends.sqlite import SqliteBackend
from root_dash.store.limits import Limits


def backend_for(location: Location, limits: Limits | None = None) -> Backend:
    """Return the backend of a location: a path is a SQLite file, anything else a PostgreSQL database."""
    limits = Limits() if limits is None else limits
    return SqliteBackend(location, limits) if isinstance(location, Path) else PostgresBackend(location, limits)
