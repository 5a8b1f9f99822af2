"""A recorded run, and an API on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from root_dash.server.app import create_app
from root_dash.settings import Settings
from root_dash.store import Store
from tests.store.frames import make_layers, record


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 45 steps with six layers, one of them a vector."""
    return record(tmp_path_factory.mktemp("server") / "x.db", 45, make_layers(6))


@pytest.fixture
def store(recorded: Path) -> Iterator[Store]:
    """The run's store, opened for reading."""
    with Store.open(recorded) as store:
        yield store


@pytest.fixture
def api(store: Store) -> FastAPI:
    """The API without a guard in front."""
    return create_app(Settings(token=None), store)


@pytest.fixture
def client(api: FastAPI) -> Iterator[TestClient]:
    """A client of the API that gets a 500 rather than our exception."""
    with TestClient(api, base_url="http://127.0.0.1:8050", raise_server_exceptions=False) as client:
        yield client
