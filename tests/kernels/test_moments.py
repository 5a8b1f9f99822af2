"""The sums in one pass: in Triton's interpreter, through its compiler, and on a GPU where there is one.

Run as a program with TRITON_INTERPRET=1, which must be set before Triton is imported, this file checks the kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.kernels import moments
from root_dash.monitor.quantities import sums as statistics
from root_dash.monitor.quantities.statistics import gradient_columns, momentum_columns, outlier_columns
from root_dash.monitor.quantities.sums import PIECE_WIDTH
from root_dash.optim.outliers.threshold import split, threshold
from tests.kernels.harness import compiled, needs_gpu, needs_triton, run_interpreted
from tests.pretended import pretended_cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def columns(sums: dict[str, Tensor], epsilon: Tensor, entries: int) -> dict[str, np.ndarray]:
    """The statistics that follow from sums."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in sums.items()}
    arrays["threshold"] = epsilon.float().cpu().numpy()
    with np.errstate(all="ignore"):
        found = gradient_columns(arrays, entries) if "gradient" in arrays else {}
        found |= momentum_columns(arrays) if "momentum" in arrays else {}
        return found | (outlier_columns(arrays, entries) if "outliers" in arrays else {})


def apart(gradient: Tensor, momentum: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
    """The same sums, one after another in plain torch."""
    base = split(momentum, epsilon)
    return (
        statistics.gradient_sums(gradient)
        | statistics.momentum_sums(gradient, momentum)
        | statistics.outlier_sums(momentum, base)
    )


def entries(seed: int, rows: int, width: int, dtype: torch.dtype, device: str) -> Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 + 0.1
    return values.to(device, dtype)


def check(gradient: Tensor, momentum: Tensor, epsilon: Tensor) -> None:
    """The kernel's statistics are those of the sums apart, which are tested against float64; NaN where they are."""
    assert moments.takes(gradient, momentum)
    width = gradient.shape[1]
    ours = columns(moments.sums(gradient, momentum, epsilon), epsilon, width)
    theirs = columns(apart(gradient, momentum, epsilon), epsilon, width)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=3e-6, atol=1e-6, err_msg=name)


def check_kernel(device: str) -> None:
    """Rows of one entry, of one piece and of several, of every dtype and scale, with what is not finite in them."""
    for dtype in DTYPES:
        for rows, width in ((2, 1), (3, 5000), (2, PIECE_WIDTH + 4097)):
            gradient, momentum = (entries(seed, rows, width, dtype, device) for seed in (1, 2))
            epsilon = threshold(momentum, 0.9)
            check(gradient, momentum, epsilon)
    gradient, momentum = (entries(seed, 4, 12_001, torch.float32, device) for seed in (3, 4))
    gradient[0], momentum[1], gradient[2], momentum[2] = 0.0, 0.0, gradient[2] * 1e-32, momentum[2] * 1e30
    epsilon = threshold(momentum, 0.9)
    gradient[3, [0, 4095, 11_999]] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    gradient[3, 5:900] = 0.0
    check(gradient, momentum, epsilon)
    momentum[0, 17], momentum[3, 2], epsilon[2] = torch.nan, torch.inf, torch.nan
    check(gradient, momentum, epsilon)
    gradient[:] = torch.nan
    check(gradient, momentum, epsilon)
    momentum = entries(5, 2, moments.BLOCK + 1, torch.float32, device)
    momentum[0], momentum[1, -1] = momentum[0] * 1e30, torch.inf  # the only one of its block
    limits = torch.full((2,), 3.0, device=device)
    kept = moments.sums(None, momentum, limits)["outliers"][..., 1].norm(dim=1)
    torch.testing.assert_close(kept, split(momentum, limits).double().norm(dim=1), rtol=3e-6, atol=0)
    gradient, momentum = (entries(seed, 40, 30, torch.float32, device).T for seed in (5, 6))  # strides of any kind
    check(gradient, momentum, threshold(momentum, 0.9))
    assert moments.sums(gradient, None, None).keys() == {"gradient"}
    assert moments.sums(None, momentum, threshold(momentum, 0.9)).keys() == {"outliers"}
    empty = torch.zeros(2, 0, device=device)
    assert moments.sums(empty, empty, None)["gradient"].shape == (2, 1, 9)


@pytest.mark.heavy
@needs_triton
def test_the_interpreted_kernel_is_right() -> None:
    """In one pass come the same statistics as from the sums apart; no import before loads Triton."""
    run_interpreted("tests.kernels.test_moments")


@pytest.mark.heavy
@needs_triton
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles(capability: int, dtype: str, tmp_path: Path) -> None:
    """Machine code comes out, without a GPU, that loads each entry once and keeps a block in registers."""
    constants = {"GRADIENT": True, "MOMENTUM": True, "CUT": True, "PIECE": PIECE_WIDTH, "BLOCK": moments.BLOCK}
    types = {"G": f"*{dtype}", "M": f"*{dtype}", "epsilon": "*fp32", "out": "*fp64"}
    built = compiled(moments._kernel(), capability, constants, types, tmp_path, aligned=types, num_warps=moments._WARPS)
    assert "st.local" not in built.asm["ptx"]


@needs_gpu
def test_the_kernel_is_right_on_a_gpu() -> None:
    """On a GPU the same holds, and nothing waits for the device."""
    check_kernel("cuda")
    gradient, momentum = (entries(seed, 3, 5000, torch.float32, "cuda") for seed in (1, 2))
    epsilon = threshold(momentum, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moments.sums(gradient, momentum, epsilon)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_takes_what_it_can_read() -> None:
    """Nothing on a CPU; on CUDA neither float64 nor tensors of different shapes: the sums stay plain torch."""
    assert not moments.takes(torch.zeros(2, 3))
    assert not moments.takes(None, None)
    with pretended_cuda(triton=True):
        single, half, double = (
            torch.zeros(2, 3, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.bfloat16, torch.float64)
        )
        assert moments.takes(single, half)
        assert moments.takes(None, single)
        assert not moments.takes(single, double)
        assert not moments.takes(single, single[:, :2])


if __name__ == "__main__":
    assert "triton" not in sys.modules, "importing the sums has imported Triton"
    check_kernel("cpu")
