"""A recorded run, an API on it, and servers over real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from root_dash.server.app import create_app
from root_dash.server.limits.connections import Limits
from root_dash.settings import Settings
from root_dash.store import Store
from tests.server.served import LONG, RUN, Served
from tests.store.frames import make_layers, record


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 45 steps with six layers, of which one is a vector."""
    return record(tmp_path_factory.mktemp("server") / "x.db", 45, make_layers(6))


@pytest.fixture
def store(recorded: Path) -> Iterator[Store]:
    """The store of that run, opened for reading."""
    with Store.open(recorded) as store:
        yield store


@pytest.fixture
def api(store: Store) -> FastAPI:
    """The API without the guard."""
    return create_app(Settings(token=None), store)


@pytest.fixture
def client(api: FastAPI) -> Iterator[TestClient]:
    """A client of the API that receives a 500 instead of the server's exception."""
    with TestClient(api, base_url="http://127.0.0.1:8050", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """A function that starts servers with the limits that a test chooses."""
    path = tmp_path / "x.db"
    with Store.create(path) as store:
        store.begin(RUN, [])
    made: list[Served] = []

    def make(body_seconds: float = LONG, keep_alive: int = int(LONG), **limits: Any) -> Served:
        chosen = Limits(**({"head_seconds": LONG, "rest_seconds": LONG, "unread_seconds": LONG} | limits))
        made.append(Served(path, chosen, body_seconds, keep_alive))
        return made[-1]

    yield make
    for server in made:
        server.stop()
