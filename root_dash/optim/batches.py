"""Which parameters are stepped together, and the matrix that each is seen as."""

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
