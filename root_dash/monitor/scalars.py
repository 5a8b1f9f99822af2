"""Numbers that a training loop logs."""

from __future__ import annotations

import torch
from torch import Tensor

from root_dash.optim.matrices.shards import is_dtensor, local


def number(name: str, value: float | Tensor) -> float | Tensor:
    """Take one number: a float, or a copy of a tensor on its own device, which is not waited for.

    Raises:
        ValueError: it is no single real number, or a DTensor of which other processes have a part.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"log({name}=...) takes a single number, got {value.dtype} of shape {tuple(value.shape)}")
        if is_dtensor(value) and not all(placement.is_replicate() for placement in value.placements):
            raise ValueError(f"log({name}=...) takes a number that is here, got a DTensor: give its full_tensor()")
        value = local(value)
        # A copy, since the user may go on to write into it.
        return value.detach().reshape(()).to(torch.float64, copy=True)
    try:
        return float(value)
    except Exception as error:
        raise ValueError(f"log({name}=...) takes a single number, got a {type(value).__name__}") from error
