"""The only place that knows SQL: frames in, records out."""

from root_dash.store.engine import sqlite_has_wal_reset_bug
from root_dash.store.migrations import Migration, migrate
from root_dash.store.store import Store
from root_dash.store.writing import Recording

__all__ = ["Migration", "Recording", "Store", "migrate", "sqlite_has_wal_reset_bug"]
