"""The singular values at the shown step, before and after the orthogonalization."""

from __future__ import annotations

from typing import Any

from root_dash.frontend.figures.spectrum import spectrum
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import nearest, own_name, traits, with_step
from root_dash.frontend.theme import Theme
from root_dash.records import Layer, Spectrum
from root_dash.records.algorithms import AlgorithmTraits

NO_SPECTRUM = "A vector has no spectrum, since no vector is orthogonalized."


def _read(selection: Selection) -> dict[str, Any]:
    store, layer = selection.store, selection.store.layer(selection.layer)
    found = nearest(selection, "spectra", store.spectrum)
    return {"layer": layer, "algorithm": traits(selection, layer), "found": found}


def _draw(theme: Theme, *, layer: Layer, algorithm: AlgorithmTraits, found: Spectrum | None) -> Drawing:
    figure = spectrum(
        found, theme, own=own_name(algorithm), of_base=algorithm.orthogonalizes == "base",
        polar=algorithm.aims_at_polar, sentence="" if layer.is_matrix else NO_SPECTRUM,
    )  # fmt: skip
    if not figure.data:
        return Drawing(figure, hint=with_step(found, ""))
    reading = "dashed 1 is perfect" if algorithm.aims_at_polar else f"{algorithm.label} does not aim at 1"
    return Drawing(figure, hint=with_step(found, f"estimated · {reading}" if found and found.estimated else reading))


PANEL = Panel(
    "spectrum", "Singular values", "", _read, _draw,
    kind="spectra", shows="step", className="wide tall",
)  # fmt: skip
