"""What a run records of each algorithm that steps its layers: its label, and what it does to singular values.

The monitor's adapters (`root_dash.monitor.optimizers`) write it into `Run.optimizer["algorithms"]`; dashboard, commands
and diagnosis read it with `traits_of` instead of comparing the names of optimizers. Standard library only.
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

`"polar"`: every singular value becomes 1. Another name: what the coefficient set of that name makes of them. Else the
coefficients themselves: per step (a, b, c, ...) of the odd polynomial a σ + b σ³ + c σ⁵ + ...
"""


@dataclass(frozen=True, slots=True)
class AlgorithmTraits:
    """What readers need to know of an algorithm.

    Args:
        label: its name for people, such as "AdamW".
        orthogonalizes: the tensor that it orthogonalizes; None if the singular values of its update mean nothing.
        target: the map of singular values that it aims at. An update that misses 1 is an error only if this is
            `"polar"`.
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
"""What is known of the algorithms of runs that did not record their traits."""


def traits_of(optimizer: Mapping[str, Any], algorithm: str) -> AlgorithmTraits:
    """Return the traits of a layer's `algorithm`, given `Run.optimizer`.

    A run that did not record them, or recorded something else in their place, has those of the algorithm's name.
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
    """Return the map of singular values that is declared, with its coefficients as tuples.

    Raises:
        ValueError: it is neither `"polar"`, nor the name of a coefficient set, nor one or more rows of numbers.
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
