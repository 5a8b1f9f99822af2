"""The only place that knows SQL: frames in, records out."""

from root_dash.store.admin.doctor import Finding, examine
from root_dash.store.admin.export import Exported, export
from root_dash.store.admin.prune import Pruned, prune, repair
from root_dash.store.backends.location import Place, Server, parse
from root_dash.store.backends.sqlite import sqlite_has_wal_reset_bug
from root_dash.store.migrations import Migration, migrate
from root_dash.store.store import Store
from root_dash.store.write.recording import Recording

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
