"""What the routes take, checked before anything is looked up."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator

from root_dash.records import STATISTICS
from root_dash.store import Store

_LARGEST = 2**63 - 1  # of a database's integers

_NAMES = [statistic.name for statistic in STATISTICS]


def _store(request: Request) -> Store:
    store = request.app.state.store
    assert isinstance(store, Store)
    return store


def _stopping(request: Request) -> threading.Event:
    stopping = request.app.state.stopping
    assert isinstance(stopping, threading.Event)
    return stopping


def _known(name: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"must be one of {', '.join(_NAMES)}")
    return name


StoreDep = Annotated[Store, Depends(_store)]
StoppingDep = Annotated[threading.Event, Depends(_stopping)]

RunId = Annotated[int, Path(alias="run", ge=0, le=_LARGEST)]
LayerId = Annotated[int, Path(alias="layer", ge=0, le=_LARGEST)]
Cursor = Annotated[int, Query(ge=0, le=_LARGEST, description="The id of the last frame seen.")]
Step = Annotated[
    int | None,
    Query(ge=0, le=_LARGEST, description="Answer with the latest recording at or before it; without one, the newest."),
]
StatisticName = Annotated[
    str,
    Query(alias="statistic", max_length=64, json_schema_extra={"enum": list[object](_NAMES)}),
    AfterValidator(_known),
]
Points = Annotated[int, Query(ge=4, le=100_000, description="At most so many points, all extremes among them.")]
