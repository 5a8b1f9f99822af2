"""Selection of two neighbouring order statistics of the magnitudes in a tensor, by the bits of its floats.

Without the sign bit, floats have the order of the integers with the same bits: finite numbers, then infinity, then NaN.
So all selections here work on integers, are exact, and treat every dtype alike:

- `radix_neighbours` counts the leading 15 bits of all entries, finds the buckets of the wanted ranks, and goes on with
  the entries of these buckets, 16 bits at a time: one pass for bfloat16 and float16, two for float32, four for float64.
  No shape depends on the data, and the host never waits for the device.
- `topk_neighbours`, for short rows, selects the few largest entries.
- `partition_neighbours`, for CPUs, takes bounds from a sample and partitions the few entries between the bounds.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.kernels.digit_counts import DIGIT_BITS, FLOAT_BITS, TOP_BITS, DigitCounter

Bits: TypeAlias = NDArray[Any]
"""Floats as signed integers of the same bits. Without the sign bit of the float, no integer is negative."""

_FEW = 2**12  # the most entries of a row for which `topk_neighbours` is as fast as bounds and a partition
_SAMPLE = 2**12  # entries of a row that the bounds are taken from
_MARGIN = 4.0  # standard deviations from the sampled rank to each bound
_BLOCK = 2**18  # entries that stay in the processor's cache between two passes


def radix_neighbours(entries: Tensor, rank: int, *, coarse: bool = False) -> Tensor:
    """Return the magnitudes at `rank` and `rank` + 1 in each row of `entries` (L, n), ascending from 0: (L, 2).

    At the last rank both are the largest magnitude. NaN anywhere in a row makes its pair NaN. If `coarse`, only the
    leading bits of `bucket_center` are found, and the other bits are zero.
    """
    count = entries.shape[1]
    layout = FLOAT_BITS[entries.dtype]
    digits = DigitCounter(entries, torch.int32 if count < 2**31 else torch.int64)
    shift = layout.largest.bit_length() - TOP_BITS
    ranks = (rank + torch.arange(2, device=entries.device)).clamp(max=count - 1).expand(len(entries), 2)
    counts = digits.leading()
    has_nan = counts[:, -1:] > 0
    prefix, ranks = _narrow(torch.zeros_like(ranks), ranks, counts.unsqueeze(1))
    last = _unresolved(entries.dtype) if coarse else 0
    while shift > last:
        shift -= DIGIT_BITS
        counts = digits.following(prefix, shift)
        prefix, ranks = _narrow(prefix, ranks, counts.view(-1, 2, 1 << DIGIT_BITS))
    return (prefix << shift).masked_fill(has_nan, layout.largest).to(layout.integer).view(entries.dtype)


def _narrow(prefix: Tensor, ranks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Append to each of two prefixes (L, 2) the digit of its rank, and count the ranks (L, 2) from the digit's bucket.

    `counts` is (L, 1 or 2, digits). The second row has the counts of the second prefix, if it differs from the first.
    """
    same = (prefix[:, :1] == prefix[:, 1:]).unsqueeze(-1)
    first, second = counts[:, :1], counts[:, -1:]
    counts = torch.cat([first, torch.where(same, first, second)], 1)
    cumulative = counts.cumsum(-1, dtype=counts.dtype)
    digit = torch.searchsorted(cumulative, ranks.unsqueeze(-1).to(counts.dtype).contiguous(), right=True)
    before = cumulative.gather(-1, digit) - counts.gather(-1, digit)
    return (prefix << DIGIT_BITS) | digit.squeeze(-1), ranks - before.squeeze(-1)


def partition_neighbours(entries: Tensor, rank: int) -> Tensor:
    """Return the same (L, 2) as `radix_neighbours`, on the CPU."""
    layout = FLOAT_BITS[entries.dtype]
    if entries.shape[1] <= _FEW:
        return topk_neighbours(entries, rank)
    rows: Bits = entries.detach().view(layout.integer).numpy()
    sign_off = rows.dtype.type(layout.largest)
    found = np.stack([_bracket(row, rank, sign_off) for row in rows])
    # The third number of a row is its largest entry.
    pairs = np.where(found[:, 2:] > layout.infinity, sign_off, found[:, :2])
    return torch.from_numpy(pairs).view(entries.dtype)


