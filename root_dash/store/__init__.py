"""The only place that knows SQL: frames in, records out."""

from root_dash.store.doctor import Finding, examine
from root_dash.store.exporting import Exported, export
from root_dash.store.migrations import Migration, migrate
from root_dash.store.place import Place, Server, parse
from root_dash.store.pruning import Pruned, prune, repair
from root_dash.store.sqlite import sqlite_has_wal_reset_bug
from root_dash.store.store import Store
from root_dash.store.writing import Recording

__all__ = [
    "Exported",
    "Finding",
    "Migration",
    "Place",
    "Pruned",
    "Recording",
    "Server",
    "Store",
    "examine",
    "export",
    "migrate",
    "parse",
    "prune",
    "repair",
    "sqlite_has_wal_reset_bug",
]
