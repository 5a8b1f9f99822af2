"""Runs over HTTP: runs, their layers, frames, events and scalars, and a statistic of all layers of a run."""

from __future__ import annotations

from fastapi import APIRouter

from .json_records import RecordResponse
from .judging import as_json
from .parameters import Buckets, Cursor, Limit, Points, ReplaysDep, RunId, ScalarName, StatisticName, StoreDep
from .responses import EventJson, GridJson, HistoryJson, LayerJson, NoticeJson, RunJson, VerdictsJson, problems

router = APIRouter(prefix="/api/v1/runs", tags=["runs"], default_response_class=RecordResponse)

MISSING = problems(404, 422)


@router.get("", response_model=list[RunJson])
def runs(store: StoreDep) -> RecordResponse:
    """Return all runs, the newest first."""
    return RecordResponse(store.runs())


@router.get("/{run}", response_model=RunJson, responses=MISSING)
def run(store: StoreDep, run_id: RunId) -> RecordResponse:
    """Return one run."""
    return RecordResponse(store.run(run_id))


@router.get("/{run}/layers", response_model=list[LayerJson], responses=MISSING)
def layers(store: StoreDep, run_id: RunId) -> RecordResponse:
    """Return the run's layers in the model's order."""
    return RecordResponse(store.layers(run_id))


@router.get("/{run}/frames", response_model=list[NoticeJson], responses=MISSING)
def frames(store: StoreDep, run_id: RunId, after: Cursor = 0, limit: Limit = 1000) -> RecordResponse:
    """Return the run's frames beyond a cursor: the recorded steps, and the kinds of each recording."""
    return RecordResponse(store.frames(run_id, after, limit))


@router.get("/{run}/events", response_model=list[EventJson], responses=MISSING)
def events(store: StoreDep, run_id: RunId, after: Cursor = 0, limit: Limit = 1000) -> RecordResponse:
    """Return the run's events beyond a cursor, such as a new coefficient set."""
    return RecordResponse(store.events(run_id, after, limit))


@router.get("/{run}/verdicts", response_model=VerdictsJson, responses=MISSING)
def verdicts(
    store: StoreDep, replays: ReplaysDep, run_id: RunId, after: Cursor = 0, limit: Limit = 1000
) -> RecordResponse:
    """Return what the diagnosis says of the run: the verdicts beyond an id, in the order in which they began."""
    layers = store.layers(run_id)
    if store.is_judged(run_id):
        return RecordResponse({"state": "stored", "verdicts": as_json(store.verdicts(run_id, after, limit), layers)})
    state, judged = replays.verdicts(run_id)
    found = [verdict for verdict in judged if verdict.id > after][:limit]
    return RecordResponse({"state": state, "verdicts": as_json(found, store.layers(run_id))})


@router.get("/{run}/grid", response_model=GridJson, responses=MISSING)
def grid(store: StoreDep, run_id: RunId, statistic: StatisticName, buckets: Buckets = 512) -> RecordResponse:
    """Return one statistic of all layers over the steps, in buckets that hold the value of largest magnitude."""
    return RecordResponse(store.grid(run_id, statistic, buckets))


@router.get("/{run}/scalars", response_model=list[str] | HistoryJson, responses=MISSING)
def scalars(store: StoreDep, run_id: RunId, name: ScalarName = None, max_points: Points = 2000) -> RecordResponse:
    """Return the names of the logged scalars or, if a name is given, the values of this scalar over the steps."""
    return RecordResponse(store.scalar_names(run_id) if name is None else store.scalar(run_id, name, max_points))
