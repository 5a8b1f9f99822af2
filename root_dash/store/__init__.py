"""The store, the only package with SQL. Frames go in, records come out."""

from root_dash.store.admin.doctor import Finding, examine
from root_dash.store.admin.export import Exported, export
from root_dash.store.admin.prune import Pruned, prune, repair
from root_dash.store.backends.location import Location, Server, parse
from root_dash.store.backends.sqlite_file import sqlite_has_wal_reset_bug
from root_dash.store.judge import Fold, Judge
from root_dash.store.limits import Limits, PyramidShape
from root_dash.store.migrations import Migration, Revisions, migrate
from root_dash.store.replay import Replay
from root_dash.store.store import Store
from root_dash.store.write.recording import Recording

__all__ = [
    "Exported",
    "Finding",
    "Fold",
    "Judge",
    "Limits",
    "Location",
    "Migration",
    "Pruned",
    "PyramidShape",
    "Recording",
    "Replay",
    "Revisions",
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
