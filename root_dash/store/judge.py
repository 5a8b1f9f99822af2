"""What the store asks of a diagnosis. The store knows no rules: the code that composes a store passes a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Frame, Layer
from root_dash.records.verdict import Changes


class Fold(Protocol):
    """Turns the frames of one run, one after the other, into verdicts. Nothing else than the frames matters."""

    @property
    def scores(self) -> NDArray[np.floating[Any]]:
        """Each layer's worst score in the last frame, (L,)."""

    @property
    def worst_rules(self) -> NDArray[np.integer[Any]]:
        """Number of the rule that each layer's score belongs to, (L,)."""

    def update(self, frame: Frame) -> Changes:
        """Take the run's next frame and return the verdicts that begin, change or end with the frame."""

    def extend(self, layers: Sequence[Layer]) -> None:
        """Add layers, whose positions follow the positions of the layers before."""

    def state(self) -> bytes:
        """Return the whole state of the fold as bytes."""


class Judge(Protocol):
    """Makes the folds of runs: `root_dash.health.Health`."""

    def __call__(self, layers: Sequence[Layer]) -> Fold:
        """Return the fold of a run without frames. The positions of the layers are 0, 1, 2, ..."""

    def from_state(self, layers: Sequence[Layer], state: bytes) -> Fold:
        """Return a fold with a state, for the same layers.

        Raises:
            ValueError: the state is of another version, or damaged.
        """
