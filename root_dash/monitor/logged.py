"""The numbers that a user logs beside what is recorded: a loss, a learning rate."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from root_dash.monitor.failures import Failures
from root_dash.optim.matrices.shards import is_dtensor, local


class Log:
    """Takes what is logged, and notices when it is no longer finite."""

    def __init__(self) -> None:
        self.misused = Failures(limit=None)
        self._finite = True

    def breaks(self, scalars: Mapping[str, Any]) -> bool:
        """Return whether a number is not finite, after all were finite: such a step's log is not left out."""
        finite, before = all(map(is_finite_here, scalars.values())), self._finite
        self._finite = finite
        return before and not finite

    def numbers(self, scalars: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """Return what is logged as numbers; a value that is none is counted and left out."""
        values: dict[str, float | Tensor] = {}
        for name, value in scalars.items():
            try:
                values[name] = logged_number(name, value)
            except Exception as error:
                self.misused.add("to log", error)
        return values


def is_finite_here(value: object) -> bool:
    """Return whether a logged value is finite, as far as the host can tell without waiting for a device."""
    if isinstance(value, Tensor):
        return not value.is_cpu or is_dtensor(value) or value.numel() != 1 or cmath.isfinite(value.item())
    return not isinstance(value, float) or math.isfinite(value)


def logged_number(name: str, value: float | Tensor) -> float | Tensor:
    """Return a logged value as a float, or as a tensor () in float64 that the user no longer shares.

    Raises:
        ValueError: the value is not a single real number, or is a DTensor that other processes hold parts of.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"log({name}=...) takes a single number, got {value.dtype} of shape {tuple(value.shape)}")
        if is_dtensor(value) and not all(placement.is_replicate() for placement in value.placements):
            raise ValueError(f"log({name}=...) takes a number that is here, got a DTensor: give its full_tensor()")
        value = local(value)
        # A copy, since the user may go on to write into the tensor.
        return value.detach().reshape(()).to(torch.float64, copy=True)
    try:
        return float(value)
    except Exception as error:
        raise ValueError(f"log({name}=...) takes a single number, got a {type(value).__name__}") from error
