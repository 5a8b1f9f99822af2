"""Tests of the symmetric products: in plain torch, in Triton's interpreter, through its compiler, and on a GPU if any.

Run as a program with TRITON_INTERPRET=1, which must be set before Triton is imported, this file checks the kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from root_dash.kernels import symmetric
from root_dash.kernels.loader import DTYPES, available
from root_dash.kernels.symmetric import gram, plain_gram, plain_polynomial, polynomial
from tests.kernels.harness import compiled, needs_gpu, needs_triton, run_interpreted

SHAPES = [(1, 16, 16), (3, 33, 70), (2, 64, 200), (1, 130, 50), (2, 1, 7), (1, 33, 1)]
B, C = -4.775, 2.0315


def rounding(exact: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
    """Return the largest error of a sum of `terms` products in float32 that is rounded to a dtype.

    `magnitude` is the sum of the absolute terms. Each operation errs by at most 2^-24 of it, or 2^-23 if the matrix
    units truncate. The last rounding errs by half an epsilon of the result, or half the least subnormal.
    """
    info = torch.finfo(dtype)
    inner = terms * 2.0**-23 * magnitude
    return inner + info.eps / 2 * (exact.abs() + inner) + info.smallest_normal * info.eps / 2


def check_gram(X: Tensor, A: Tensor) -> None:
    wide = X.double()
    exact, magnitude = wide @ wide.mT, wide.abs() @ wide.abs().mT
    assert A.shape == exact.shape
    assert A.dtype == X.dtype
    assert ((A.double() - exact).abs() <= rounding(exact, magnitude, X.shape[2] + 1, X.dtype)).all()


def check_polynomial(A: Tensor, G: Tensor) -> None:
    wide = A.double()
    exact = B * wide + C * wide @ wide
    magnitude = abs(B) * wide.abs() + abs(C) * wide.abs() @ wide.abs()
    assert G.shape == A.shape
    assert G.dtype == A.dtype
    # Four roundings beside the sum's: of the coefficient, of each product with one, and of their sum.
    assert ((G.double() - exact).abs() <= rounding(exact, magnitude, A.shape[1] + 4, A.dtype)).all()


def random(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    values: Tensor = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / shape[-1] ** 0.5
    return values.to(device, dtype)


def laid_out(kind: int, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Tensor:
    """Return a batch that is contiguous, transposed, or sliced in every dimension."""
    count, rows, cols = shape
    if kind == 0:
        return random(count, rows, cols, dtype=dtype, device=device)
    if kind == 1:
        return random(count, cols, rows, dtype=dtype, device=device).mT
    return random(2 * count, rows + 3, 3 * cols, dtype=dtype, device=device)[::2, 3:, ::3]


def check_kernels(device: str) -> None:
    """Check every shape in every layout, dtype and kind of coefficient against float64."""
    b, c = torch.tensor(B, device=device), torch.tensor(C, dtype=torch.float64, device=device)
    for kind, dtype in enumerate(DTYPES):
        for index, shape in enumerate(SHAPES):
            X = laid_out((kind + index) % 3, shape, dtype, device)
            assert available(X)
            A = gram(X)
            check_gram(X, A)
            assert torch.equal(A, A.mT)
            assert torch.equal(A, gram(X.contiguous()))
            for coefficients in ((B, C), (b, c), (B, c)):
                G = polynomial(A, *coefficients)
                check_polynomial(A, G)
                assert torch.equal(G, G.mT)
            # Alone, a matrix of the batch gives the same bits.
            assert torch.equal(gram(X[-1:])[0], A[-1])
            assert torch.equal(polynomial(A[-1:], B, c)[0], G[-1])
    # Seventeen rows of tiles: two groups, the second not full.
    X = random(1, 1065, 3, device=device)
    check_gram(X, gram(X))
    for shape in ((0, 4, 5), (2, 0, 5), (2, 4, 0)):
        X = torch.ones(shape, device=device)
        assert torch.equal(gram(X), torch.zeros(shape[0], shape[1], shape[1], device=device))
        assert polynomial(gram(X), B, C).shape == (shape[0], shape[1], shape[1])


def check_poison(device: str) -> None:
    """Check that NaN stays in its own matrix, and that memory outside a view is never read."""
    padded = torch.full((2, 40, 90), torch.nan, device=device)
    padded[:, :33, :70] = random(2, 33, 70, device=device)
    inside = padded[:, :33, :70]
    check_gram(inside, gram(inside))
    A = gram(inside)
    inside[0, 3, 4] = torch.nan
    assert gram(inside)[0, 3].isnan().all()
    assert torch.equal(gram(inside)[1], A[1])


def check_operators(device: str) -> None:
    """Check that torch accepts the custom operators, also in a graph without breaks."""
    A, b, c = random(2, 5, 5, device=device), torch.tensor(B, device=device), torch.tensor(C, device=device)
    torch.library.opcheck(torch.ops.root_dash.gram.default, (random(2, 5, 9, device=device),))
    torch.library.opcheck(torch.ops.root_dash.polynomial.default, (A, B, C))
    torch.library.opcheck(torch.ops.root_dash.polynomial_tensor.default, (A, b, c))
    check_compiled(A)
    assert not available(A.requires_grad_())


def step(X: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    return polynomial(gram(X), b, c)


def check_compiled(X: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    b, c = torch.tensor(B, device=X.device), torch.tensor(C, device=X.device)
    for coefficients in ((B, C), (b, c)):
        assert torch.equal(compiled(X, *coefficients), step(X, *coefficients))


@pytest.mark.heavy
@needs_triton
def test_the_interpreted_kernels_are_right() -> None:
    """Both products are within rounding of float64 and symmetric to the bit, and no import loads Triton."""
    run_interpreted("tests.kernels.test_symmetric")


@pytest.mark.heavy
@needs_triton
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (86, 99), (90, 227)])
def test_the_kernel_compiles_for_every_generation(capability: int, shared: int, tmp_path: Path) -> None:
    """The kernel compiles without a GPU, uses the matrix units and fits into the shared memory of a block."""
    block, depth, stages, warps = symmetric.tiling(1024, torch.bfloat16, "ieee")
    constants = {"ADD": True, "LOAD": True, "BLOCK": block, "DEPTH": depth, "GROUP": 8, "PRECISION": "ieee"}
    constants["stride_col"] = 1
    types = {"X": "*bf16", "C": "*bf16", "b": "*fp32", "c": "*fp32"}
    aligned = ("X", "C", "stride_batch", "stride_row", "m", "n")
    kernel = symmetric.lower_tile.jit
    options = {"num_stages": stages, "num_warps": warps}
    built = compiled(kernel, capability, constants, types, tmp_path, aligned=aligned, **options)
    assert ("wgmma" if capability == 90 else "mma.sync") in built.asm["ptx"]
    assert built.metadata.shared + 1024 <= shared * 1024


@needs_gpu
def test_the_kernels_are_right_on_a_gpu() -> None:
    """The kernels keep the same bounds on a GPU, and no product waits for the device."""
    check_kernels("cuda")
    check_poison("cuda")
    check_operators("cuda")
    X = random(2, 200, 300, dtype=torch.bfloat16, device="cuda")
    b = torch.tensor(B, device="cuda")
    polynomial(gram(X), b, C)
    torch.cuda.set_sync_debug_mode("error")
    try:
        polynomial(gram(X), b, C)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_captured_graph_reads_new_coefficients() -> None:
    """If the coefficient tensors change, the replay of a CUDA graph gives the polynomial of the new coefficients."""
    A = gram(random(2, 64, 80, dtype=torch.bfloat16, device="cuda"))
    b, c = torch.ones((), device="cuda"), torch.ones((), device="cuda")
    polynomial(A, b, c)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        G = polynomial(A, b, c)
    b.fill_(B)
    c.fill_(C)
    graph.replay()
    check_polynomial(A, G)


@needs_gpu
def test_offsets_beyond_32_bits() -> None:
    """A batch of more than 2^31 entries keeps its last matrix right."""
    X = torch.zeros(129, 4096, 4096, dtype=torch.bfloat16, device="cuda")
    X[-1] = random(4096, 4096, dtype=torch.bfloat16, device="cuda")
    torch.testing.assert_close(gram(X)[-1], gram(X[-1:])[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_gpu_the_products_are_plain(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """On the CPU both products are right and equal to the plain products to the bit, with both kinds of coefficient."""
    X = random(*shape, dtype=dtype)
    assert not available(X)
    A = gram(X)
    check_gram(X, A)
    assert torch.equal(A, plain_gram(X))
    for coefficients in ((B, C), (torch.tensor(B), torch.tensor(C)), (torch.tensor(B), C)):
        check_polynomial(A, polynomial(A, *coefficients))
        assert torch.equal(polynomial(A, *coefficients), plain_polynomial(A, *coefficients))


def test_plain_products_can_be_differentiated() -> None:
    """The derivatives of both products agree with finite differences."""
    X = random(2, 3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: step(X, B, C), (X,))


def test_a_compiled_step_has_no_graph_break() -> None:
    """`torch.compile(fullgraph=True)` takes both products, with numbers and with tensors as coefficients."""
    check_compiled(random(2, 5, 9))


@pytest.mark.parametrize(
    ("A", "b", "message"),
    [
        (torch.zeros(3, 3), B, r"^A must be \(L, rows, columns\), got \(3, 3\)$"),
        (torch.zeros(1, 3, 4), B, r"^A must be \(L, m, m\), got \(1, 3, 4\)$"),
        (torch.zeros(1, 3, 3), torch.ones(1), r"^b must be a number or .* on cpu, got shape \(1,\) on cpu$"),
        (torch.zeros(1, 3, 3), torch.ones((), device="meta"), r"^b must be a number or .* on cpu, got .* on meta$"),
    ],
)
def test_what_does_not_fit_is_refused(A: Tensor, b: float | Tensor, message: str) -> None:
    """The error names a wrong shape, and a coefficient of a wrong shape or device."""
    with pytest.raises(ValueError, match=message):
        polynomial(A, b, C)
    with pytest.raises(ValueError, match=r"^X must be \(L, rows, columns\), got \(3,\)$"):
        gram(torch.zeros(3))


if __name__ == "__main__":
    assert "triton" not in sys.modules, "importing the products has imported Triton"
    check_kernels("cpu")
    check_poison("cpu")
    check_operators("cpu")
