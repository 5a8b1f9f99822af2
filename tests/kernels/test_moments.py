"""The sums in one pass: in Triton's interpreter, through its compiler, and on a GPU if there is one.

Run as a program with TRITON_INTERPRET=1, which must be set before Triton is imported, this file checks the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.kernels import moments
from root_dash.kernels.moments import PIECE_WIDTH
from root_dash.monitor.quantities import outliers
from root_dash.monitor.quantities.quantity import HostBatch, LayerBatch
from root_dash.monitor.quantities.registry import FUSED, QUANTITIES, with_one_pass
from root_dash.optim.outliers.threshold import split, threshold
from tests.kernels.harness import compiled, needs_gpu, needs_triton, run_interpreted
from tests.pretended import pretended_cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


FIELDS = {name: fields.names for name, fields in FUSED.items()}
SUMMED = [quantity for quantity in QUANTITIES if quantity.name in FUSED]


def columns(batch: LayerBatch) -> dict[str, np.ndarray]:
    """Return the statistics that follow from what the quantities measure of a batch of vectors."""
    found: dict[str, np.ndarray] = {}
    for quantity in SUMMED:
        tensors = quantity.on_device(batch)
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        shape = (1, batch.seen.shape[2])
        found |= quantity.on_host(HostBatch(arrays, batch.positions, shape, 1)).statistics
    return found


def batch_of(gradient: Tensor, momentum: Tensor, epsilon: Tensor) -> LayerBatch:
    """Return vectors (L, n) as a batch of layers of one row."""
    tensors = (gradient, momentum, split(momentum, epsilon))
    seen, moved, base = (tensor.unsqueeze(1) for tensor in tensors)
    return LayerBatch(tuple(range(len(gradient))), seen, None, moved, epsilon, base)


def entries(seed: int, rows: int, width: int, dtype: torch.dtype, device: str) -> Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 + 0.1
    return values.to(device, dtype)


def check(gradient: Tensor, momentum: Tensor, epsilon: Tensor) -> None:
    """The kernel's statistics are those of the sums apart, which are tested against float64; NaN in the same places."""
    assert moments.takes(gradient, momentum)
    batch = batch_of(gradient, momentum, epsilon)
    fused = with_one_pass(batch)
    assert fused.one_pass.keys() == FIELDS.keys()
    ours, theirs = columns(fused), columns(batch)
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
    kept = outliers.FIELDS.column(moments.sums(None, momentum, limits, FIELDS)["outliers"], "base").norm(dim=1)
    torch.testing.assert_close(kept, split(momentum, limits).double().norm(dim=1), rtol=3e-6, atol=0)
    gradient, momentum = (entries(seed, 40, 30, torch.float32, device).T for seed in (5, 6))  # strides of any kind
    check(gradient, momentum, threshold(momentum, 0.9))
    assert not moments.sums(gradient, None, None, FIELDS)["alignment"].any()
    assert not moments.sums(None, momentum, threshold(momentum, 0.9), FIELDS)["moments"].any()
    empty = torch.zeros(2, 0, device=device)
    assert moments.sums(empty, empty, None, FIELDS)["moments"].shape == (2, 1, len(FIELDS["moments"]))
    backwards = {name: names[::-1] for name, names in reversed(FIELDS.items())}
    plain, turned = (
        moments.sums(gradient, momentum, threshold(momentum, 0.9), fields) for fields in (FIELDS, backwards)
    )
    for name, found in plain.items():
        torch.testing.assert_close(turned[name].flip(-1), found, rtol=0, atol=0)


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
    places = moments.columns(FIELDS)
    sizes = {"PIECE": PIECE_WIDTH, "BLOCK": moments.BLOCK, "FIELDS": len(places)}
    constants = {"GRADIENT": True, "MOMENTUM": True, "CUT": True} | sizes | places
    types = {"G": f"*{dtype}", "M": f"*{dtype}", "epsilon": "*fp32", "out": "*fp64"}
    built = compiled(
        moments._piece.jit, capability, constants, types, tmp_path, aligned=types, num_warps=moments._WARPS
    )
    assert "st.local" not in built.asm["ptx"]


@needs_gpu
def test_the_kernel_is_right_on_a_gpu() -> None:
    """On a GPU the same holds, and nothing waits for the device."""
    check_kernel("cuda")
    gradient, momentum = (entries(seed, 3, 5000, torch.float32, "cuda") for seed in (1, 2))
    epsilon = threshold(momentum, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moments.sums(gradient, momentum, epsilon, FIELDS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FIELDS | {"moments": FIELDS["moments"][:-1]}, r"without \['moments.infinities'\], got \[\]"),
        (FIELDS | {"moments": (*FIELDS["moments"], "fifth")}, r"without \[\], got \['moments.fifth'\]"),
        (FIELDS | {"outliers": (*FIELDS["outliers"][:-1], "number")}, r"outliers.count.*outliers.number"),
        ({"moments": FIELDS["moments"]}, "alignment.product"),
    ],
    ids=["one less", "one more", "another name", "another quantity"],
)
def test_fields_that_the_kernel_does_not_store_are_refused(fields: dict[str, Sequence[str]], message: str) -> None:
    """A quantity whose fields were changed without the kernel fails at once, and says which fields differ."""
    gradient = torch.zeros(1, 8)
    with pytest.raises(ValueError, match=message):
        moments.sums(gradient, gradient, None, fields)


def test_the_kernel_has_a_parameter_for_each_field_of_the_quantities() -> None:
    """In whatever order: the columns are the quantities'."""
    named = [f"{quantity}.{field}" for quantity, names in FIELDS.items() for field in names]
    assert sorted(moments.stored_fields()) == sorted(named)
    assert list(moments.columns(FIELDS).values()) == list(range(len(named)))


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
