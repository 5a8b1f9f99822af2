"""torch's Muon, which orthogonalizes its Nesterov-corrected momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Muon, Optimizer

from root_dash.monitor.optimizers.displacement import Displacement, learning_rate
from root_dash.monitor.optimizers.generic import GenericAdapter


class MuonAdapter(GenericAdapter):
    """The adapter of torch's Muon. The update that it shows is the orthogonalized matrix, as under ROOT.

    The weight decay, and the factor by which Muon scales a shape's learning rate, are taken out of the movement.
    """

    orthogonalizes = "momentum"

    @classmethod
    def adapts(cls, optimizer: Optimizer) -> bool:
        """Return whether the optimizer is torch's Muon."""
        return isinstance(optimizer, Muon)

    def corrected(self, momentum: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Return the momentum that the optimizer orthogonalizes, Nesterov-corrected if the group says so."""
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum

    def displacement(self, before: Tensor, shape: tuple[int, int], group: Mapping[str, Any]) -> Displacement:
        """Return how the orthogonalized matrix is read from weights that were `before`, of matrices of that shape."""
        lr = learning_rate(group)
        return Displacement(before, lr * _scale(group.get("adjust_lr_fn"), *shape), lr * group["weight_decay"])


def _scale(adjust: str | None, rows: int, cols: int) -> float:
    """Return the factor by which torch's Muon multiplies the learning rate of a matrix."""
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1.0, rows / cols)) if adjust in (None, "original") else 1.0
