"""The distribution of the entries over the steps."""

from __future__ import annotations

from typing import Any

from root_dash.frontend.figures.evolution import evolution
from root_dash.frontend.panels.layer.findings import onset
from root_dash.frontend.panels.layer.tensor import TENSOR, chosen
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import recorded
from root_dash.frontend.theme import Theme
from root_dash.records import HistogramHistory


def _read(selection: Selection) -> dict[str, Any]:
    tensor = chosen(selection)
    return {
        "tensor": tensor,
        "found": recorded(selection.store.histograms, selection.layer, tensor),
        "since": onset(selection),
    }


def _draw(theme: Theme, *, tensor: str, found: HistogramHistory | None, since: int | None) -> Drawing:
    return Drawing(evolution(found, theme, since), title=f"{tensor.capitalize()} over time")


PANEL = Panel(
    "evolution", "Gradient over time", "share of entries per bin, same bins always", _read, _draw,
    kind="histograms", controls=(TENSOR,),
)  # fmt: skip
