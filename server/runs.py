"""Runs over HTTP: what was trained, which layers it has, which frames, and all layers of one statistic at once."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from .json_records import RecordResponse
from .parameters import Cursor, Points, RunId, StatisticName, StoreDep

router = APIRouter(prefix="/api/v1/runs", tags=["runs"], default_response_class=RecordResponse)


@router.get("")
def runs(store: StoreDep) -> RecordResponse:
    """All runs, the newest first."""
    return RecordResponse(store.runs())


@router.get("/{run}")
def run(store: StoreDep, run_id: RunId) -> RecordResponse:
    """One run."""
    return RecordResponse(store.run(run_id))


@router.get("/{run}/layers")
def layers(store: StoreDep, run_id: RunId) -> RecordResponse:
    """The run's layers in the model's order."""
    return RecordResponse(store.layers(run_id))


@router.get("/{run}/frames")
def frames(
    store: StoreDep, run_id: RunId, after: Cursor = 0, limit: Annotated[int, Query(ge=1, le=5000)] = 1000
) -> RecordResponse:
    """The run's frames beyond a cursor: which steps were recorded, and what of them."""
    return RecordResponse(store.frames(run_id, after, limit))


@router.get("/{run}/events")
def events(
    store: StoreDep, run_id: RunId, after: Cursor = 0, limit: Annotated[int, Query(ge=1, le=5000)] = 1000
) -> RecordResponse:
    """What happened to the run beyond the event of that id, such as a new coefficient set."""
    return RecordResponse(store.events(run_id, after, limit))


@router.get("/{run}/grid")
def grid(
    store: StoreDep,
    run_id: RunId,
    statistic: StatisticName,
    buckets: Annotated[int, Query(ge=1, le=4096)] = 512,
) -> RecordResponse:
    """A statistic of all layers over the steps, in buckets that hold the value of largest magnitude."""
    return RecordResponse(store.grid(run_id, statistic, buckets))


@router.get("/{run}/scalars")
def scalars(
    store: StoreDep,
    run_id: RunId,
    name: Annotated[str | None, Query(max_length=512)] = None,
    max_points: Points = 2000,
) -> RecordResponse:
    """The names that were logged or, with a name, its values over the steps."""
    return RecordResponse(store.scalar_names(run_id) if name is None else store.scalar(run_id, name, max_points))
