"""Layers over HTTP: one layer's statistics and arrays, over the steps or at one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from root_dash.records import TensorName

from .json_records import RecordResponse
from .parameters import LayerId, Points, StatisticName, Step, StoreDep

router = APIRouter(prefix="/api/v1/layers", tags=["layers"], default_response_class=RecordResponse)

TensorQuery = Annotated[TensorName, Query()]


@router.get("/{layer}")
def layer(store: StoreDep, layer_id: LayerId) -> RecordResponse:
    """One layer."""
    return RecordResponse(store.layer(layer_id))


@router.get("/{layer}/history")
def history(store: StoreDep, layer_id: LayerId, statistic: StatisticName, max_points: Points = 2000) -> RecordResponse:
    """A statistic over the steps."""
    return RecordResponse(store.history(layer_id, statistic, max_points))


@router.get("/{layer}/statistics")
def statistics(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """All statistics by name, each kind's from its own latest recording."""
    return RecordResponse(store.statistics(layer_id, step))


@router.get("/{layer}/histogram")
def histogram(
    store: StoreDep, layer_id: LayerId, step: Step = None, tensor: TensorQuery = "gradient"
) -> RecordResponse:
    """How the tensor's entries were distributed."""
    return RecordResponse(store.histogram(layer_id, step, tensor))


@router.get("/{layer}/quantiles")
def quantiles(
    store: StoreDep, layer_id: LayerId, step: Step = None, tensor: TensorQuery = "gradient"
) -> RecordResponse:
    """The tensor's quantiles."""
    return RecordResponse(store.quantiles(layer_id, step, tensor))


@router.get("/{layer}/spectrum")
def spectrum(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """The singular values of the momentum, of its base and of the update."""
    return RecordResponse(store.spectrum(layer_id, step))


@router.get("/{layer}/mask")
def mask(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """Where the outliers were; the exact mask's bits in base64."""
    return RecordResponse(store.mask(layer_id, step))
