"""A run at one look: what is recorded, the loss, and the map of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html

from root_dash.frontend import ids, layout
from root_dash.frontend.numbers import count, every, plural
from root_dash.records import KINDS, STATISTICS, Kind, Layer, Run, Statistic

ALGORITHMS = {"root": "ROOT", "adamw": "AdamW", "adam": "Adam", "muon": "Muon", "sgd": "SGD"}

_GROUPS: dict[Kind, str] = {"statistics": "every frame", "spectra": "with spectra", "masks": "with masks"}


def page(statistic: str) -> Any:
    """The overview's layout."""
    picker = dmc.Select(
        id=ids.STAT_PICKER, value=statistic, allowDeselect=False, searchable=True, size="xs", className="stat-picker",
        maxDropdownHeight=460, **layout.aria(label="statistic"),
        data=[
            {"group": group, "items": [{"value": s.name, "label": s.label} for s in STATISTICS if s.kind == kind]}
            for kind, group in _GROUPS.items()
        ],
    )  # fmt: skip
    return html.Div(
        className="overview",
        children=[
            html.P(id=ids.SUMMARY, className="summary"),
            html.Section(
                className="card map-card",
                children=[
                    html.Div(
                        [
                            html.H2("Layers over steps"),
                            picker,
                            html.Span(id=ids.STAT_HINT, className="hint"),
                            html.Span(
                                "click a cell for its layer; drag to zoom, double-click to undo", className="hint far"
                            ),
                        ],
                        className="card-head",
                    ),
                    layout.graph(ids.MAP, "loss, and a map of layers over steps"),
                ],
            ),
        ],
    )


def summary(run: Run, layers: Sequence[Layer], *, thinned: bool = False) -> str:
    """One sentence that says what is recorded, whether its budget made that rarer, and whether any of it was lost."""
    groups: dict[str, list[Layer]] = {}
    for layer in sorted(layers, key=lambda layer: layer.algorithm != "root"):
        groups.setdefault(layer.algorithm, []).append(layer)
    who = " and ".join(
        (
            plural(len(held), "matrix", "matrices")
            if all(layer.is_matrix for layer in held)
            else plural(len(held), "tensor")
        )
        + f" under {ALGORITHMS.get(algorithm, algorithm)}"
        for algorithm, held in groups.items()
    )
    lost = "none lost" if run.lost == 0 else f"{count(run.lost)} lost"
    rarer = "at times less often, to keep the budget" if thinned else ""
    parts = [who or "no layers", cadence(run), rarer, f"{plural(run.frames, 'frame')}, {lost}"]
    return "; ".join(part for part in parts if part) + "."


def cadence(run: Run) -> str:
    """How often each kind is recorded, kinds of the same rhythm together: spectra and masks every 25."""
    rhythm: dict[int, list[str]] = {}
    for kind in KINDS:
        steps = run.cadence.get(kind)
        # Scalars come when the user logs them, and quantiles with the histograms.
        if steps and kind not in ("scalars", "quantiles"):
            rhythm.setdefault(int(steps), []).append(kind)
    return ", ".join(f"{' and '.join(kinds)} {every(steps)}" for steps, kinds in rhythm.items())


def hint(statistic: Statistic, shown: int, total: int, absent: int = 0) -> str:
    """What the colour means, how many layers have none, and how many steps a column stands for if it is several."""
    packed = f" · about {count(round(total / shown))} steps a column, its extreme" if total > shown > 0 else ""
    without = f" · {plural(absent, 'layer has', 'layers have')} no such statistic" if absent else ""
    return statistic.definition + without + packed
