"""What the optimizer shows to its observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Observation:
    """One batch of L matrices of one shape in the middle of a step.

    The tensors are the optimizer's own, alive only during the call, in the parameters' orientation: rows x cols is the
    matrix as it stands there (a vector 1 x n), except for the products, which are of its short side s = min(rows,
    cols). Read them, copy what must last, and write to none. A field is None where the step does not have it.
    """

    parameters: tuple[Tensor, ...]
    """L parameters of one dtype and device; one that consists of several matrices stands here once for each."""
    pieces: tuple[int, ...]
    """L numbers: which of its parameter's matrices each is; 0 where the parameter is one matrix."""
    algorithm: str
    """`"root"` or `"adamw"`."""
    gradient: tuple[Tensor, ...] | None
    """L of (rows, cols): the gradients as in `p.grad` (not negated under `maximize`); None where they are sharded."""
    weight: tuple[Tensor, ...] | None
    """L of (rows, cols): the weights before the step; None where they are sharded."""
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
    gram: Tensor | None = None
    """(L, s, s): A = scale² B Bᵀ (Bᵀ B where B is tall), as the first Newton-Schulz step computed it."""
    gram_squared: Tensor | None = None
    """(L, s, s): A², where the Schatten-8 norm needed it."""
    gram_scale: Tensor | None = None
    """(L, 1, 1): what the base was multiplied by before A was taken."""


@dataclass(frozen=True, slots=True)
class ShardObservation:
    """What this process holds of one matrix of a sharded parameter in the middle of a step, at least one entry.

    Every process shows its own, also where one of them sees the matrix whole (`Observation`) or none does (AdamW):
    what is summed over entries is summed over shards. The tensors are (rows, cols) of the shard as it stands in the
    parameter (a vector 1 x n), alive only during the call. Read them, copy what must last, and write to none.
    """

    parameter: Tensor
    piece: int
    """Which of its parameter's matrices it is of; 0 where the parameter is one matrix."""
    algorithm: str
    """`"root"` or `"adamw"`."""
    shape: tuple[int, int]
    """Rows and columns of the whole matrix."""
    gradient: Tensor
    """As in `p.grad`."""
    weight: Tensor
    """Before the step."""
    momentum: Tensor
    """Of M: what is about to be orthogonalized; for AdamW of its `exp_avg`."""
    update: Tensor | None
    """For AdamW of X, before the learning rate; None for ROOT, whose X is made where the matrix is whole."""
    lr: float | Tensor
    """The scaled learning rate: what multiplies X when it is subtracted from the weights."""


Observer: TypeAlias = Callable[[Observation], object]
"""Called during the step; what it raises leaves the step unfinished."""

ShardObserver: TypeAlias = Callable[[Sequence[ShardObservation]], object]
"""The same, for some shards at a time, each of another matrix."""
