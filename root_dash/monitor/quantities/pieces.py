"""Sums over the entries of layers on the training device: piece by piece on a CPU, and safely at any scale.

The costly part on a CPU is a pass over memory. There the entries are taken piece by piece, each small enough to stay in
a core's cache for all passes over it, first as if they were finite and of ordinary size. If the sums show that they
were not, the entries are taken again with masks and scales, as every other device does from the start.

All functions are batched over the L layers of one shape, allocate what they return, never write to their inputs and,
off the CPU, never read a value back to the host: they neither block nor synchronize a device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from root_dash.kernels.moments import PIECE_WIDTH
from root_dash.records import Float64Array

_CACHED_ENTRIES = 2**17
"""Entries taken at a time on a CPU: with the temporary tensors they stay in the second-level cache of a core."""
_LENGTH_PARTS = 32
_ORDINARY = (1e-25, 1e30)
"""Sums of squares, or of fourth powers, between these bounds neither over- nor underflowed in float32."""

_EXPONENT = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}
"""For each float type: the integer type of its size, and the mask of its exponent's bits."""


def by_pieces(sums: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Tensor:
    """Apply `sums`, which returns (l, k), to pieces of tensors (L, n), and return (L, pieces of a row, k).

    A tensor of one column goes with every piece of its row. Off the CPU a row is one piece.
    """
    rows, columns = first.shape
    width = min(columns, PIECE_WIDTH) if first.is_cpu else columns
    height = max(1, _CACHED_ENTRIES // width) if first.is_cpu else rows
    if height >= rows and width >= columns:
        return sums(first, *others).unsqueeze(1)

    def piece(row: int, column: int) -> Tensor:
        high = (tensor[row : row + height] for tensor in (first, *others))
        return sums(*(one if one.shape[1] == 1 else one[:, column : column + width] for one in high))

    return torch.cat(
        [torch.stack([piece(row, column) for column in range(0, columns, width)], 1) for row in range(0, rows, height)]
    )


def piece_widths(entries: int, pieces: int) -> Float64Array:
    """Return how many of a row's entries each of its pieces has: (pieces,)."""
    if pieces == 1:
        return np.array([float(entries)])
    starts = np.arange(pieces) * PIECE_WIDTH
    return np.minimum(entries - starts, PIECE_WIDTH).astype(np.float64)


def are_ordinary(squares: Tensor) -> bool:
    """Return whether sums of squares are finite and neither over- nor underflowed. On a CPU only: it reads values."""
    low, high = torch.aminmax(squares)
    return _ORDINARY[0] < float(low) and float(high) < _ORDINARY[1]  # NaN is neither


def length(x: Tensor) -> Tensor:
    """Return ‖x‖ of each row (l, n) in float32, in one pass that writes nothing: (l,).

    The sum is taken in parts, since torch adds the squares one after another: the sum of 65,536 squares was off by
    1e-5 of itself, and is off by 1e-6 in parts.
    """
    rest = x.shape[-1] % _LENGTH_PARTS
    if x.shape[-1] > 8 * _LENGTH_PARTS:
        parts = torch.linalg.vector_norm(x[..., rest:].unflatten(-1, (_LENGTH_PARTS, -1)), dim=-1)
        x = torch.cat([parts, x[..., :rest]], -1) if rest else parts
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm


def count_entries(compare: Callable[..., Tensor], entries: Tensor, out: Tensor) -> Tensor:
    """Count each row's entries (l, n) that compare to zero: (l,). Overwrites `out`, (l, n) in float32.

    The result of the comparison is a float, since a CPU writes and adds up booleans ten times slower.
    """
    return compare(entries, 0.0, out=out).sum(-1, dtype=None if out.is_cpu else torch.float64)


def row_scale(entries: Tensor) -> Tensor:
    """Return the power of two (L, 1) that brings each row's largest finite magnitude (L, n) to [1, 2).

    Multiplying by a power of two rounds nothing. Raised to the fourth power, the scaled entries stay in float32's
    range, whether they were 1e-30, 1e30 or, in float64, 1e300.
    """
    return _scale(_largest(entries.nan_to_num(0.0, 0.0, 0.0)))


def scaled(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return entries (L, n) times their `row_scale`, in float32 and 0 if not finite, and that scale (L, 1)."""
    finite = entries.nan_to_num(0.0, 0.0, 0.0)
    scale = _scale(_largest(finite))
    return (finite * scale).float(), scale


def exact_norm(entries: Tensor) -> Tensor:
    """Return the Euclidean norms of tensors (L, n), summed in float64: (L,) in float32."""
    norm: Tensor = torch.linalg.vector_norm(entries, dim=-1, dtype=torch.float64)
    return norm.float()


def _largest(entries: Tensor) -> Tensor:
    """Return max |x| of each row (L, n), NaN if a row has one: (L,), in float32 or wider."""
    largest = torch.maximum(entries.amax(-1), -entries.amin(-1))
    return largest if largest.dtype == torch.float64 else largest.float()


def _scale(largest: Tensor) -> Tensor:
    integer, exponent = _EXPONENT[largest.dtype]
    power = (largest.view(integer) & exponent).view(largest.dtype)
    return 1.0 / power.clamp(min=torch.finfo(largest.dtype).tiny).unsqueeze(-1)
