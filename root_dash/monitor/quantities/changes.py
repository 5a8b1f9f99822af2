"""The share of a weight's entries that a step changed, from the same sample of entries before and after the step.

A step that is smaller than half of the distance between two numbers of a weight's type changes nothing: bfloat16 has
eight binary digits, and swallows an update of less than 1/512 of an entry. The norm of the update does not show the
loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import (
    Arrays,
    HostBatch,
    HostResult,
    LayerBatch,
    Quantity,
    ShardPart,
    Tensors,
)

SAMPLED_ENTRIES = 4096
"""The largest number of entries that are sampled of a tensor.

The standard error of a share p is √(p (1 − p) / 4096): at most 0.8 %. The share of a tensor of up to 4096 entries is
exact.
"""

_GOLDEN = (5**0.5 - 1) / 2

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each size in bytes: the bits of a NaN equal themselves."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return nothing: a batch shows one moment of a step. The recorder adds `changed_shares` after the step."""
    return {}


def merge(parts: Sequence[ShardPart]) -> Arrays:
    """Return the shares of whole layers: each part counts with the number of its entries."""
    shares = [part.arrays["share"].astype(np.float64) for part in parts]
    return {"share": np.average(shares, axis=0, weights=[part.entries for part in parts])}


def on_host(layers: HostBatch) -> HostResult:
    """Return `changed_share`."""
    return HostResult({"changed_share": layers.arrays["share"].astype(np.float64)})


def samples(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bits of the sampled entries of L tensors of one shape and type, as integers (L, k): a copy.

    The places are those of `sample_places`, counted in the order of memory.
    """
    return torch.stack([_sampled(tensor) for tensor in tensors])


def changed_shares(before: Tensor, after: Tensor) -> Tensor:
    """Return the share of samples (L, k) that differ, (L,) in float64."""
    return (before != after).double().mean(-1)


@lru_cache(maxsize=256)
def sample_places(entries: int, device: torch.device) -> Tensor:
    """Return the places of the sampled entries of a tensor with so many entries: (k,), ascending, k <= 4096.

    There is one place in each of k equal stretches. Its place there goes by the golden ratio, so that rows and columns
    have their turn alike, however long they are. Nothing is copied to the device.
    """
    count = min(entries, SAMPLED_ENTRIES)
    starts = torch.arange(count + 1, device=device) * entries // count
    golden = torch.arange(count, device=device, dtype=torch.float64) * _GOLDEN
    return starts[:-1] + (golden.frac() * starts.diff()).long()


def _sampled(tensor: Tensor) -> Tensor:
    bits = tensor.detach().view(_BITS[tensor.element_size()])
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    # In the order of memory, unless the tensor has gaps there.
    flat = bits.as_strided((extent,), (1,)) if extent == tensor.numel() else bits.reshape(-1)
    return flat if len(flat) <= SAMPLED_ENTRIES else flat.index_select(0, sample_places(len(flat), flat.device))


CHANGES = Quantity("changes", "statistics", on_device, on_host, merge, ("changed_share",))
