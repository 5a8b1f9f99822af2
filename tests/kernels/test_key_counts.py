"""Tests of the counts of keys: in Triton's interpreter, through its compiler, and on a GPU if any.

Run as a program with TRITON_INTERPRET=1, which must be set before Triton is imported, this file checks the kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.kernels import counting, key_counts
from root_dash.monitor.quantities.histogram import histogram_counts
from root_dash.monitor.quantities.quantiles import quantiles
from tests.kernels.harness import compiled, needs_gpu, needs_triton, run_interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def given(dtype: torch.dtype, rows: int, width: int, device: str) -> Tensor:
    """Return entries of many magnitudes, with zeros of both signs; the last row has NaN, Inf, huge and tiny numbers."""
    entries = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) ** 5
    entries[0, : width // 5] = 0.0
    entries[0, width // 5 : width // 3] = -0.0
    if width > 9:
        # Triton's interpreter takes what is denormal in bfloat16 for zero; a GPU does not.
        tiny = [0.0] * 3 if (dtype, device) == (torch.bfloat16, "cpu") else [1e-40, 1e-45, -1e-40]
        entries[-1, :9] = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 3.4e38, -3.4e38, *tiny])
    return entries.to(device, dtype)


def check(entries: Tensor) -> None:
    """Check the counts against NumPy, and histograms and quantiles against those without the kernel."""
    assert key_counts.takes(entries)
    wide = entries.cpu().float()
    bits = np.where(wide.isnan(), 2**31 - 1, wide.numpy().view(np.int32)).astype(np.int64)
    expected = [np.bincount((row >> 21) & 2047, minlength=2048) for row in bits]
    np.testing.assert_array_equal(key_counts.leading_counts(entries).cpu().numpy(), expected)

    largest = min(torch.finfo(torch.bfloat16).max, torch.finfo(entries.dtype).max)
    rounded = wide.clamp(-largest, largest).masked_fill_(~wide.isfinite(), torch.inf).bfloat16().view(torch.int16)
    ordered = (rounded ^ ((rounded >> 15) & 0x7FFF)).numpy().astype(np.int64) + 2**15
    expected = [np.bincount(row, minlength=2**16) for row in ordered]
    np.testing.assert_array_equal(key_counts.rounded_counts(entries).cpu().numpy(), expected)

    plain = entries.cpu().double()  # which the kernel does not take
    assert not key_counts.takes(plain)
    for ours, theirs in zip(histogram_counts(entries), histogram_counts(plain), strict=True):
        assert torch.equal(ours.cpu(), theirs)
    for ours, theirs in zip(quantiles(entries), quantiles(plain), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0.0, equal_nan=True)


def check_kernel(device: str) -> None:
    """Check rows of one entry, of one piece and of several pieces, contiguous and strided, in every dtype."""
    for dtype in DTYPES:
        for rows, width in ((1, 1), (3, 700), (2, 2**15 + 4097)):
            entries = given(dtype, rows, width, device)
            check(entries)
            check(entries.T.contiguous().T if width < 1000 else entries[:, ::3])
    for counts in (key_counts.leading_counts, key_counts.rounded_counts):
        assert not counts(torch.zeros(2, 0, device=device)).any()
    ones = torch.ones(2, 5, device=device)
    torch.library.opcheck(torch.ops.root_dash.key_counts.default, (ones, True))


@pytest.mark.heavy
@needs_triton
def test_the_interpreted_kernel_is_right() -> None:
    """The counts equal NumPy's, histograms and quantiles equal those without the kernel, and no import loads Triton."""
    run_interpreted("tests.kernels.test_key_counts")


@pytest.mark.heavy
@needs_triton
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("capability", "dtype"), [(80, "fp32"), (90, "bf16")])
def test_the_kernel_compiles(capability: int, dtype: str, rounded: bool, tmp_path: Path) -> None:
    """The kernel compiles without a GPU, to atomic additions that do not read the old value back."""
    constants = {"ROUNDED": rounded, "PIECE": counting.PIECE, "BLOCK": counting.BLOCK, "stride_col": 1}
    types = {"entries": f"*{dtype}", "counts": "*i32"}
    built = compiled(key_counts.count_keys.jit, capability, constants, types, tmp_path, num_warps=counting.WARPS)
    assert "atom.global" in built.asm["ptx"] or "red.global" in built.asm["ptx"]
    assert "st.local" not in built.asm["ptx"]


@needs_gpu
def test_the_kernel_is_right_on_a_gpu() -> None:
    """The kernel is right on a GPU too, and no count waits for the device."""
    check_kernel("cuda")
    entries = given(torch.float32, 3, 9001, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        histogram_counts(entries)
        quantiles(entries)
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    assert "triton" not in sys.modules, "importing the counts has imported Triton"
    check_kernel("cpu")
