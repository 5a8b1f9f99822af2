"""Counts of the entries of each row by their leading bits, or by the bits after them, for the radix selection.

In plain torch every shift, mask and comparison of the bits is a pass over memory, and the index of `scatter_add_` has
eight bytes per entry: for the exact quantile of float32 some forty times the size of the entries. The Triton kernel
reads the entries twice in all, and adds to counts in global memory. On other devices the counts are plain torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.counting import count
from root_dash.kernels.loader import available, kernel

TOP_BITS = 15
"""Leading bits of a magnitude that are counted first."""
DIGIT_BITS = 16
"""Bits of a magnitude that are counted in each further pass."""

tl: Any = None  # triton.language, once a kernel is launched


class FloatBits(NamedTuple):
    """The bits of a float dtype, read as an integer: its dtype, infinity, and all bits but the sign (a NaN)."""

    integer: torch.dtype
    infinity: int
    largest: int


FLOAT_BITS = {
    torch.float64: FloatBits(torch.int64, 0x7FF0_0000_0000_0000, 2**63 - 1),
    torch.float32: FloatBits(torch.int32, 0x7F80_0000, 2**31 - 1),
    torch.float16: FloatBits(torch.int16, 0x7C00, 2**15 - 1),
    torch.bfloat16: FloatBits(torch.int16, 0x7F80, 2**15 - 1),
}


class DigitCounter:
    """Counts of the magnitudes of entries (L, n) by their bits. Every NaN is in the last bucket."""

    def __init__(self, entries: Tensor, dtype: torch.dtype) -> None:
        self.layout = FLOAT_BITS[entries.dtype]
        self.dtype = dtype
        """Dtype of the counts: int32, or int64 if int32 may not hold them."""
        self._by_kernel = available(entries) and dtype == torch.int32
        self._raw = entries.detach().view(self.layout.integer)
        if not self._by_kernel:
            bits = self._raw & self.layout.largest
            self._bits = bits.masked_fill(bits > self.layout.infinity, self.layout.largest)

    def leading(self) -> Tensor:
        """Return the counts of the first 15 bits: (L, 2^15)."""
        shift = self.layout.largest.bit_length() - TOP_BITS
        if self._by_kernel:
            counts: Tensor = _counts(self._raw, None, self.layout.infinity, shift)
            return counts
        return _plain_counts(self._bits >> shift, None, 1 << TOP_BITS, self.dtype)

    def following(self, prefixes: Tensor, shift: int) -> Tensor:
        """Return the counts of the 16 bits before the last `shift`, of entries with either of two prefixes (L, 2).

        The result is (L, 2^17): 2^16 counts for each prefix. If the prefixes are equal, the second half is zero.
        """
        if self._by_kernel:
            counts: Tensor = _counts(self._raw, prefixes, self.layout.infinity, shift)
            return counts
        leading = self._bits >> (shift + DIGIT_BITS)
        first, second = (leading == wanted for wanted in prefixes.to(self._bits.dtype).split(1, dim=1))
        second = second & ~first
        digit = (self._bits >> shift) & ((1 << DIGIT_BITS) - 1)
        index = digit + (second.to(torch.int32) << DIGIT_BITS)
        return _plain_counts(index, first | second, 2 << DIGIT_BITS, self.dtype)


def _plain_counts(index: Tensor, counted: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
    """Return how many of the `counted` entries of each row have each index below `size`: (L, size).

    All other entries add zero at their own index: a common bucket would serialize a device's atomic additions.
    """
    ones = torch.ones((), dtype=dtype, device=index.device).expand_as(index) if counted is None else counted.to(dtype)
    empty = torch.zeros((len(index), size), dtype=dtype, device=index.device)
    return empty.scatter_add_(1, index.long(), ones)


@torch.library.custom_op("root_dash::digit_counts", mutates_args=())
def _counts(raw: Tensor, prefixes: Tensor | None, infinity: int, shift: int) -> Tensor:
    return count(
        count_digits,
        raw,
        _size(prefixes),
        copied=prefixes is None,
        prefixes=None if prefixes is None else prefixes.int().contiguous(),
        INFINITY=infinity,
        LARGEST=2 ** (8 * raw.element_size() - 1) - 1,
        SHIFT=shift,
        SIZE=_size(prefixes),
        DIGIT=DIGIT_BITS,
        AMONG=prefixes is not None,
    )


@_counts.register_fake
def _(raw: Tensor, prefixes: Tensor | None, infinity: int, shift: int) -> Tensor:
    return raw.new_empty(len(raw), _size(prefixes), dtype=torch.int32)


def _size(prefixes: Tensor | None) -> int:
    return 1 << TOP_BITS if prefixes is None else 2 << DIGIT_BITS


@kernel(do_not_specialize=("pieces", "copies"))
@no_type_check
def count_digits(
    raw,  # (L, n) integers
    counts,  # (L, copies, SIZE) int32, zeros
    stride_row,
    stride_col,
    n,
    pieces,
    copies,
    prefixes,  # (L, 2) int32, or None
    INFINITY: tl.constexpr,
    LARGEST: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    DIGIT: tl.constexpr,
    AMONG: tl.constexpr,  # count only entries with either of the two prefixes, by the bits after the prefix
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add one piece of a row to its counts."""
    program = tl.program_id(0)
    row = (program // pieces).to(tl.int64)
    first = (program % pieces).to(tl.int64) * PIECE
    width = tl.minimum(n - first, PIECE).to(tl.int32)
    raw += row * stride_row + first * stride_col
    counts += (row * copies + program % pieces % copies) * SIZE
    if AMONG:
        one = tl.load(prefixes + 2 * row)
        other = tl.load(prefixes + 2 * row + 1)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        counted = k < width
        bits = tl.load(raw + k.to(tl.int64) * stride_col, mask=counted, other=0).to(tl.int32) & LARGEST
        bits = tl.where(bits > INFINITY, LARGEST, bits)
        index = bits >> SHIFT
        if AMONG:
            leading = bits >> (SHIFT + DIGIT)
            is_one = leading == one
            counted = counted & (is_one | (leading == other))
            index = (index & ((1 << DIGIT) - 1)) + tl.where(is_one, 0, 1 << DIGIT)
        tl.atomic_add(counts + index, 1, mask=counted, sem="relaxed")
