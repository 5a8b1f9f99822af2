"""Figures as they are sent, and hand-written records to draw."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from root_dash.frontend.theme import DARK, LIGHT
from root_dash.records import (
    Grid,
    Histogram,
    Layer,
    histogram_edges,
)

BOTH = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def drawn(figure: go.Figure) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a figure's traces and layout as the server sends them."""
    sent = plain(figure.to_plotly_json())
    return sent["data"], sent["layout"]


def plain(sent: Any) -> Any:
    """Return sent JSON with base64 arrays decoded."""
    if isinstance(sent, dict) and "bdata" in sent:
        values = np.frombuffer(base64.b64decode(sent["bdata"]), np.dtype(sent["dtype"]))
        return values.reshape([int(side) for side in str(sent.get("shape", len(values))).split(",")])
    if isinstance(sent, dict):
        return {key: plain(value) for key, value in sent.items()}
    return [plain(value) for value in sent] if isinstance(sent, list | tuple) else sent


def counted(values: Any) -> Histogram:
    """Return the histogram of some values."""
    return Histogram(np.histogram(values, histogram_edges())[0].astype(np.uint32))


def gridded(values: Any, name: str = "grad_norm") -> Grid:
    """Return a grid of hand-written values, with a column for each step."""
    array = np.asarray(values, np.float64)
    layers = tuple(Layer(f"blocks.{i}.weight", (4, 4), "root", i, id=10 + i) for i in range(array.shape[0]))
    steps = np.arange(array.shape[1])
    return Grid(name, layers, steps, steps, array, shown=len(steps), total=len(steps))


NAN, INF = float("nan"), float("inf")
