"""The views of a step that the optimizer shows to its observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Observation:
    """A batch of L matrices of one shape in the middle of a step.

    The tensors belong to the optimizer and are valid during the call only: read them, copy them to keep them, and never
    write to them. rows x cols is a matrix as it stands in its parameter (a vector is 1 x n); the products have its
    short side s = min(rows, cols). A field is None if the step does not compute it.
    """

    parameters: tuple[Tensor, ...]
    """L parameters of one dtype and device. A parameter of several matrices appears once for each matrix."""
    pieces: tuple[int, ...]
    """The index of each matrix among the matrices of its parameter; 0 if the parameter is one matrix."""
    algorithm: str
    """`"root"` or `"adamw"`."""
    gradient: tuple[Tensor, ...] | None
    """L gradients (rows, cols) as in `p.grad` (not negated under `maximize`); None if they are sharded."""
    weight: tuple[Tensor, ...] | None
    """L weights (rows, cols) before the step; None if they are sharded."""
    momentum: Tensor
    """(L, rows, cols) M, the matrices that are about to be clipped and orthogonalized; for AdamW its `exp_avg`."""
    threshold: Tensor | None
    """(L,) ε; None if nothing is clipped."""
    base: Tensor | None
    """(L, rows, cols) B = clamp(M, -ε, ε); None if M itself is the base."""
    update: Tensor
    """(L, rows, cols) X, before the learning rate; for AdamW m̂ / (√v̂ + eps)."""
    lr: float | Tensor
    """The scaled learning rate: lr X is subtracted from the weights."""
    gram: Tensor | None = None
    """(L, s, s): A = scale² B Bᵀ (Bᵀ B if B is tall), as the first Newton-Schulz step computed it."""
    gram_squared: Tensor | None = None
    """(L, s, s): A², if the Schatten-8 norm needed it."""
    gram_scale: Tensor | None = None
    """(L, 1, 1): the factor of the base in A."""


@dataclass(frozen=True, slots=True)
class ShardObservation:
    """The shard of one matrix that this process holds, with at least one entry, in the middle of a step.

    Every process shows its own shards, whether a process has the whole matrix (`Observation`) or no process has it
    (AdamW). A sum over the entries of the matrix is the sum over its shards. The tensors are (rows, cols) of the shard
    as in the parameter (a vector is 1 x n). They are valid during the call only: read them, copy them to keep them, and
    never write to them.
    """

    parameter: Tensor
    piece: int
    """The index of the matrix among the matrices of its parameter; 0 if the parameter is one matrix."""
    algorithm: str
    """`"root"` or `"adamw"`."""
    shape: tuple[int, int]
    """Rows and columns of the whole matrix."""
    gradient: Tensor
    """The gradient as in `p.grad`."""
    weight: Tensor
    """The weight before the step."""
    momentum: Tensor
    """The rows of M, before clipping and orthogonalization; for AdamW its `exp_avg`."""
    update: Tensor | None
    """For AdamW X, before the learning rate; None for ROOT, because the owner of the whole matrix computes X."""
    lr: float | Tensor
    """The scaled learning rate: lr X is subtracted from the weights."""


Observer: TypeAlias = Callable[[Observation], object]
"""A function that is called during the step. If it raises an error, the step stays unfinished."""

ShardObserver: TypeAlias = Callable[[Sequence[ShardObservation]], object]
"""A function that is called during the step with some shards, each of another matrix."""
