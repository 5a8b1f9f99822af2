"""Tests of the counts of bits: in plain torch, in Triton's interpreter, through its compiler, and on a GPU if any.

Run as a program with TRITON_INTERPRET=1, which must be set before Triton is imported, this file checks the kernel.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.kernels import counting, digit_counts
from root_dash.kernels.digit_counts import DIGIT_BITS, FLOAT_BITS, TOP_BITS, DigitCounter
from root_dash.kernels.loader import available
from root_dash.optim.outliers.radix_select import radix_neighbours
from tests.kernels.harness import compiled, needs_gpu, needs_triton, run_interpreted


def given(dtype: torch.dtype, rows: int, width: int, device: str = "cpu") -> Tensor:
    """Return entries of many magnitudes, with zeros, infinities and, in the last row, a NaN."""
    entries = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) ** 3
    entries[0, : width // 5] = 0.0
    entries[-1, 0], entries[-1, width // 2], entries[0, width // 3] = torch.nan, torch.inf, -torch.inf
    return entries.to(device, dtype)


def check_counts(entries: Tensor) -> None:
    """Check that counts of both kinds equal NumPy's, with equal prefixes and with different prefixes."""
    layout = FLOAT_BITS[entries.dtype]
    raw = entries.cpu().view(layout.integer).numpy().astype(np.int64) & layout.largest
    raw[raw > layout.infinity] = layout.largest
    shift = layout.largest.bit_length() - TOP_BITS
    counter = DigitCounter(entries, torch.int32)
    expected = [np.bincount(row >> shift, minlength=1 << TOP_BITS) for row in raw]
    np.testing.assert_array_equal(counter.leading().cpu().numpy(), expected)
    if not shift:
        return
    shift -= DIGIT_BITS
    middle = np.median(raw, axis=1).astype(np.int64) >> (shift + DIGIT_BITS)
    for prefixes in (np.stack([middle, middle], 1), np.stack([middle, middle + 1], 1)):
        found = counter.following(torch.from_numpy(prefixes).to(entries.device), shift).cpu().numpy()
        for row, (one, other), counts in zip(raw, prefixes, found, strict=True):
            for part, prefix in enumerate((one,) if one == other else (one, other)):
                among = (row[row >> (shift + DIGIT_BITS) == prefix] >> shift) & (2**DIGIT_BITS - 1)
                among = np.bincount(among, minlength=1 << DIGIT_BITS)
                np.testing.assert_array_equal(counts[part << DIGIT_BITS : (part + 1) << DIGIT_BITS], among)
            if one == other:
                assert not counts[1 << DIGIT_BITS :].any()


@pytest.mark.parametrize("dtype", FLOAT_BITS)
@pytest.mark.parametrize("width", [1, 700, 70_000])
def test_plain_counts_are_those_of_numpy(width: int, dtype: torch.dtype) -> None:
    """The plain counts equal NumPy's for the leading bits and for the bits after them, in every dtype."""
    check_counts(given(dtype, 2, width))


def check_kernel(device: str) -> None:
    """Check the kernel's counts of contiguous and of strided rows, and the selection from these counts."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows, width in ((1, 1), (3, 700), (2, 40_000)):
            entries = given(dtype, rows, width, device)
            assert available(entries)
            check_counts(entries)
            check_counts(given(dtype, width, rows, device).T if width < 1000 else entries[:, ::3])
        entries = given(dtype, 3, 9001, device)[:2]
        ordered = entries.abs().sort(dim=1).values
        for rank in (0, 4500, 8100, 8999):
            assert torch.equal(radix_neighbours(entries, rank), ordered[:, rank : rank + 2])
    with_nan = given(torch.float32, 2, 50, device)
    assert radix_neighbours(with_nan, 30)[1].isnan().all()
    assert not DigitCounter(torch.zeros(2, 0, device=device), torch.int32).leading().any()
    ones = torch.ones(2, 5, device=device).view(torch.int32)
    torch.library.opcheck(torch.ops.root_dash.digit_counts.default, (ones, None, 2**30, 16))


def check_last_piece() -> None:
    """Check the last piece of the longest row that int32 can count, whose entries are one element in memory."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    columns = 2**31 - 1
    entries = torch.ones(1).expand(1, columns)

    def last_of(*bounds: int) -> range:  # of the programs; the loops of a kernel have three bounds
        return range(*bounds)[-1:] if len(bounds) == 1 else range(*bounds)

    with mock.patch.object(interpreter, "range", last_of, create=True):
        counted = DigitCounter(entries, torch.int32).leading()
    assert counted.sum() == columns % counting.PIECE


@pytest.mark.heavy
@needs_triton
def test_the_interpreted_kernel_is_right() -> None:
    """The counts equal NumPy's, the selection equals torch's sort, and no import loads Triton."""
    run_interpreted("tests.kernels.test_digit_counts")


@pytest.mark.heavy
@needs_triton
@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize(("capability", "integer"), [(80, "i32"), (90, "i16")])
def test_the_kernel_compiles(capability: int, integer: str, among: bool, tmp_path: Path) -> None:
    """The kernel compiles without a GPU, to atomic additions that do not read the old value back."""
    constants: dict[str, object] = {
        "INFINITY": 0x7F80_0000 if integer == "i32" else 0x7F80,
        "LARGEST": 2**31 - 1 if integer == "i32" else 2**15 - 1,
        "SHIFT": 0 if among or integer == "i16" else 16,
        "SIZE": 2**17 if among else 2**15,
        "DIGIT": DIGIT_BITS,
        "AMONG": among,
        "PIECE": counting.PIECE,
        "BLOCK": counting.BLOCK,
        "stride_col": 1,
    }
    if not among:
        constants["prefixes"] = None
    types = {"raw": f"*{integer}", "prefixes": "*i32", "counts": "*i32"}
    built = compiled(digit_counts.count_digits.jit, capability, constants, types, tmp_path, num_warps=8)
    assert "atom.global" in built.asm["ptx"] or "red.global" in built.asm["ptx"]


@needs_gpu
def test_the_kernel_is_right_on_a_gpu() -> None:
    """The kernel is right on a GPU too, and no count waits for the device."""
    check_kernel("cuda")
    entries = given(torch.float32, 3, 9001, "cuda")
    radix_neighbours(entries, 8100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        radix_neighbours(entries, 8100)
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    assert "triton" not in sys.modules, "importing the counts has imported Triton"
    check_kernel("cpu")
    check_last_piece()
