"""Quantiles of the entries of gradient and momentum, at `records.quantile_probabilities`.

They are read off the bits of bfloat16, which are ordered as the values are. No device sorts anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from root_dash.kernels import key_counts as keys
from root_dash.monitor.quantities.histogram import count_indices
from root_dash.monitor.quantities.quantity import HostBatch, HostResult, LayerBatch, Quantity, Tensors
from root_dash.records import QUANTILE_COUNT, QUANTILE_REACH, TENSORS, Quantiles

_LEAST_INFINITE, _GREATEST_INFINITE = 0x7F80, -0x7F81
"""Of the `_ordered` bits of bfloat16, those from the first upwards and from the second downwards are not finite."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return the quantiles of each tensor (L, 65) and, as `"*.count"` (L,), its finite entries."""
    found: Tensors = {}
    for name, entries in batch.tensors():
        found[name], found[f"{name}.count"] = quantiles(entries)
    return found


def on_host(layers: HostBatch) -> HostResult:
    """Return the quantiles of each layer by tensor."""
    tensors = [tensor for tensor in TENSORS if tensor in layers.arrays]
    arrays, records = layers.arrays, []
    for row in range(len(layers.positions)):
        # A copy, since a view would keep the buffer of the whole frame alive.
        values = {tensor: (arrays[tensor][row].copy(), int(arrays[f"{tensor}.count"][row])) for tensor in tensors}
        records.append({tensor: Quantiles(value, count, layers.step) for tensor, (value, count) in values.items()})
    return HostResult(records=records)


def quantiles(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return quantiles of the finite entries of tensors (L, n), (L, 65), and how many are finite, (L,).

    The entries are rounded to bfloat16; between order statistics the quantiles are linear, as `numpy.quantile`'s are by
    default. A row without a finite entry is NaN.
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
        cumulative = count_indices(ordered.int() + 2**15, 2**16).cumsum(-1)
        return _quantiles(finite.sum(-1), lambda rank: torch.searchsorted(cumulative, rank, right=True) - 2**15)
    count = torch.full((len(entries),), entries.shape[1])
    ordered = _sorted(_ordered(entries.bfloat16()))
    if entries.numel() and bool(((ordered[:, -1] >= _LEAST_INFINITE) | (ordered[:, 0] <= _GREATEST_INFINITE)).any()):
        finite = torch.isfinite(entries)
        count = finite.sum(-1)
        ordered = _sorted(_ordered(_rounded(entries, finite)))
    return _quantiles(count, lambda rank: ordered.gather(-1, rank))


def _rounded(entries: Tensor, finite: Tensor) -> Tensor:
    """Return entries in bfloat16: finite entries stay finite, all others become infinite."""
    largest = min(torch.finfo(torch.bfloat16).max, torch.finfo(entries.dtype).max)  # float16 ends before
    return entries.clamp(-largest, largest).masked_fill_(~finite, torch.inf).bfloat16()


def _ordered(entries: Tensor) -> Tensor:
    """Return the bits of bfloat16 as int16 that are ordered as the values are."""
    bits = entries.contiguous().view(torch.int16)
    return bits ^ ((bits >> 15) & 0x7FFF)


def _sorted(ordered: Tensor) -> Tensor:
    # NumPy's stable sort of 16-bit integers is a radix sort: 3 ns an entry. A sort of float32 takes 20 ns and more.
    return torch.from_numpy(np.sort(ordered.numpy(), axis=-1, kind="stable"))


def _quantiles(count: Tensor, bits_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return quantiles (L, 65) of `count` (L,) entries, and the count; `bits_at` maps ranks to `_ordered` bits."""
    # Computed on the device: a constant copied to it would synchronize.
    z = torch.linspace(-QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT, dtype=torch.float64, device=count.device)
    last = (count.unsqueeze(-1) - 1).clamp(min=0)
    position = torch.special.ndtr(z) * last
    below = position.floor().long()
    low, high = (_value(bits_at(rank)) for rank in (below, torch.minimum(below + 1, last)))
    values = torch.lerp(low, high, position - below)
    return values.masked_fill((count == 0).unsqueeze(-1), torch.nan).float(), count


def _value(ordered: Tensor) -> Tensor:
    """Return the numbers, in float64, that have these `_ordered` bits."""
    ordered = ordered.int()
    return ((ordered ^ ((ordered >> 15) & 0x7FFF)) << 16).view(torch.float32).double()


QUANTILES = Quantity("quantiles", "quantiles", on_device, on_host)
