"""The two symmetric products of a Newton-Schulz step on a GPU: A = X Xᵀ and G = b A + c A².

A matrix product computes all m² entries of either, though they are symmetric. The Triton kernel here computes the
tiles on and below the diagonal and writes every entry to its mirror place too: half the multiplications, and results
that are symmetric to the bit. A² of a symmetric A is A Aᵀ, so one kernel serves both. Accumulation is in float32.

Everywhere else (no CUDA device, no Triton, float64, a gradient wanted) the same functions are plain torch. Importing
this module imports no Triton; the first product on a GPU does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from functools import cache
from typing import Any, NamedTuple, TypeAlias, no_type_check

import torch
from torch import Tensor

Coefficient: TypeAlias = "float | Tensor"  # a tensor of no dimension on the matrix' device, or a number

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
tl: Any = None  # triton.language, once a kernel is needed


def available(tensor: Tensor) -> bool:
    """Whether the products of this tensor run as Triton kernels. Waits for nothing, and asks each device once.

    They do for bfloat16, float16 and float32 on an NVIDIA GPU of compute capability 8.0 or more, if Triton can be
    imported and finds its C compiler, and unless autograd records: the kernels have no derivative. With
    TRITON_INTERPRET=1 in the environment they do on the CPU too, in Triton's interpreter, slowly.
    """
    if tensor.dtype not in DTYPES or (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    if tensor.is_cuda:
        return _runs_on(tensor.device.index)
    return tensor.device.type == "cpu" and _interpreted()


def gram(X: Tensor) -> Tensor:
    """X Xᵀ of each matrix of a batch: (L, m, n) -> (L, m, m), of the same dtype. Strides may be any.

    Raises:
        ValueError: X is not (L, m, n).
    """
    _check_batch("X", X)
    products: Tensor = _gram(X) if available(X) else plain_gram(X)
    return products


def polynomial(A: Tensor, b: Coefficient, c: Coefficient) -> Tensor:
    """b A + c A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m), of the same dtype, rounded to it once.

    b and c may be tensors of no dimension on A's device: a captured CUDA graph then reads their current values. The
    kernels take A² for A Aᵀ and b A from the lower triangle, so that what symmetry A lacks is not in the result.

    Raises:
        ValueError: A is not (L, m, m), or a coefficient is a tensor of another shape or device.
    """
    _check_batch("A", A)
    if A.shape[1] != A.shape[2]:
        raise ValueError(f"A must be (L, m, m), got {tuple(A.shape)!r}")
    for name, value in (("b", b), ("c", c)):
        if isinstance(value, Tensor) and (value.ndim or value.device != A.device):
            raise ValueError(
                f"{name} must be a number or a tensor of no dimension on {A.device}, "
                f"got shape {tuple(value.shape)!r} on {value.device}"
            )
    products: Tensor
    if not available(A):
        products = plain_polynomial(A, b, c)
    elif isinstance(b, Tensor) or isinstance(c, Tensor):
        products = _polynomial_tensor(A, _as_tensor(b, A), _as_tensor(c, A))
    else:
        products = _polynomial(A, b, c)
    return products


def plain_gram(X: Tensor) -> Tensor:
    """`gram` in plain torch."""
    return torch.bmm(X, X.mT)


def plain_polynomial(A: Tensor, b: Coefficient, c: Coefficient) -> Tensor:
    """`polynomial` in plain torch. With coefficients in tensors A² is rounded to A's dtype before they are applied."""
    if isinstance(b, Tensor) or isinstance(c, Tensor):
        wide = torch.promote_types(A.dtype, torch.float32)
        return (b * A.to(wide) + c * torch.bmm(A, A).to(wide)).to(A.dtype)
    return torch.baddbmm(A, A, A, beta=b, alpha=c)


