"""One layer at one step: how its gradient is distributed, what the iteration makes of it, and how it got there."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import dcc, html

from root_dash.frontend import ids, layout
from root_dash.frontend.numbers import count, value
from root_dash.frontend.theme import GREEN
from root_dash.records import (
    Histogram,
    History,
    Kind,
    Layer,
    Mask,
    Quantiles,
    Spectrum,
    Statistic,
    TensorName,
    statistic,
)

STEP_KINDS: tuple[Kind, ...] = ("histograms", "spectra", "masks")
"""The kinds whose panels show one step."""

_MATRIX = ("grad_norm", "update_to_weight", "grad_kurtosis", "outlier_energy", "stable_rank", "orthogonality_error")
_VECTOR = ("grad_norm", "update_to_weight", "grad_kurtosis", "grad_abs_max", "alignment", "weight_norm")

NO_SPECTRUM = "A vector has no spectrum: it is not orthogonalized."
NO_MASK = "A vector has no outlier map: its largest entries stand in the histogram."


def small(layer: Layer) -> tuple[Statistic, ...]:
    """The six statistics of the last row."""
    return tuple(statistic(name) for name in (_MATRIX if layer.is_matrix else _VECTOR))


def shape(layer: Layer) -> str:
    """Shape and optimizer: 512 × 128 · root."""
    return f"{' × '.join(f'{side:,}' for side in layer.shape) or 'a number'} · {layer.algorithm}"


def page() -> Any:
    """The layout of every layer's page; which layer it is, the view says."""
    tensor = dmc.SegmentedControl(
        id=ids.TENSOR, value="gradient", size="xs", className="far", data=["gradient", "momentum"],
        **layout.aria(label="whose entries the first row shows"),
    )  # fmt: skip
    measure = dmc.SegmentedControl(
        id=ids.MEASURE, value="orthogonality_error", size="xs", className="far", **layout.aria(label="which error"),
        data=[{"value": "orthogonality_error", "label": "orthogonality"}, {"value": "polar_error", "label": "polar"}],
    )  # fmt: skip
    return html.Div(
        className="layer",
        children=[
            *(dcc.Store(id=ids.shown(kind)) for kind in STEP_KINDS),
            head(),
            html.Div(
                className="rows",
                children=[
                    layout.card(
                        "Distribution", "dashed: Gaussian of the same moments", ids.HISTOGRAM,
                        hint_id=ids.HISTOGRAM_HINT, control=tensor, className="wide",
                    ),
                    layout.card("Q–Q against normal", "", ids.QQ, hint_id=ids.QQ_HINT, className="wide"),
                    layout.card(
                        "Gradient over time", "share of entries per bin, same bins always", ids.EVOLUTION,
                        title_id=ids.EVOLUTION_TITLE, className="wide",
                    ),
                    layout.card("Singular values", "", ids.SPECTRUM, hint_id=ids.SPECTRUM_HINT, className="wide tall"),
                    layout.card(
                        "Error", "", ids.ERRORS, hint_id=ids.ERRORS_HINT, control=measure, className="wide tall"
                    ),
                    layout.card("Outlier map", "", ids.MASK, hint_id=ids.MASK_HINT, className="wide tall"),
                    *(
                        layout.card(
                            "\u00a0", "", ids.statistic(slot), title_id=ids.statistic_title(slot), className="small"
                        )
                        for slot in range(ids.STATISTIC_SLOTS)
                    ),
                ],
            ),
        ],
    )  # fmt: skip


def head() -> Any:
    """The layer's name and its neighbours; the step and whether it follows the newest."""
    return html.Div(
        className="layer-head",
        children=[
            dcc.Link("← layers", id=ids.BACK, href="/", className="ghost"),
            html.H1("\u00a0", id=ids.LAYER_TITLE, className="mono"),
            html.Span(id=ids.LAYER_SHAPE, className="second"),
            html.Div(
                className="steps",
                children=[
                    dcc.Link("↑ K", id=ids.PREVIOUS_LAYER, href="/", className="ghost", title="previous layer (K)"),
                    dcc.Link("↓ J", id=ids.NEXT_LAYER, href="/", className="ghost", title="next layer (J)"),
                    html.Button("‹", id=ids.EARLIER, className="ghost", **layout.aria(label="earlier step")),
                    dmc.Slider(
                        id=ids.STEP_SLIDER, min=0, max=1, step=1, value=0, size="sm", updatemode="mouseup",
                        className="slider", thumbLabel="step", showLabelOnHover=False, thumbSize=14,
                    ),
                    html.Button("›", id=ids.LATER, className="ghost", **layout.aria(label="later step")),
                    html.Span(id=ids.STEP_LABEL, className="mono step-label"),
                    dmc.Switch(id=ids.FOLLOW, checked=True, label="follow", size="xs", color=GREEN),
                ],
            ),
        ],
    )  # fmt: skip


def at_step(recorded: Histogram | Quantiles | Spectrum | Mask | None, hint: str) -> str:
    """The hint, with the step whose recording is shown: each kind has its own rhythm."""
    return hint if recorded is None else f"step {count(recorded.step)} · {hint}"


def histogram_hint(recorded: Histogram | None, tensor: TensorName, threshold: float) -> str:
    """How to read the bars, and what they leave out."""
    if recorded is None:
        return ""
    lost = [f"{count(n)} {name}" for n, name in ((recorded.nan, "NaN"), (recorded.inf, "±Inf")) if n]
    if lost:
        return at_step(recorded, f"{' and '.join(lost)} left out")
    beyond = "; red: beyond ε" if tensor == "momentum" and threshold > 0 else ""
    return at_step(recorded, f"dashed: Gaussian{beyond}")


def statistic_title(shown: Statistic, recorded: History | None, step: int | None) -> list[Any]:
    """A statistic's name, and its value at the shown step."""
    now = ""
    if recorded is not None and np.isfinite(recorded.values).any():
        at = len(recorded.steps) if step is None else int(np.searchsorted(recorded.steps, step, side="right"))
        number = float(recorded.values[max(at - 1, 0)])
        now = "NaN" if np.isnan(number) else value(number)
    return [html.Span(shown.label), html.Span(now, className="now")]
