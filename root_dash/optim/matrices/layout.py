"""The matrices that a parameter consists of: one matrix, a flattened kernel, a stack of experts, a fused projection.

A parameter of shape (b_1, ..., b_k, m, n_1, ..., n_j), k = batch_ndim, is b_1 ⋯ b_k matrices of m x (n_1 ⋯ n_j). The
rows of each matrix are cut into blocks of `split_sizes`, and each block into `num_heads` equal blocks. Every block is
a matrix of its own: with its own threshold, orthogonalized alone, and with a learning rate for its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from root_dash.checks import is_whole


@dataclass(frozen=True, slots=True)
class Layout:
    """The way in which a parameter is cut into matrices: three options of a parameter group."""

    batch_ndim: int = 0
    """Number of leading dimensions that count matrices: 1 for experts (E, m, n). All after the rows are flattened."""
    split_sizes: tuple[int, ...] | None = None
    """Rows of each block, as (d, d, d) for fused Q, K and V, or (q, kv, kv) for grouped-query attention."""
    num_heads: int | tuple[int, ...] | None = None
    """Number of equal blocks that each block is cut into; a tuple has one number per block, 1 leaves a block whole."""

    def __post_init__(self) -> None:
        heads = self.num_heads
        if not is_whole(self.batch_ndim) or self.batch_ndim < 0:
            error = ValueError if is_whole(self.batch_ndim) else TypeError
            raise error(f"batch_ndim must be an integer of at least 0, got {self.batch_ndim!r}")
        if self.split_sizes is not None and not _are_counts(self.split_sizes):
            error = ValueError if _are_whole(self.split_sizes) else TypeError
            raise error(f"split_sizes must be integers of at least 1, or None, got {self.split_sizes!r}")
        if heads is not None and not _are_counts(heads if isinstance(heads, tuple) else (heads,)):
            error = ValueError if is_whole(heads) or _are_whole(heads) else TypeError
            raise error(f"num_heads must be an integer of at least 1, one per block, or None, got {heads!r}")
        blocks = len(self.split_sizes or (0,))
        if isinstance(heads, tuple) and len(heads) != blocks:
            raise ValueError(f"num_heads must have one number per block of split_sizes, {blocks}, got {heads!r}")

    @staticmethod
    def of(group: Mapping[str, Any]) -> Layout:
        """Return the layout of a parameter group. Missing options have their defaults, and lists may stand for tuples.

        Raises:
            TypeError: an option of a wrong type.
            ValueError: an option that fits no parameter at all.
        """
        return Layout(
            group.get("batch_ndim", 0), _as_tuple(group.get("split_sizes")), _as_tuple(group.get("num_heads"))
        )

    def options(self) -> dict[str, Any]:
        """Return the layout as options of a parameter group, without the options that have their defaults."""
        values = {"batch_ndim": self.batch_ndim, "split_sizes": self.split_sizes, "num_heads": self.num_heads}
        return {name: value for name, value in values.items() if value}

    def check(self, shape: torch.Size | Sequence[int], name: str | None = None) -> None:
        """Check that a parameter of this shape can be cut by the layout.

        Raises:
            ValueError: an option does not fit. The message names option, rule, value, shape and parameter.
        """
        where = f" for parameter {name!r} of shape {tuple(shape)}" if name else f" for shape {tuple(shape)}"
        if len(shape) < self.batch_ndim + 2:
            raise ValueError(f"batch_ndim must leave 2 dimensions to the matrix, got {self.batch_ndim!r}{where}")
        rows = shape[self.batch_ndim]
        sizes = self.split_sizes or (rows,)
        if sum(sizes) != rows:
            raise ValueError(f"split_sizes must sum to the rows of the matrix, {rows}, got {self.split_sizes!r}{where}")
        for size, heads in zip(sizes, self._heads(len(sizes)), strict=True):
            if size % heads:
                raise ValueError(f"num_heads must divide the rows of its block, {size}, got {self.num_heads!r}{where}")

    def shapes(self, shape: torch.Size | Sequence[int]) -> list[tuple[int, int]]:
        """Return rows and columns of each matrix in a parameter of this shape, in the order of `pieces`.

        Raises:
            ValueError: the layout does not fit the shape.
        """
        self.check(shape)
        matrices, rows, cols = self.stack(shape)
        return [(block, cols) for block in self.row_blocks(rows)] * matrices

    def stack(self, shape: torch.Size | Sequence[int]) -> tuple[int, int, int]:
        """Return the number of matrices in a parameter of this shape before the cut, and their rows and columns."""
        k = self.batch_ndim
        return prod(shape[:k]), shape[k], prod(shape[k + 1 :])

    def row_blocks(self, rows: int) -> list[int]:
        """Return the number of rows of each block of a matrix with this many rows."""
        sizes = self.split_sizes or (rows,)
        return [size // heads for size, heads in zip(sizes, self._heads(len(sizes)), strict=True) for _ in range(heads)]

    def _heads(self, blocks: int) -> tuple[int, ...]:
        return self.num_heads if isinstance(self.num_heads, tuple) else (self.num_heads or 1,) * blocks


def pieces(tensor: Tensor, layout: Layout) -> list[Tensor]:
    """Return the matrices of a tensor of at least two dimensions, each (rows, cols): along the batch, then by rows.

    The matrices are views if `viewable`. Otherwise, as for a channels-last kernel, they are parts of a copy. The layout
    must fit the shape: `Layout.check`.
    """
    if layout == PLAIN:
        return [tensor] if tensor.ndim == 2 else [tensor.flatten(1)]
    matrices, rows, cols = layout.stack(tensor.shape)
    blocks = layout.row_blocks(rows)
    stacked = tensor.reshape(matrices, rows, cols).unbind()
    return list(stacked) if len(blocks) == 1 else [piece for matrix in stacked for piece in matrix.split(blocks)]


def viewable(tensor: Tensor, layout: Layout) -> bool:
    """Return whether `pieces` are views: whether a write to a piece is a write to the tensor."""
    k = layout.batch_ndim
    return tensor.ndim == 2 or tensor.numel() == 0 or (_merges(tensor, 0, k) and _merges(tensor, k + 1, tensor.ndim))


def _merges(tensor: Tensor, start: int, stop: int) -> bool:
    """Return whether dimensions start..stop-1 are one run through memory: each stride spans the next dimension."""
    run = [(tensor.shape[i], tensor.stride(i)) for i in range(start, stop) if tensor.shape[i] != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in zip(run, run[1:], strict=False))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _are_whole(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_whole(item) for item in value)


def _are_counts(value: Any) -> bool:
    return _are_whole(value) and len(value) > 0 and min(value) >= 1


PLAIN = Layout()
"""The layout of one matrix, with trailing dimensions flattened."""
