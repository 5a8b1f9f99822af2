"""The names of databases, and the parts of a URL that are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from root_dash.store import Server, parse
from root_dash.store.backends.location import LocationLike

SECRET = "s3cr/t@"  # noqa: S105 (of no database)


@pytest.mark.parametrize("given", ["runs.db", "a/b c.db", "C:/runs.db", "nul\0byte", Path("x?y#z.db"), "postgresql"])
def test_a_path_is_a_path(given: str | Path) -> None:
    """Whatever has no scheme is the path of a file, drives of Windows too."""
    assert parse(given) == Path(given)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgres"])
def test_a_url_shows_neither_user_nor_password(scheme: str) -> None:
    """A URL of PostgreSQL is a server whose text says host, port and database alone, and whose password is kept."""
    place = parse(f"{scheme}://me:s3cr%2Ft%40@db.example:5433/runs?password=other&sslmode=require")
    assert isinstance(place, Server)
    assert f"{place}" == "postgresql://db.example:5433/runs"
    assert repr(place) == "Server(postgresql://db.example:5433/runs)"
    assert place.url.password == SECRET
    assert place.secret().startswith("postgresql+psycopg://me:")
    assert parse(place) is place


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("mysql://me:hidden@host/runs", "or a URL postgresql://user:password@host/database, got one of mysql"),
        ("sqlite:///runs.db", "got one of sqlite"),
        ("postgresql+asyncpg://me:hidden@host/runs", r"got one of postgresql\+asyncpg"),
        ("postgresql://me:hidden@host:port/runs", "got one that is not"),
        (Path("postgresql://me:hidden@host/runs"), "a Path has lost one of its slashes"),
    ],
)
def test_another_url_is_refused_without_its_password(given: LocationLike, text: str) -> None:
    """Other schemes, a wrong port, and a URL that went through a Path are refused without repeating the password."""
    with pytest.raises(ValueError, match=text) as caught:
        parse(given)
    assert "hidden" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
