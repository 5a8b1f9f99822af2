"""What the store asks of a diagnosis. The store knows no rules: whoever composes a store gives it a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Frame, Layer
from root_dash.records.verdict import Changes


class Fold(Protocol):
    """Turns the frames of one run, one after the other, into verdicts. It depends on nothing but these frames."""

    @property
    def scores(self) -> NDArray[np.floating[Any]]:
        """Each layer's worst score in the last frame, (L,)."""

    @property
    def worst_rules(self) -> NDArray[np.integer[Any]]:
        """Number of the rule that each layer's score belongs to, (L,)."""

    def update(self, frame: Frame) -> Changes:
        """Take the run's next frame and return the verdicts that it begins, changes and ends."""

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers; their positions follow those of the layers that the fold has."""

    def state(self) -> bytes:
        """Return all that the future depends on."""


class Judge(Protocol):
    """Makes the folds of runs: `root_dash.health.Health`."""

    def __call__(self, layers: Sequence[Layer]) -> Fold:
        """Return the fold of a run without frames. The positions of the layers are 0, 1, 2, ..."""

    def from_state(self, layers: Sequence[Layer], state: bytes) -> Fold:
        """Return the fold that a state was taken of, for the same layers.

        Raises:
            ValueError: the state is of another version, or damaged.
        """
