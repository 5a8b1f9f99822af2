"""Batches of matrices: which matrices are stepped together, and how they are taken from their tensors.

Matrices of equal sides form a batch, whether they are wide or tall in their parameters. The batch is wide: first the
wide matrices, then the transposed tall matrices. On a CPU only small matrices are transposed: for them, fewer and
larger batches save more time than the transposition costs. Large tall matrices form a tall batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod

import torch
from torch import Tensor

from root_dash.optim.matrices.layout import PLAIN, Layout, pieces, viewable

BATCH_ENTRIES = {"cpu": 2**20, "cuda": 2**28}
"""The most entries of a batch. The memory that a batch needs stays bounded, and a CPU keeps a batch in its caches."""

SMALL_ENTRIES = 2**14
"""The most entries of a small matrix: small matrices spend their time in calls, not in passes over their memory."""

TRANSPOSED_ENTRIES = {"cpu": SMALL_ENTRIES, "cuda": 2**62}
"""The most entries of a tall matrix that is transposed into a wide batch."""


@dataclass(frozen=True, slots=True)
class MatrixRef:
    """A reference to one matrix of a list of parameters."""

    parameter: int
    """The index of the parameter."""
    piece: int
    """The index of the matrix among the pieces of its parameter."""
    shape: tuple[int, int]
    """Rows and columns of the matrix as it stands in its parameter."""
    transposed: bool
    """Whether the matrix is transposed in its batch."""


@dataclass(frozen=True, slots=True)
class MatrixBatch:
    """References to L matrices of one shape, dtype and device. Transposed matrices come last."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    refs: tuple[MatrixRef, ...]

    def orientations(self) -> list[tuple[slice, tuple[MatrixRef, ...]]]:
        """Return the slices and references of the matrices as in their parameters and of the transposed, if any."""
        first = sum(not ref.transposed for ref in self.refs)
        cuts = [slice(0, first), slice(first, len(self.refs))]
        return [(cut, self.refs[cut]) for cut in cuts if cut.start < cut.stop]


Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
"""The shape, dtype and device of each parameter. Nothing else decides on the batches."""


def matrix_batches(params: Sequence[Tensor], layout: Layout, *, one_by_one: bool = False) -> tuple[MatrixBatch, ...]:
    """Return all matrices of the parameters in batches, in the order in which their shapes first appear.

    `one_by_one` gives every matrix a batch of its own.
    """
    batches = batches_from_signature if torch.compiler.is_compiling() else _cached  # a compiler cannot trace a cache
    return batches(signature(params), layout, one_by_one)


def signature(params: Sequence[Tensor]) -> Signature:
    """Return the signature of the parameters."""
    return tuple((param.shape, param.dtype, param.device) for param in params)


def batches_from_signature(signature: Signature, layout: Layout, one_by_one: bool) -> tuple[MatrixBatch, ...]:
    """Return the `matrix_batches` of parameters with this signature."""
    found: dict[tuple[tuple[int, int], torch.dtype, torch.device], list[MatrixRef]] = {}
    for index, (size, dtype, device) in enumerate(signature):
        most = TRANSPOSED_ENTRIES.get(device.type, TRANSPOSED_ENTRIES["cuda"])
        for piece, (rows, cols) in enumerate(layout.shapes(size)):
            transposed = rows > cols and rows * cols <= most
            shape = (cols, rows) if transposed else (rows, cols)
            found.setdefault((shape, dtype, device), []).append(MatrixRef(index, piece, (rows, cols), transposed))
    batches = []
    for (shape, dtype, device), refs in found.items():
        refs.sort(key=lambda ref: ref.transposed)
        limit = BATCH_ENTRIES.get(device.type, BATCH_ENTRIES["cuda"])
        length = 1 if one_by_one else max(1, limit // max(1, shape[0] * shape[1]))
        batches += [MatrixBatch(shape, dtype, device, tuple(refs[i : i + length])) for i in range(0, len(refs), length)]
    return tuple(batches)


_cached = lru_cache(maxsize=64)(batches_from_signature)


def matrices(batch: MatrixBatch, tensors: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Return the matrices of a batch from tensors shaped as the parameters, in the parameters' orientation.

    The matrices are views wherever possible.
    """
    if layout == PLAIN:
        return [pieces(tensors[ref.parameter], layout)[0] for ref in batch.refs]
    found: dict[int, list[Tensor]] = {}
    for ref in batch.refs:
        if ref.parameter not in found:
            found[ref.parameter] = pieces(tensors[ref.parameter], layout)
    return [found[ref.parameter][ref.piece] for ref in batch.refs]


def empty_stack(batch: MatrixBatch) -> Tensor:
    """Return uninitialized memory for the matrices of a batch: (L, *batch.shape)."""
    return torch.empty(len(batch.refs), *batch.shape, dtype=batch.dtype, device=batch.device)


def unstack(batch: MatrixBatch, stack: Tensor) -> list[Tensor]:
    """Return the matrices of a stack (L, *batch.shape) in the parameters' orientation, as views."""
    return [matrix.mT if ref.transposed else matrix for ref, matrix in zip(batch.refs, stack.unbind(), strict=True)]


def writable(tensors: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Return tensors whose pieces are views, and pairs (copy, original) that the caller must copy back at the end."""
    out, copies = [], []
    for tensor in tensors:
        if viewable(tensor, layout):
            out.append(tensor)
        else:
            copy = tensor.contiguous()
            out.append(copy)
            copies.append((copy, tensor))
    return out, copies


@cache
def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next allocation; once per process.

    glibc gives blocks of over 128 KiB back to the kernel, which has to page the next block in anew. Once glibc has seen
    a larger block freed, it keeps up to twice the size of the block, 64 MiB at most. This function frees such a block:
    without it, a step at d = 256 took 326 ms of a core instead of 284. Nothing is written to the block.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def as_matrix(tensor: Tensor) -> Tensor:
    """Return the tensor as rows x cols: trailing dimensions flattened; a vector is one row, a scalar 1 x 1."""
    return tensor.flatten(1) if tensor.ndim >= 2 else tensor.reshape(1, -1)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of `as_matrix` of a tensor of this shape."""
    return (shape[0], prod(shape[1:])) if len(shape) >= 2 else (1, prod(shape))


def equal_shaped(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Group the indices of the tensors by shape, dtype and device, in order of appearance."""
    batches: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        batches.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(index)
    return list(batches.values())
