"""The launch of the counting kernels: each program adds a piece of a row to the counts of the row."""

from __future__ import annotations

import torch
from torch import Tensor

from root_dash.kernels.loader import Kernel

PIECE = 2**15
"""Entries of a row per program."""
BLOCK = 2**12
"""Entries that a program reads at once."""
WARPS = 8

_COPIES = 16
_COPIED = 2**23  # the most counts in all copies together


def count(kernel: Kernel, entries: Tensor, size: int, *, copied: bool = True, **arguments: object) -> Tensor:
    """Count the entries (L, n) of each row in `size` buckets: (L, size), int32.

    The kernel takes the entries, the counts (L, copies, size), the strides of the entries, n, the pieces of a row, the
    copies, and the `arguments` by name. If `copied` is False, the counts have one copy.
    """
    rows, columns = entries.shape
    pieces = -(-columns // PIECE)
    copies = _copies(rows, pieces, size) if copied else 1
    counts = torch.zeros(rows, copies, size, dtype=torch.int32, device=entries.device)
    if rows and columns:
        with torch.cuda.device_of(entries):  # Triton launches on the current device
            kernel[(rows * pieces,)](
                entries,
                counts,
                *entries.stride(),
                columns,
                pieces,
                copies,
                **arguments,
                PIECE=PIECE,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=True,
            )
    return counts[:, 0] if copies == 1 else counts.sum(1, dtype=torch.int32)


def _copies(rows: int, pieces: int, size: int) -> int:
    """Return the number of copies of a row's counts, `size` each, to which the pieces of the row are added.

    Most entries share few buckets, and additions to the same address wait for each other: with 16 copies the leading
    bits of 85 M entries take 1.4 ms of an H100 instead of 2.1.
    """
    return max(1, min(_COPIES, pieces, _COPIED // max(1, rows * size)))
