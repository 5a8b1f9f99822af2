"""Which matrices are stepped together, and how they are taken from their tensors and written back.

Matrices of equal sides are one batch, whether they are wide or tall in their parameters: the batch is wide, with the
matrices that are wide already first and the transposed ones after them. On a CPU only small ones are transposed, where
fewer and larger batches save more than the transposition costs; large tall ones are a batch of their own as they are.
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
"""A batch of more entries is cut: what one holds beside the weights stays bounded and, on a CPU, in its caches."""

SMALL_ENTRIES = 2**14
"""Matrices of no more entries cost calls rather than passes over their memory."""

TRANSPOSED_ENTRIES = {"cpu": SMALL_ENTRIES, "cuda": 2**62}
"""Tall matrices of more entries are not transposed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix is: the index of its parameter, its own among that parameter's pieces, and its shape there."""

    parameter: int
    piece: int
    shape: tuple[int, int]
    transposed: bool
    """Whether it is transposed in its batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The places of L matrices of one shape, dtype and device; those that are transposed come last."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    places: tuple[Place, ...]

    def parts(self) -> list[tuple[slice, tuple[Place, ...]]]:
        """The matrices that stand as in their parameters, and the transposed, as slices of the batch; what there is."""
        first = sum(not place.transposed for place in self.places)
        cuts = [slice(0, first), slice(first, len(self.places))]
        return [(cut, self.places[cut]) for cut in cuts if cut.start < cut.stop]


Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


def batches_of(params: Sequence[Tensor], layout: Layout, *, one_by_one: bool = False) -> tuple[Batch, ...]:
    """All matrices of the parameters in batches, in the order in which their shapes first appear.

    `one_by_one` gives every matrix a batch of its own.
    """
    batches = batches_of_signature if torch.compiler.is_compiling() else _cached  # a compiler cannot trace a cache
    return batches(signature_of(params), layout, one_by_one)


def signature_of(params: Sequence[Tensor]) -> Signature:
    """What of the parameters decides on their batches."""
    return tuple((param.shape, param.dtype, param.device) for param in params)


def batches_of_signature(signature: Signature, layout: Layout, one_by_one: bool) -> tuple[Batch, ...]:
    """`batches_of` parameters of this signature."""
    found: dict[tuple[tuple[int, int], torch.dtype, torch.device], list[Place]] = {}
    for index, (size, dtype, device) in enumerate(signature):
        most = TRANSPOSED_ENTRIES.get(device.type, TRANSPOSED_ENTRIES["cuda"])
        for piece, (rows, cols) in enumerate(layout.shapes(size)):
            transposed = rows > cols and rows * cols <= most
            shape = (cols, rows) if transposed else (rows, cols)
            found.setdefault((shape, dtype, device), []).append(Place(index, piece, (rows, cols), transposed))
    batches = []
    for (shape, dtype, device), places in found.items():
        places.sort(key=lambda place: place.transposed)
        limit = BATCH_ENTRIES.get(device.type, BATCH_ENTRIES["cuda"])
        length = 1 if one_by_one else max(1, limit // max(1, shape[0] * shape[1]))
        batches += [Batch(shape, dtype, device, tuple(places[i : i + length])) for i in range(0, len(places), length)]
    return tuple(batches)


_cached = lru_cache(maxsize=64)(batches_of_signature)


def matrices(batch: Batch, tensors: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """The batch's matrices in tensors shaped as the parameters, as they stand there: views wherever possible."""
    if layout == PLAIN:
        return [pieces(tensors[place.parameter], layout)[0] for place in batch.places]
    found: dict[int, list[Tensor]] = {}
    for place in batch.places:
        if place.parameter not in found:
            found[place.parameter] = pieces(tensors[place.parameter], layout)
    return [found[place.parameter][place.piece] for place in batch.places]


def empty(batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
    """Room for the batch: (L, *batch.shape)."""
    return torch.empty(len(batch.places), *batch.shape, dtype=dtype or batch.dtype, device=batch.device)


def standing(batch: Batch, stack: Tensor) -> list[Tensor]:
    """The matrices of a stack (L, *batch.shape) as they stand in their parameters: views."""
    return [
        matrix.mT if place.transposed else matrix for place, matrix in zip(batch.places, stack.unbind(), strict=True)
    ]


def writable(tensors: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Tensors whose pieces are views, and the copies among them, as (copy, original), that must be written back."""
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
    """Have the C library keep what is freed for the next allocation; once a process.

    glibc gives blocks of over 128 KiB back to the kernel, which has to page the next one in anew, until it has seen a
    larger one freed: then it keeps up to twice that, 64 MiB at most. A training with activations of that size has shown
    it one; without, a step at d = 256 took 326 ms of one core where it takes 284. Nothing is written to the block.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what a DTensor's shards make up: a collective call of all its ranks."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def as_matrix(tensor: Tensor) -> Tensor:
    """The tensor as rows x cols: trailing dimensions flattened; a vector is one row, a scalar 1 x 1."""
    return tensor.flatten(1) if tensor.ndim >= 2 else tensor.reshape(1, -1)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of `as_matrix` of a tensor of that shape."""
    return (shape[0], prod(shape[1:])) if len(shape) >= 2 else (1, prod(shape))


def equal_shaped(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the tensors, those of one shape, dtype and device together, in order of appearance."""
    batches: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        batches.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(index)
    return list(batches.values())
