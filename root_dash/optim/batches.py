"""Which parameters are stepped together, the matrix that each is seen as, and the weight decay of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_matrix(tensor: Tensor) -> Tensor:
    """The tensor as rows x cols: trailing dimensions flattened; a vector is one row, a scalar 1 x 1."""
    return tensor.flatten(1) if tensor.ndim >= 2 else tensor.reshape(1, -1)


def equal_shaped(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the tensors, those of one shape, dtype and device together, in order of appearance."""
    batches: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        batches.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(index)
    return list(batches.values())


def decay(params: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
    """Decoupled weight decay: θ <- (1 - η λ) θ. A learning rate in a tensor stays on its device."""
    if weight_decay == 0:
        return
    if isinstance(lr, Tensor):
        factor = 1 - lr * weight_decay
        for param in params:
            param.mul_(factor)
    else:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
