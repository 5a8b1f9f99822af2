"""The error of the orthogonalization over the steps, beside Muon's and the paper's coefficients on the same spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from root_dash.frontend.figures.errors import errors
from root_dash.frontend.figures.polynomial import Measure, errors_on
from root_dash.frontend.panels.controls import segmented
from root_dash.frontend.panels.layer.findings import onset
from root_dash.frontend.panels.layer.spectrum import NO_SPECTRUM
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import POINTS, own_name, recorded, traits
from root_dash.frontend.theme import Theme
from root_dash.records import History, Layer, Spectrum, statistic
from root_dash.records.algorithms import AlgorithmTraits

MEASURE = segmented("measure", "which error", {"orthogonality_error": "orthogonality", "polar_error": "polar"})


def _read(selection: Selection) -> dict[str, Any]:
    store, layer_id, measure = selection.store, selection.layer, cast(Measure, selection.values[MEASURE.id])
    layer = store.layer(layer_id)
    return {
        "layer": layer,
        "algorithm": traits(selection, layer),
        "measure": measure,
        "spectra": recorded(store.spectra, layer_id) or [],
        "own": recorded(store.history, layer_id, measure, POINTS),
        "since": onset(selection),
    }


def _draw(
    theme: Theme,
    *,
    layer: Layer,
    algorithm: AlgorithmTraits,
    measure: Measure,
    spectra: Sequence[Spectrum],
    own: History | None,
    since: int | None,
) -> Drawing:
    muon, paper = errors_on(spectra, measure, layer, of_base=algorithm.orthogonalizes == "base")
    # Only what aims at an orthogonal update has an error of its own.
    own = own if algorithm.aims_at_polar else None
    figure = errors(
        own, muon, paper, theme, name=own_name(algorithm), onset=since, sentence="" if layer.is_matrix else NO_SPECTRUM
    )
    name = statistic(measure).label.capitalize()
    if not algorithm.aims_at_polar:
        return Drawing(figure, title=name, hint="what others would leave" if figure.data else "")
    hint = PANEL.hint if figure.data else ""
    if spectra and figure.data and (own is None or not np.isfinite(own.values).any()):
        hint = f"no finite error of its own · {hint}"
    return Drawing(figure, title=name, hint=hint)


PANEL = Panel(
    "errors", "Orthogonality error", "on the same spectra", _read, _draw,
    kind="spectra", controls=(MEASURE,), className="wide tall",
)  # fmt: skip
