"""Layers over HTTP: the statistics and arrays of a layer, over the steps or at a step."""

from __future__ import annotations

from fastapi import APIRouter

from .json_records import RecordResponse
from .parameters import LayerId, Points, StatisticName, Step, StoreDep, TensorQuery
from .responses import (
    HistogramJson,
    HistoryJson,
    LayerJson,
    MaskJson,
    Number,
    QuantilesJson,
    SpectrumJson,
    problems,
)

router = APIRouter(
    prefix="/api/v1/layers", tags=["layers"], default_response_class=RecordResponse, responses=problems(404, 422)
)


@router.get("/{layer}", response_model=LayerJson)
def layer(store: StoreDep, layer_id: LayerId) -> RecordResponse:
    """Return one layer."""
    return RecordResponse(store.layer(layer_id))


@router.get("/{layer}/history", response_model=HistoryJson)
def history(store: StoreDep, layer_id: LayerId, statistic: StatisticName, max_points: Points = 2000) -> RecordResponse:
    """Return one statistic over the steps."""
    return RecordResponse(store.history(layer_id, statistic, max_points))


@router.get("/{layer}/statistics", response_model=dict[str, Number])
def statistics(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """Return all statistics by name. Each kind of statistic comes from its own latest recording."""
    return RecordResponse(store.statistics(layer_id, step))


@router.get("/{layer}/histogram", response_model=HistogramJson)
def histogram(
    store: StoreDep, layer_id: LayerId, step: Step = None, tensor: TensorQuery = "gradient"
) -> RecordResponse:
    """Return the distribution of a tensor's entries."""
    return RecordResponse(store.histogram(layer_id, step, tensor))


@router.get("/{layer}/quantiles", response_model=QuantilesJson)
def quantiles(
    store: StoreDep, layer_id: LayerId, step: Step = None, tensor: TensorQuery = "gradient"
) -> RecordResponse:
    """Return the quantiles of a tensor's entries."""
    return RecordResponse(store.quantiles(layer_id, step, tensor))


@router.get("/{layer}/spectrum", response_model=SpectrumJson)
def spectrum(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """Return the singular values of the momentum, of its base and of the update."""
    return RecordResponse(store.spectrum(layer_id, step))


@router.get("/{layer}/mask", response_model=MaskJson)
def mask(store: StoreDep, layer_id: LayerId, step: Step = None) -> RecordResponse:
    """Return the places of the outliers. The bits of the exact mask are in base64."""
    return RecordResponse(store.mask(layer_id, step))
