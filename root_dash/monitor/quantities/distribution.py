"""How the entries of tensors are distributed: histograms and quantiles, batched over the layers of a shape.

Both work on the bits of floats, and sort nothing on a device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from root_dash.kernels import key_counts as keys
from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, QUANTILE_COUNT, QUANTILE_REACH

# The bins of `records.histogram_edges` as arithmetic on the bits of a float32: dropping all but the sign, the exponent
# and the two leading bits of the mantissa numbers the bins of four an octave, from zero outwards on either side.
_KEY_SHIFT = 23 - (HISTOGRAM_BINS_PER_OCTAVE.bit_length() - 1)
_KEYS = 2 ** (32 - _KEY_SHIFT)
_FIRST_KEY = (127 + HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE  # below it everything is in the middle bin
_OPEN_KEY = (127 + HISTOGRAM_OCTAVES[1]) * HISTOGRAM_BINS_PER_OCTAVE  # from it on everything is in the outermost one
_NONFINITE_KEY = 255 * HISTOGRAM_BINS_PER_OCTAVE

_PIECE = 2**17
"""Entries that are counted at a time on a CPU: they stay in the second cache of a core."""

_AT_ONCE = 2**24
"""Entries that a device counts at a time."""

_LEAST_INFINITE, _GREATEST_INFINITE = 0x7F80, -0x7F81
"""What is not finite among `_ordered` bfloat16: from the one on upwards, and from the other on downwards."""


def histogram_counts(entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts of tensors (L, n) in the run's fixed bins: counts (L, 515), NaNs (L,) and infinities (L,).

    The bin follows from a float32's bits by a shift, so an entry on an edge is never misplaced by rounding; wider
    types are rounded to float32 first.
    """
    if keys.takes(entries):
        counts = keys.leading_counts(entries).long()
        sides = counts.view(-1, 2, _KEYS // 2)  # zero and positive, then negative
        nonfinite = sides[..., _NONFINITE_KEY:].sum((1, 2))
        nan = sides[..., _NONFINITE_KEY + 1 :].sum((1, 2))
    else:
        bits = entries.float().contiguous().view(torch.int32)
        counts = _host_key_counts(bits) if bits.is_cpu else _counts((bits >> _KEY_SHIFT) & (_KEYS - 1), _KEYS)
        sides = counts.view(-1, 2, _KEYS // 2)
        nonfinite = sides[..., _NONFINITE_KEY:].sum((1, 2))
        clean = bits.is_cpu and not bool(nonfinite.any())
        nan = nonfinite if clean else torch.isnan(entries).sum(-1)
    middle = sides[..., :_FIRST_KEY].sum((1, 2)).unsqueeze(-1)
    positive, negative = sides[..., _FIRST_KEY:_OPEN_KEY].unbind(1)
    above, below = sides[..., _OPEN_KEY:_NONFINITE_KEY].sum(-1, keepdim=True).unbind(1)
    return torch.cat([below, negative.flip(-1), middle, positive, above], -1), nan, nonfinite - nan


def quantiles(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles of the finite entries of tensors (L, n): (L, 65) at `quantile_probabilities()`, and the counts (L,).

    Of the entries rounded to bfloat16, linear between order statistics, as `numpy.quantile` does by default. NaN where
    nothing is finite.
    """
    if keys.takes(entries):
        counts = keys.rounded_counts(entries).long()
        infinite = counts[:, 2**15 + _LEAST_INFINITE]
        cumulative = counts.cumsum(-1)
        return _quantiles(
            entries.shape[1] - infinite, lambda rank: torch.searchsorted(cumulative, rank, right=True) - 2**15
        )
    if not entries.is_cpu:
        finite = torch.isfinite(entries)
        ordered = _ordered(_rounded(entries, finite))
        cumulative = _counts(ordered.int() + 2**15, 2**16).cumsum(-1)
        return _quantiles(finite.sum(-1), lambda rank: torch.searchsorted(cumulative, rank, right=True) - 2**15)
    count = torch.full((len(entries),), entries.shape[1])
    ordered = _sorted(_ordered(entries.bfloat16()))
    if entries.numel() and bool(((ordered[:, -1] >= _LEAST_INFINITE) | (ordered[:, 0] <= _GREATEST_INFINITE)).any()):
        finite = torch.isfinite(entries)
        count = finite.sum(-1)
        ordered = _sorted(_ordered(_rounded(entries, finite)))
    return _quantiles(count, lambda rank: ordered.gather(-1, rank))


def _host_key_counts(bits: Tensor) -> Tensor:
    rows = bits.numpy().view(np.uint32)
    counts = np.zeros((len(rows), _KEYS), np.int64)
    for row, count in zip(rows, counts, strict=True):
        for start in range(0, len(row), _PIECE):
            count += np.bincount(row[start : start + _PIECE] >> _KEY_SHIFT, minlength=_KEYS)
    return torch.from_numpy(counts)


def _counts(index: Tensor, size: int) -> Tensor:
    """How many entries of each row (L, n) have each index below `size`: (L, size)."""
    counts = torch.zeros(len(index), size, dtype=torch.int64, device=index.device)
    one = torch.ones((), dtype=torch.int64, device=index.device)
    width = max(1, _AT_ONCE // max(1, len(index)))  # an index takes eight bytes
    for part in index.split(width, 1):
        counts.scatter_add_(1, part.long(), one.expand_as(part))
    return counts


def _rounded(entries: Tensor, finite: Tensor) -> Tensor:
    """Entries in bfloat16, where what is finite stays so, and what is not is infinite."""
    largest = min(torch.finfo(torch.bfloat16).max, torch.finfo(entries.dtype).max)  # float16 ends before
    return entries.clamp(-largest, largest).masked_fill_(~finite, torch.inf).bfloat16()


def _ordered(entries: Tensor) -> Tensor:
    """The bits of bfloat16 as int16 that are ordered as the values are."""
    bits = entries.contiguous().view(torch.int16)
    return bits ^ ((bits >> 15) & 0x7FFF)


def _sorted(keys: Tensor) -> Tensor:
    # NumPy's stable sort of 16-bit integers is a radix sort: 3 ns an entry, where a sort of float32 takes 20 and more.
    return torch.from_numpy(np.sort(keys.numpy(), axis=-1, kind="stable"))


def _quantiles(count: Tensor, key_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Quantiles (L, 65) of `count` (L,) entries, and that, given the `_ordered` bits at ranks (L, 65) among them."""
    # Computed on the device: a constant copied to it would synchronize.
    z = torch.linspace(-QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT, dtype=torch.float64, device=count.device)
    last = (count.unsqueeze(-1) - 1).clamp(min=0)
    position = torch.special.ndtr(z) * last
    below = position.floor().long()
    low, high = (_value(key_of(rank)) for rank in (below, torch.minimum(below + 1, last)))
    values = torch.lerp(low, high, position - below)
    return values.masked_fill((count == 0).unsqueeze(-1), torch.nan).float(), count


def _value(keys: Tensor) -> Tensor:
    """The numbers whose `_ordered` bits these are, in float64."""
    keys = keys.int()
    return ((keys ^ ((keys >> 15) & 0x7FFF)) << 16).view(torch.float32).double()
