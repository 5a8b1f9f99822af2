"""What the optimizer shows to its observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Observation:
    """One batch of equal-shaped parameters in the middle of a step: the update is known, the weights not yet changed.

    The tensors are the optimizer's own, alive only during the call, in the parameters' orientation: rows = shape[0],
    cols = the rest flattened, a vector 1 x n. Read them, copy what must last, and write to none.
    """

    parameters: tuple[Tensor, ...]
    """L parameters of one shape, dtype and device, weights not yet changed."""
    algorithm: str
    """`"root"` or `"adamw"`."""
    gradient: Tensor
    """(L, rows, cols): the gradients as in `p.grad` (not negated under `maximize`)."""
    momentum: Tensor
    """(L, rows, cols) M: what is about to be orthogonalized; for AdamW its `exp_avg`."""
    threshold: Tensor | None
    """(L,) ε, None where no threshold is applied."""
    base: Tensor | None
    """(L, rows, cols) B = clamp(M, -ε, ε), None where M itself is the base."""
    update: Tensor
    """(L, rows, cols) X, before the learning rate; for AdamW m̂ / (√v̂ + eps)."""
    lr: float | Tensor
    """The scaled learning rate: what multiplies X when it is subtracted from the weights."""


Observer: TypeAlias = Callable[[Observation], object]
"""Called during the step; what it raises leaves the step unfinished."""
