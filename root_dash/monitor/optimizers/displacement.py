"""The update of an optimizer that does not offer it: what the weights were moved by, over the learning rate.

If an update is due, the weights are copied before the step and subtracted after the step. The update is exact: it
includes the rounding of the weights to their own dtype, and the weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from root_dash.optim.matrices.batches import as_matrix
from root_dash.optim.matrices.shards import local


@dataclass(frozen=True, slots=True)
class Displacement:
    """How the update X of L equal-shaped parameters is read from their weights: W - W' = lr X, less the decay of W.

    `lr` multiplies X; `decay` is the share of the weights that the step takes by itself, if it is no part of X.
    """

    before: Tensor
    lr: float | Tensor
    decay: float | Tensor | None = None

    def update(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return X, (L, rows, cols), given the weights after the step; to be called once.

        X is 0 if the learning rate is 0: nothing was moved.
        """
        wide = torch.float64 if self.before.dtype == torch.float64 else torch.float32
        moved = self.before.to(wide)  # the copy itself if it is wide already, since it is used once
        if self.decay is not None:
            moved.mul_(1 - self.decay)
        torch._foreach_sub_(list(moved.unbind()), [as_matrix(local(parameter).detach()) for parameter in parameters])
        if isinstance(self.lr, Tensor):
            lr = self.lr.to(moved.device, wide, non_blocking=True)
            return moved.div_(torch.where(lr == 0, 1.0, lr))
        return moved.div_(self.lr) if self.lr else moved


def learning_rate(group: Mapping[str, Any]) -> float | Tensor:
    """Return the learning rate of a parameter group, and 1 if the group has no such number."""
    lr = group.get("lr")
    return lr if isinstance(lr, Tensor) else float(lr) if isinstance(lr, Real) else 1.0


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return a copy of this process's part of tensors of one shape, as (L, rows, cols)."""
    return torch.stack([as_matrix(local(tensor).detach()) for tensor in tensors])
