"""What all tests share: their order, an environment without the user's settings, and databases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before NumPy and torch are imported, which read these once; the processes that tests start inherit them. The tests'
# matrices are small: threads that share one product mostly wait for each other, and for other processes on the cores.
# Who wants to see the tests on several threads names the number: OMP_NUM_THREADS=4 make test
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, os.environ.get("OMP_NUM_THREADS", "1"))

from root_dash.store import Store  # noqa: E402
from tests import zygote  # noqa: E402
from tests.postgresql import Server, find, started  # noqa: E402

# Hypothesis times examples, and how long it takes to draw them. On a busy machine either may take any time: a test that
# fails because of it says nothing of the code.
settings.register_profile("root-dash", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("root-dash")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `--postgres MAJOR` name the installed PostgreSQL server to test on."""
    parser.addoption("--postgres", type=int, default=None, help="major version of an installed PostgreSQL server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start processes, then the browser: a mistake shows early."""
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()) or "[postgresql" in item.name or "-postgresql" in item.name:
            item.add_marker("postgresql")
    items.sort(key=lambda item: ("browser" in item.keywords, "heavy" in item.keywords))


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROOT_DASH_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    yield
    zygote.stop()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A PostgreSQL server of the tests' own; if there is none, tests are skipped, and fail under CI."""
    major: int | None = request.config.getoption("--postgres")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    # Not pytest's folder: that is closed to the user as whom the server runs where we are root.
    with tempfile.TemporaryDirectory(prefix="root-dash-postgresql-") as folder:
        server = started(Path(folder), lambda line: terminal and terminal.write_line(f"\n{line}"), major=major)
        if server is None:
            reason = f"no PostgreSQL server: {find(major)[1]} was not found"
            if os.environ.get("CI") and major is None:
                pytest.fail(reason)
            pytest.skip(reason)
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
