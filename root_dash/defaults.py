"""Defaults of `watch`, `open` and the command line: a missing argument comes from the environment or a fixed name."""

from __future__ import annotations

import os
from pathlib import Path

from root_dash.store.backends.location import Location, parse

DEFAULT_DB = "root-dash.db"
"""The default database."""

DEFAULT_SPOOL = "root-dash-spool"
"""The default folder in which frames wait for a server."""


def is_path(given: object) -> bool:
    """Return whether an argument is a path as text: a `str`, or an `os.PathLike` of a `str`."""
    return isinstance(given, str) or (isinstance(given, os.PathLike) and isinstance(os.fspath(given), str))


def default_place(given: str | os.PathLike[str] | None, argument: str = "db") -> Location:
    """Return the place of a database: the argument, else ROOT_DASH_DB, else `root-dash.db`.

    A relative path becomes absolute, because the process may change its working folder before a connection is opened.

    Raises:
        TypeError: `given` is no path and no text. The message shows only its type, because a URL may hold a password.
        ValueError: `given` is a URL of another system than PostgreSQL.
    """
    if given is not None and not is_path(given):
        raise TypeError(f"{argument} must be a path or the URL of a PostgreSQL database, got {type(given)}")
    place = parse(given or os.environ.get("ROOT_DASH_DB") or DEFAULT_DB)
    return place.absolute() if isinstance(place, Path) else place


def default_spool(given: str | os.PathLike[str] | None) -> Path:
    """Return the folder in which frames wait: the argument, else ROOT_DASH_SPOOL, else `root-dash-spool`.

    Raises:
        TypeError: `given` is not a path.
    """
    if given is not None and not is_path(given):
        raise TypeError(f"spool must be a path, got {given!r}")
    return Path(given or os.environ.get("ROOT_DASH_SPOOL") or DEFAULT_SPOOL)


def default_webhook(given: str | None) -> str | None:
    """Return the address that verdicts are posted to: the argument, else ROOT_DASH_WEBHOOK, else None.

    Raises:
        TypeError: `given` is not a text. The message shows only its type.
    """
    if given is not None and not isinstance(given, str):
        raise TypeError(f"webhook must be a str, got {type(given)}")
    return given or os.environ.get("ROOT_DASH_WEBHOOK") or None


def default_token(given: str | None) -> str:
    """Return the write token of a server: the argument, else ROOT_DASH_WRITE_TOKEN.

    Raises:
        TypeError: `given` is not a text. The message shows only its type.
        ValueError: neither the argument nor the environment has a token.
    """
    if given is not None and not isinstance(given, str):
        raise TypeError(f"token must be a str, got {type(given)}")
    token = given or os.environ.get("ROOT_DASH_WRITE_TOKEN")
    if not token:
        raise ValueError("server needs the write token that `root-dash serve` prints: token, or ROOT_DASH_WRITE_TOKEN")
    return token
