"""The update of an optimizer that does not offer it: what the weights were moved by, over the learning rate.

Before the step the weights are copied, where an update is due; after it their difference is taken. It is exact: what
the weights really went through, the rounding to their own dtype and the weight decay included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from root_dash.optim.matrices.batches import as_matrix, matrix_shape
from root_dash.optim.matrices.shards import local


@dataclass(frozen=True, slots=True)
class Displacement:
    """How the update of L equal-shaped parameters is read from their weights: W - W' = lr X, less the decay of W.

    `lr` multiplies X; `decay` is the share of the weights that the step takes by itself, where it is no part of X.
    """

    before: Tensor
    lr: float | Tensor
    decay: float | Tensor | None = None
    orthogonalized: bool = False

    def update(self, parameters: Sequence[Tensor]) -> Tensor:
        """X, (L, rows, cols), of what the weights are now; once. 0 where the learning rate is: nothing was moved."""
        wide = torch.float64 if self.before.dtype == torch.float64 else torch.float32
        moved = self.before.to(wide)  # the copy itself, where it is wide already: it is used once
        if self.decay is not None:
            moved.mul_(1 - self.decay)
        torch._foreach_sub_(list(moved.unbind()), [as_matrix(local(parameter).detach()) for parameter in parameters])
        if isinstance(self.lr, Tensor):
            lr = self.lr.to(moved.device, wide, non_blocking=True)
            return moved.div_(torch.where(lr == 0, 1.0, lr))
        return moved.div_(self.lr) if self.lr else moved


def displacement(optimizer: Optimizer, group: Mapping[str, Any], parameters: Sequence[Tensor]) -> Displacement:
    """What there is to know before the step of equal-shaped parameters of one group.

    torch's Muon shows the matrix that it orthogonalized, as ROOT does: its decay and the factor that it scales a
    shape's learning rate by are taken out. Of all others X is the movement over the group's `lr`, with the decay in it;
    where a group has no such number, over 1.
    """
    before = stacked(parameters)
    lr = group.get("lr")
    if not isinstance(lr, Tensor):
        lr = float(lr) if isinstance(lr, Real) else 1.0
    if isinstance(optimizer, Muon):
        rows, cols = matrix_shape(parameters[0].shape)  # also where this process holds some of its rows
        decay = lr * group["weight_decay"]
        return Displacement(before, lr * _muon_scale(group.get("adjust_lr_fn"), rows, cols), decay, orthogonalized=True)
    # A copy: a capturable optimizer's schedule writes into the tensor.
    return Displacement(before, lr.clone() if isinstance(lr, Tensor) else lr)


def _muon_scale(adjust: str | None, rows: int, cols: int) -> float:
    """By what torch's Muon multiplies the learning rate of a matrix."""
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1.0, rows / cols)) if adjust in (None, "original") else 1.0


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of what is here of tensors of one shape, as (L, rows, cols)."""
    return torch.stack([as_matrix(local(tensor).detach()) for tensor in tensors])