def _check_batch(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 3:
        raise ValueError(f"{name} must be (L, rows, columns), got {tuple(tensor.shape)!r}")


def _as_tensor(coefficient: Coefficient, like: Tensor) -> Tensor:
    """Filled on the device: nothing is copied to it."""
    if isinstance(coefficient, Tensor):
        return coefficient
    return torch.full((), coefficient, dtype=torch.float32, device=like.device)


def _runs_on(index: int) -> bool:
    return _probe(index)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


# A compiler that traces `available` takes these answers for constants. `torch.compiler.assume_constant_result` does the
# same, but imports the compiler, and Triton with it.
for _answer in (_runs_on, _interpreted):
    vars(_answer)["_dynamo_marked_constant"] = True


@cache
def _probe(index: int) -> bool:
    """Whether Triton can drive this CUDA device. ROCm's devices call themselves CUDA, with less shared memory."""
    if torch.version.hip or torch.cuda.get_device_capability(index) < (8, 0) or not importlib.util.find_spec("triton"):
        return False
    try:
        triton = importlib.import_module("triton")
        triton.runtime.driver.active.get_current_target()  # compiles a C file, once a machine
    except Exception as error:
        warnings.warn(f"Triton does not run here, the products are plain torch: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


class Tiling(NamedTuple):
    """How the kernel cuts its work: tiles of `block` x `block` entries, `depth` products of each at a time."""

    block: int
    depth: int
    stages: int  # how many loads of 2 x block x depth entries are in flight
    warps: int


def tiling(rows: int, dtype: torch.dtype, precision: str) -> Tiling:
    """The tiling for matrices of so many rows: by no measurement, and whatever the batch, so that no bit depends on it.

    On the matrix units a row of a tile is 128 bytes deep, so that three loads in flight take at most 96 KiB of shared
    memory, within the 99 KiB of the smallest devices (8.6, 8.9, 12.0). Without them, in float32 of full precision, the
    registers hold whole rows of a tile, so tiles stay small.
    """
    block = 32 if rows <= 32 else 64 if rows <= 512 else 128
    if dtype == torch.float32 and precision == "ieee":
        return Tiling(min(block, 64), 16, 3, 4)
    return Tiling(block, 128 // dtype.itemsize, 3, 8 if block == 128 else 4)


@torch.library.custom_op("root_dash::gram", mutates_args=())
def _gram(X: Tensor) -> Tensor:
    return _row_products(X, None, None)


@torch.library.custom_op("root_dash::polynomial", mutates_args=())
def _polynomial(A: Tensor, b: float, c: float) -> Tensor:
    return _row_products(A, b, c)


@torch.library.custom_op("root_dash::polynomial_tensor", mutates_args=())
def _polynomial_tensor(A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _row_products(A, b, c)


@_gram.register_fake
@_polynomial.register_fake
@_polynomial_tensor.register_fake
def _square(X: Tensor, b: object = None, c: object = None) -> Tensor:
    return X.new_empty(X.shape[0], X.shape[1], X.shape[1])


def _row_products(X: Tensor, b: Coefficient | None, c: Coefficient | None) -> Tensor:
    """c X Xᵀ + b X by the kernel, or X Xᵀ without coefficients."""
    count, rows, cols = X.shape
    if count == 0 or rows == 0 or cols == 0:
        return X.new_zeros(count, rows, rows)
    if X.dtype == torch.bfloat16 and _interpreted():
        # The interpreter multiplies the bits of bfloat16 as if they were whole numbers, and cuts instead of rounding.
        return _row_products(X.float(), b, c).to(X.dtype)
    products = X.new_empty(count, rows, rows)
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    precision = "tf32" if tf32 else "ieee"
    block, depth, stages, warps = tiling(rows, X.dtype, precision)
    blocks = -(-rows // block)
    with torch.cuda.device_of(X):  # Triton launches on the current device
        _kernel()[(count * (blocks * (blocks + 1) // 2),)](
            X,
            products,
            b,
            c,
            *X.stride(),
            rows,
            cols,
            blocks,
            ADD=b is not None,
            LOAD=isinstance(b, Tensor),
            BLOCK=block,
            DEPTH=depth,
            GROUP=8,
            PRECISION=precision,
            num_stages=stages,
            num_warps=warps,
            enable_fp_fusion=True,  # the default until Triton 3.9, which warns where nothing is said
        )
    return products


@cache
def _kernel() -> Any:
    global tl
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
    return triton.jit(_lower_tile, do_not_specialize=["blocks"])


@no_type_check
def _lower_tile(
    X,  # (L, m, n)
    C,  # (L, m, m), contiguous
    b,
    c,
    stride_batch,
    stride_row,
    stride_col,
    m,
    n,
    blocks,  # m / BLOCK, rounded up
    ADD: tl.constexpr,  # C = c X Xᵀ + b X, else C = X Xᵀ
    LOAD: tl.constexpr,  # b and c are pointers
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of C on or below the diagonal, and its mirror image: every entry of C is written once.

    The triangle's rows of tiles are laid out as a rectangle without gaps: row `blocks` - 1 - p, the long one, followed
    by row p (if `blocks` is even, else p - 1), the short one that completes it. GROUP rows of the rectangle are walked
    column by column, so that tiles computed at the same time share rows of X in the L2 cache.
    """
    width = blocks | 1
    height = (blocks + 1) // 2
    program = tl.program_id(0)
    batch = (program // (height * width)).to(tl.int64)
    tile = program % (height * width)
    first = tile // (GROUP * width) * GROUP
    tile = tile % (GROUP * width)
    group = tl.minimum(height - first, GROUP)
    p = first + tile % group
    q = tile // group
    long = blocks - p
    i = tl.where(q < long, long - 1, p - (blocks & 1))
    j = tl.where(q < long, q, q - long)

    # Offsets in int64: a batch of matrices may have more than 2^31 entries, and a stride may exceed that alone.
    X += batch * stride_batch
    C += batch * m * m
    r = (i * BLOCK + tl.arange(0, BLOCK))[:, None]
    s = (j * BLOCK + tl.arange(0, BLOCK))[:, None]
    k = tl.arange(0, DEPTH)[None, :]
    left = X + r.to(tl.int64) * stride_row + k.to(tl.int64) * stride_col
    right = X + s.to(tl.int64) * stride_row + k.to(tl.int64) * stride_col
    step = tl.full((), DEPTH, tl.int64) * stride_col
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, DEPTH):
        x = tl.load(left, mask=(r < m) & (k < n - start), other=0.0)
        y = tl.load(right, mask=(s < m) & (k < n - start), other=0.0)
        products = tl.dot(x, tl.trans(y), products, input_precision=PRECISION)
        left += step
        right += step

    # In a tile on the diagonal only the entries below it count, and their mirror images: symmetric to the bit, in
    # whatever order the matrix units add.
    s = (j * BLOCK + tl.arange(0, BLOCK))[None, :]
    lower = (r < m) & (s <= r)
    if ADD:
        if LOAD:
            b = tl.load(b).to(tl.float32)
            c = tl.load(c).to(tl.float32)
        x = tl.load(X + r.to(tl.int64) * stride_row + s.to(tl.int64) * stride_col, mask=lower, other=0.0)
        products = c * products + b * x.to(tl.float32)
    entries = products.to(C.dtype.element_ty)
    tl.store(C + r.to(tl.int64) * m + s, entries, mask=lower)
    tl.store(C + s.to(tl.int64) * m + r, entries, mask=lower & (s < r))
