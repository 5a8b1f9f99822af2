"""Reading a recording: `root_dash.open`."""

from __future__ import annotations

import os

from root_dash.defaults import default_place
from root_dash.store.store import Store


def open(path: str | os.PathLike[str] | None = None) -> Store:  # the public name: `root_dash.open`
    """Open a recording for reading, also while a run writes to it. The store returns NumPy arrays in frozen records.

    Args:
        path: the path of a database or the URL of a PostgreSQL database; if None, ROOT_DASH_DB, else `root-dash.db`.

    Raises:
        TypeError: `path` is neither a path nor a text.
        ValueError: `path` is a URL of another system than PostgreSQL.
        StoreNotFound: there is no file at the path, the file cannot be read, or the server cannot be reached.
        StoreForeign: the database is not a database of root-dash.
    """
    return Store.open(default_place(path, "path"))
