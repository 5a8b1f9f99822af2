"""The traits of an algorithm that steps layers: its label, and its effect on singular values.

The monitor's adapters (`root_dash.monitor.optimizers`) write traits into `Run.optimizer["algorithms"]`. Dashboard,
commands and diagnosis read them with `traits_of` instead of comparing the names of optimizers. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from root_dash.coefficients.tables import NAMES

Orthogonalized = Literal["base", "momentum"]
"""The tensor that an algorithm orthogonalizes."""

Target = str | tuple[tuple[float, ...], ...]
"""The map of singular values that an algorithm aims at.

`"polar"` maps every singular value to 1. Any other name is a coefficient set. Coefficients give, for each step,
(a, b, c, ...) of the odd polynomial a σ + b σ³ + c σ⁵ + ...
"""


@dataclass(frozen=True, slots=True)
class AlgorithmTraits:
    """The traits of an algorithm.

    Args:
        label: the name for people, such as "AdamW".
        orthogonalizes: the tensor to orthogonalize; None if the singular values of the update mean nothing.
        target: the map of singular values that the algorithm aims at. Only if the target is `"polar"`, a singular value
            other than 1 is an error.
    """

    label: str
    orthogonalizes: Orthogonalized | None = None
    target: Target = "polar"

    @property
    def aims_at_polar(self) -> bool:
        """Whether the update should be orthogonal: whether orthogonality and polar error are errors."""
        return self.orthogonalizes is not None and self.target == "polar"


_BEFORE = {
    "root": AlgorithmTraits("ROOT", "base"),
    "muon": AlgorithmTraits("Muon", "momentum"),
    "adamw": AlgorithmTraits("AdamW"),
    "adam": AlgorithmTraits("Adam"),
    "sgd": AlgorithmTraits("SGD"),
}
"""Traits of the algorithms of older runs, which did not record traits."""


def traits_of(optimizer: Mapping[str, Any], algorithm: str) -> AlgorithmTraits:
    """Return the traits of a layer's `algorithm`, given `Run.optimizer`.

    If the run recorded no traits, or something else in their place, the traits follow from the algorithm's name.
    """
    algorithms = optimizer.get("algorithms")
    recorded = algorithms.get(algorithm) if isinstance(algorithms, Mapping) else None
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("label"), str):
        return _BEFORE.get(algorithm, AlgorithmTraits(algorithm))
    orthogonalizes = recorded.get("orthogonalizes")
    try:
        target = checked_target(recorded.get("target", "polar"))
    except ValueError:
        target = "polar"
    return AlgorithmTraits(
        recorded["label"], orthogonalizes if orthogonalizes in ("base", "momentum") else None, target
    )


def checked_target(target: object) -> Target:
    """Return a declared map of singular values, with its coefficients as tuples.

    Raises:
        ValueError: the target is neither `"polar"`, nor the name of a coefficient set, nor rows of numbers.
    """
    if isinstance(target, str) and target in ("polar", *NAMES):
        return target
    if isinstance(target, Sequence) and not isinstance(target, str) and target:
        rows = tuple(tuple(row) if isinstance(row, Sequence) and not isinstance(row, str) else () for row in target)
        if all(row and all(isinstance(value, int | float) for value in row) for row in rows):
            return tuple(tuple(map(float, row)) for row in rows)
    raise ValueError(
        f"target_map must be 'polar', one of {', '.join(map(repr, NAMES))}, or the coefficients (a, b, c) of each "
        f"step, got {target!r}"
    )
