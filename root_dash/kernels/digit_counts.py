"""How many entries of each row have which leading bits, or which next ones: what the radix selection counts.

In plain torch every shift, mask and comparison of the bits is a pass over memory, and the index of `scatter_add_` has
eight bytes an entry: for the exact quantile of float32 some forty times the size of the entries. The Triton kernel here
reads them twice in all, and adds to counts in global memory.

Everywhere else the counts are plain torch. Importing this module imports no Triton; the first count on a GPU does.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.symmetric import available

TOP_BITS = 15
DIGIT_BITS = 16
_BLOCK = 2**12
_PIECE = 2**15  # entries of a row that a program takes
_COPIES = 16
_COPIED = 2**23  # counts in all copies together

tl: Any = None  # triton.language, once the kernel is needed


class Layout(NamedTuple):
    """How a float dtype looks as an integer: its dtype, infinity, and all bits but the sign, which is a NaN."""

    integer: torch.dtype
    infinity: int
    largest: int


LAYOUTS = {
    torch.float64: Layout(torch.int64, 0x7FF0_0000_0000_0000, 2**63 - 1),
    torch.float32: Layout(torch.int32, 0x7F80_0000, 2**31 - 1),
    torch.float16: Layout(torch.int16, 0x7C00, 2**15 - 1),
    torch.bfloat16: Layout(torch.int16, 0x7F80, 2**15 - 1),
}


class Digits:
    """The magnitudes of entries (L, n) by their bits, every NaN in the last bucket."""

    def __init__(self, entries: Tensor, dtype: torch.dtype) -> None:
        self.layout = LAYOUTS[entries.dtype]
        self.dtype = dtype
        """Of the counts: int32, or int64 where int32 may not hold them."""
        self._by_kernel = available(entries) and dtype == torch.int32
        self._raw = entries.detach().view(self.layout.integer)
        if not self._by_kernel:
            bits = self._raw & self.layout.largest
            self._bits = bits.masked_fill(bits > self.layout.infinity, self.layout.largest)

    def leading(self) -> Tensor:
        """Of the first 15 bits: (L, 2^15)."""
        shift = self.layout.largest.bit_length() - TOP_BITS
        if self._by_kernel:
            counts: Tensor = _leading(self._raw, self.layout.infinity, shift)
            return counts
        return _plain_counts(self._bits >> shift, None, 1 << TOP_BITS, self.dtype)

    def following(self, prefixes: Tensor, shift: int) -> Tensor:
        """Of the 16 bits before the last `shift`, among the entries with either of two prefixes (L, 2): (L, 2^17).

        Where the two are equal, those that follow the second are not counted.
        """
        if self._by_kernel:
            counts: Tensor = _following(self._raw, prefixes, self.layout.infinity, shift)
            return counts
        leading = self._bits >> (shift + DIGIT_BITS)
        first, second = (leading == wanted for wanted in prefixes.to(self._bits.dtype).split(1, dim=1))
        second = second & ~first
        digit = (self._bits >> shift) & ((1 << DIGIT_BITS) - 1)
        index = digit + (second.to(torch.int32) << DIGIT_BITS)
        return _plain_counts(index, first | second, 2 << DIGIT_BITS, self.dtype)


def _plain_counts(index: Tensor, counted: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
    """How many of the `counted` entries of each row have each index below `size`: (L, size).

    Entries that do not count add zero at their own index: one common bin would serialize a device's atomic additions.
    """
    ones = torch.ones((), dtype=dtype, device=index.device).expand_as(index) if counted is None else counted.to(dtype)
    empty = torch.zeros((len(index), size), dtype=dtype, device=index.device)
    return empty.scatter_add_(1, index.long(), ones)


@torch.library.custom_op("root_dash::leading_counts", mutates_args=())
def _leading(raw: Tensor, infinity: int, shift: int) -> Tensor:
    return _launch(raw, None, infinity, shift, 1 << TOP_BITS)


@torch.library.custom_op("root_dash::following_counts", mutates_args=())
def _following(raw: Tensor, prefixes: Tensor, infinity: int, shift: int) -> Tensor:
    return _launch(raw, prefixes, infinity, shift, 2 << DIGIT_BITS)


@_leading.register_fake
def _(raw: Tensor, infinity: int, shift: int) -> Tensor:
    return raw.new_empty(len(raw), 1 << TOP_BITS, dtype=torch.int32)


@_following.register_fake
def _(raw: Tensor, prefixes: Tensor, infinity: int, shift: int) -> Tensor:
    return raw.new_empty(len(raw), 2 << DIGIT_BITS, dtype=torch.int32)


def _launch(raw: Tensor, prefixes: Tensor | None, infinity: int, shift: int, size: int) -> Tensor:
    rows, columns = raw.shape
    pieces = -(-columns // _PIECE)
    copies = 1 if prefixes is not None else copies_of(rows, pieces, size)
    counts = torch.zeros(rows, copies, size, dtype=torch.int32, device=raw.device)
    if rows == 0 or columns == 0:
        return counts[:, 0]
    with torch.cuda.device_of(raw):  # Triton launches on the current device
        _kernel()[(rows * pieces,)](
            raw,
            None if prefixes is None else prefixes.int().contiguous(),
            counts,
            *raw.stride(),
            columns,
            pieces,
            copies,
            INFINITY=infinity,
            LARGEST=2 ** (8 * raw.element_size() - 1) - 1,
            SHIFT=shift,
            SIZE=size,
            DIGIT=DIGIT_BITS,
            AMONG=prefixes is not None,
            PIECE=_PIECE,
            BLOCK=_BLOCK,
            num_warps=8,
            enable_fp_fusion=True,
        )
    return counts[:, 0] if copies == 1 else counts.sum(1, dtype=torch.int32)


def copies_of(rows: int, pieces: int, size: int) -> int:
    """In how many copies of its counts, `size` each, the pieces of a row are counted.

    Most entries share few buckets, and additions to one address wait for each other: with 16 copies the leading bits of
    85 M entries take 1.4 ms of an H100 instead of 2.1.
    """
    return max(1, min(_COPIES, pieces, _COPIED // max(1, rows * size)))


@cache
def _kernel() -> Any:
    global tl
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
    return triton.jit(_count, do_not_specialize=["pieces", "copies"])


@no_type_check
def _count(
    raw,  # (L, n) integers
    prefixes,  # (L, 2) int32
    counts,  # (L, copies, SIZE) int32, zeros
    stride_row,
    stride_col,
    n,
    pieces,
    copies,
    INFINITY: tl.constexpr,
    LARGEST: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZE: tl.constexpr,
    DIGIT: tl.constexpr,
    AMONG: tl.constexpr,  # only entries with one of the two prefixes, by the bits that follow
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
