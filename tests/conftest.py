"""What all tests share: their order, an environment without the user's settings, and databases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from root_dash.store import Store
from tests.postgresql import Server, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start processes, then the browser: a mistake shows early."""
    items.sort(key=lambda item: ("browser" in item.keywords, "heavy" in item.keywords))


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROOT_DASH_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A PostgreSQL server of the tests' own; skips where there is none to be had."""
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    # Not pytest's folder: that is closed to the user as whom the server runs where we are root.
    with tempfile.TemporaryDirectory(prefix="root-dash-postgresql-") as folder:
        server = started(Path(folder), lambda line: terminal and terminal.write_line(f"\n{line}"))
        if server is None:
            pytest.skip("there is no PostgreSQL server, and none can be installed here")
        try:
            server.execute("CREATE DATABASE with_tables TEMPLATE template0")
            Store.create(server.url("with_tables")).close()
            yield server
        finally:
            server.stop()


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The URL of a PostgreSQL database with our tables, which hold nothing yet."""
    url = postgres.create("with_tables")
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A database of either kind, by its path or its URL."""
    if request.param == "sqlite":
        return tmp_path / "x.db"
    url: str = request.getfixturevalue("database")
    return url
