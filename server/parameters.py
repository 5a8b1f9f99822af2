"""The parameters of the routes. Each is checked before the store is asked."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from pydantic import AfterValidator

from root_dash.records import STATISTICS, TensorName
from root_dash.store import Store

from .judging import Replays

_LARGEST = 2**63 - 1
"""Largest integer that a database stores."""

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


def _replays(request: Request) -> Replays:
    replays = request.app.state.replays
    assert isinstance(replays, Replays)
    return replays


StoreDep = Annotated[Store, Depends(_store)]
ReplaysDep = Annotated[Replays, Depends(_replays)]
StoppingDep = Annotated[threading.Event, Depends(_stopping)]

RunId = Annotated[int, Path(alias="run", ge=0, le=_LARGEST, description="The number of the run.")]
LayerId = Annotated[int, Path(alias="layer", ge=0, le=_LARGEST, description="The number of the layer.")]
AttemptUid = Annotated[
    str, Path(alias="attempt", pattern="^[0-9a-f]{32}$", description="The unique name that the trainer chose.")
]
Cursor = Annotated[int, Query(ge=0, le=_LARGEST, description="The id of the last frame, event or verdict seen.")]
LastEventId = Annotated[int | None, Header(ge=0, le=_LARGEST, description="Sent by a client that resumes the stream.")]
Limit = Annotated[int, Query(ge=1, le=5000, description="Largest number of entries in the answer.")]
Step = Annotated[
    int | None,
    Query(
        ge=0,
        le=_LARGEST,
        description="Answer with the latest recording at this step or before it. If left out, with the newest.",
    ),
]
StatisticName = Annotated[
    str,
    Query(
        alias="statistic",
        max_length=64,
        json_schema_extra={"enum": list[object](_NAMES)},
        description="The name of a statistic.",
    ),
    AfterValidator(_known),
]
TensorQuery = Annotated[TensorName, Query(description="The tensor whose entries are described.")]
Points = Annotated[
    int, Query(ge=4, le=100_000, description="Largest number of points in the answer. All extremes are among them.")
]
Buckets = Annotated[int, Query(ge=1, le=4096, description="Largest number of columns in the answer.")]
ScalarName = Annotated[
    str | None, Query(max_length=512, description="The name under which the values were logged with `run.log`.")
]