def topk_neighbours(entries: Tensor, rank: int) -> Tensor:
    """Return the same (L, 2) as `radix_neighbours`, for short rows: the two smallest of the few largest entries.

    With two threads of a CPU, (36, 4096) takes 0.43 ms, and NumPy's partition 0.67.
    """
    layout = FLOAT_BITS[entries.dtype]
    magnitudes = entries.detach().view(layout.integer) & layout.largest
    above = magnitudes.topk(magnitudes.shape[1] - rank, dim=1, sorted=False).values
    pair = above.topk(min(2, above.shape[1]), dim=1, largest=False).values.expand(-1, 2)
    pair = pair.masked_fill(above.amax(1, keepdim=True) > layout.infinity, layout.largest)
    return pair.view(entries.dtype)


def _partition(magnitudes: Bits, rank: int) -> Bits:
    """Return the entries at `rank`, at `rank` + 1 (or `rank`, if it is the last) and the largest: (..., n) to (..., 3).

    The magnitudes are reordered in place.
    """
    magnitudes.partition(rank, axis=-1)
    lower = magnitudes[..., rank]
    above = magnitudes[..., rank + 1 :]
    upper, largest = (above.min(-1), above.max(-1)) if above.shape[-1] else (lower, lower)
    return np.stack([lower, upper, largest], -1)


def _bracket(row: Bits, rank: int, sign_off: Any) -> Bits:
    """Return the three entries of `_partition` for a long row (n,) with sign bits.

    A sample gives two values between which the rank probably lies. Entries below the lower bound are only counted.
    Entries above the upper bound are removed in a second pass, so that about a fiftieth of a row is partitioned. The
    counts show whether a bound is on the wrong side. Such a bound removes nothing, which only costs time.
    """
    n = len(row)
    sample = row[:: max(n // min(n // 8, _SAMPLE), 1) | 1] & sign_off  # an odd stride visits all columns of 2^k
    share = rank / n
    center = share * len(sample)
    margin = _MARGIN * (math.sqrt(center * (1 - share)) + 1)
    first = max(int(center - margin), 0)
    last = min(int(center + margin) + 1, len(sample) - 1)
    sample.partition((first, last))
    lower, upper = sample[first], sample[last]

    blocks = (row[start : start + _BLOCK] & sign_off for start in range(0, n, _BLOCK))
    kept = np.concatenate([block[np.flatnonzero(block >= lower)] for block in blocks])
    dropped = n - len(kept)
    if dropped > rank:
        return _partition(row & sign_off, rank)
    largest = kept.max()
    fewer = kept[np.flatnonzero(kept <= upper)]
    if len(fewer) > rank - dropped + 1:
        kept = fewer
    found = _partition(kept, rank - dropped)
    found[2] = largest
    return found


def bucket_center(entries: Tensor) -> Tensor:
    """Return, for each entry, the middle of the range of values with the same leading bits.

    The leading bits, with the sign, are 16 for float32, so the relative distance to any normal value in the range is at
    most 2^-8. They are 32 for float64, and all bits for 16-bit dtypes. Zero, infinity and NaN stay.
    """
    layout = FLOAT_BITS[entries.dtype]
    shift = _unresolved(entries.dtype)
    if not shift:
        return entries
    bits = entries.view(layout.integer)
    bucket = bits >> shift
    center = (bucket << shift) | (1 << (shift - 1))
    return torch.where((bits < layout.infinity) & (bucket > 0), center, bits).view(entries.dtype)


def _unresolved(dtype: torch.dtype) -> int:
    """Return the number of trailing bits that differ within a bucket."""
    return {8: 32, 4: 16, 2: 0}[dtype.itemsize]
