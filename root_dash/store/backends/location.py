"""Where a database is: the path of a SQLite file, or the URL of a PostgreSQL database."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_SCHEMES = ("postgresql", "postgresql+psycopg", "postgres")  # the last is libpq's other name
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/")  # a single letter is a drive of Windows
_AFTER_SCHEME = "://"


@dataclass(frozen=True, slots=True)
class Server:
    """A database of a PostgreSQL server. Its text is safe to show: it has no password, user or parameters."""

    url: URL = field(repr=False)

    def __str__(self) -> str:
        port = "" if self.url.port is None else f":{self.url.port}"
        return f"postgresql://{self.url.host or ''}{port}/{self.url.database or ''}"

    def secret(self) -> str:
        """Return the whole URL with its password: for connecting, never for showing."""
        return self.url.render_as_string(hide_password=False)

    def __repr__(self) -> str:
        return f"Server({self})"


Location: TypeAlias = Path | Server
LocationLike: TypeAlias = str | os.PathLike[str] | Server
"""What a user may name a database by."""


def parse(given: LocationLike) -> Location:
    """Return the location of a path or a URL.

    Raises:
        ValueError: the text is a URL, but not of PostgreSQL. The message does not repeat the password.
    """
    if isinstance(given, Server):
        return given
    text = os.fspath(given)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    name = scheme[1]
    if name not in _SCHEMES:
        raise ValueError(
            f"db must be the path of a SQLite file or a URL postgresql://user:password@host/database, got one of {name}"
        )
    if _AFTER_SCHEME not in text:
        raise ValueError(
            "db must be a URL postgresql://user:password@host/database, given as text, got one with a single slash: "
            "a Path has lost one of its slashes"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # their text may hold the password
        raise ValueError(
            "db must be a URL postgresql://user:password@host:port/database, got one that is not"
        ) from None
    return Server(url.set(drivername="postgresql+psycopg"))
