"""What the dashboard knows of the optimizers: how a figure and a sentence name each, and what each orthogonalizes."""

from __future__ import annotations

from root_dash.records import Layer

_NAMES = {"root": "ROOT", "adamw": "AdamW", "adam": "Adam", "muon": "Muon", "sgd": "SGD"}


def name(algorithm: str) -> str:
    """Return the name of an optimizer for a sentence: AdamW."""
    return _NAMES.get(algorithm, algorithm)


def rank(algorithm: str) -> int:
    """Return where an optimizer stands in a list: ROOT before all others."""
    return 0 if algorithm == "root" else 1


def line(layer: Layer) -> str:
    """Return the name of a layer's own line in a figure: ROOT, or the optimizer as recorded.

    The recorded name is in lower case, so that a run under Muon is told apart from the line "Muon", which stands for
    Muon's coefficients.
    """
    return _NAMES["root"] if layer.algorithm == "root" else layer.algorithm


def takes_base(layer: Layer) -> bool:
    """Return whether the layer's optimizer orthogonalizes the base, as ROOT does; any other takes the momentum."""
    return layer.algorithm == "root"
