"""How many entries have which leading bits, on a GPU, in one pass: what histograms and quantiles are made of there.

In plain torch the key of every entry is made by several passes over memory, and `scatter_add_` reads it as eight bytes:
of gradients and momenta of 106 M parameters the histograms took 25 ms of an H100, and the quantiles 26. The Triton
kernel here reads each entry once and adds to counts in global memory: 3 and 8 ms.

Everywhere else the keys are counted by plain torch, in `monitor.quantities.distribution`. Importing this module imports
no Triton; the first count on a GPU does.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.digit_counts import copies_of
from root_dash.kernels.symmetric import available

LEADING_KEYS = 2**11
ROUNDED_KEYS = 2**16
_BLOCK = 2**12
_PIECE = 2**15  # entries of a row that a program takes
_WARPS = 8

tl: Any = None  # triton.language, once the kernel is needed


def takes(entries: Tensor) -> bool:
    """Whether the kernel can be given entries (L, n): on a device that Triton drives, and few enough for an int32."""
    return available(entries) and entries.shape[1] < 2**31


def leading_counts(entries: Tensor) -> Tensor:
    """Of entries (L, n) by the first 11 bits of their float32: sign, exponent, 2 of the mantissa: (L, 2048) in int32.

    Every NaN has all bits but the sign.
    """
    counts: Tensor = _counts(entries, False)
    return counts


def rounded_counts(entries: Tensor) -> Tensor:
    """Of entries (L, n) as bfloat16, in the order of their values: (L, 65536) in int32.

    What is finite stays finite, and what is not is infinity: in bucket 2^15 + 0x7F80.
    """
    counts: Tensor = _counts(entries, True)
    return counts


@torch.library.custom_op("root_dash::key_counts", mutates_args=())
def _counts(entries: Tensor, rounded: bool) -> Tensor:
    rows, columns = entries.shape
    size = ROUNDED_KEYS if rounded else LEADING_KEYS
    pieces = -(-columns // _PIECE)
    copies = copies_of(rows, pieces, size)
    counts = torch.zeros(rows, copies, size, dtype=torch.int32, device=entries.device)
    if rows == 0 or columns == 0:
        return counts[:, 0]
    with torch.cuda.device_of(entries):  # Triton launches on the current device
        _kernel()[(rows * pieces,)](
            entries,
            counts,
            *entries.stride(),
            columns,
            pieces,
            copies,
            ROUNDED=rounded,
            PIECE=_PIECE,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return counts[:, 0] if copies == 1 else counts.sum(1, dtype=torch.int32)


@_counts.register_fake
def _(entries: Tensor, rounded: bool) -> Tensor:
    return entries.new_empty(len(entries), ROUNDED_KEYS if rounded else LEADING_KEYS, dtype=torch.int32)


@cache
def _kernel() -> Any:
    global tl
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
    return triton.jit(_count, do_not_specialize=["pieces", "copies"])


@no_type_check
def _count(
    entries,  # (L, n)
    counts,  # (L, copies, 65536) or (L, copies, 2048) int32, zeros
    stride_row,
    stride_col,
    n,
    pieces,
    copies,
    ROUNDED: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add one piece of a row to its counts."""
    program = tl.program_id(0)
    row = (program // pieces).to(tl.int64)
    first = (program % pieces).to(tl.int64) * PIECE
    width = tl.minimum(n - first, PIECE).to(tl.int32)
    entries += row * stride_row + first * stride_col
    counts += (row * copies + program % pieces % copies) * (65536 if ROUNDED else 2048)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        counted = k < width
        x = tl.load(entries + k.to(tl.int64) * stride_col, mask=counted, other=0.0).to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        if ROUNDED:  # by its bits, half to even: arithmetic might take what is denormal for zero
            rounded = tl.minimum(magnitude, 0x7F7F0000)  # the greatest that is finite
            rounded = (rounded + 0x7FFF + ((rounded >> 16) & 1)) >> 16
            key = tl.where(bits < 0, 32767 - rounded, 32768 + rounded)
            key = tl.where(magnitude < 0x7F800000, key, 32768 + 0x7F80)
        else:
            key = (tl.where(magnitude > 0x7F800000, 0x7FFFFFFF, bits) >> 21) & 2047
        tl.atomic_add(counts + key, 1, mask=counted, sem="relaxed")
