"""The two symmetric products of a Newton-Schulz step on a GPU: A = X Xᵀ and G = b A + c A².

A matrix product computes all m² entries of A or G, although both are symmetric. The Triton kernel computes the tiles on
and below the diagonal and writes every entry to its mirror place too: half the multiplications, and results that are
symmetric to the bit. A² of a symmetric A is A Aᵀ, so one kernel serves both. Accumulation is in float32.

Without a CUDA device or Triton, in float64, or if a gradient is wanted, the same functions are plain torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.loader import available, interpreted, kernel

Coefficient: TypeAlias = "float | Tensor"
"""A number, or a tensor of no dimension on the matrix' device."""

tl: Any = None  # triton.language, once a kernel is launched


def gram(X: Tensor) -> Tensor:
    """Return X Xᵀ of each matrix of a batch: (L, m, n) -> (L, m, m), of the same dtype. The strides may be any.

    Raises:
        ValueError: X is not (L, m, n).
    """
    _check_batch("X", X)
    products: Tensor = _gram(X) if available(X) else plain_gram(X)
    return products


def polynomial(A: Tensor, b: Coefficient, c: Coefficient) -> Tensor:
    """Return b A + c A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m), rounded once to A's dtype.

    b and c may be tensors of no dimension on A's device: a captured CUDA graph then reads their current values. The
    kernel computes A² as A Aᵀ and takes b A from the lower triangle, so the result is symmetric even if A is not
    symmetric to the bit.

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
    """Return `gram(X)` in plain torch."""
    return torch.bmm(X, X.mT)


def plain_polynomial(A: Tensor, b: Coefficient, c: Coefficient) -> Tensor:
    """Return `polynomial(A, b, c)` in plain torch. If b or c is a tensor, A² is rounded to A's dtype first."""
    if isinstance(b, Tensor) or isinstance(c, Tensor):
        wide = torch.promote_types(A.dtype, torch.float32)
        return (b * A.to(wide) + c * torch.bmm(A, A).to(wide)).to(A.dtype)
    return torch.baddbmm(A, A, A, beta=b, alpha=c)


def _check_batch(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 3:
        raise ValueError(f"{name} must be (L, rows, columns), got {tuple(tensor.shape)!r}")


def _as_tensor(coefficient: Coefficient, like: Tensor) -> Tensor:
    """Return a coefficient as a tensor. The tensor is filled on the device, so nothing is copied."""
    if isinstance(coefficient, Tensor):
        return coefficient
    return torch.full((), coefficient, dtype=torch.float32, device=like.device)


class Tiling(NamedTuple):
    """The tiles of the kernel: `block` x `block` entries, with `depth` products of each entry at a time."""

    block: int
    depth: int
    stages: int  # how many loads of 2 x block x depth entries are in flight
    warps: int


def tiling(rows: int, dtype: torch.dtype, precision: str) -> Tiling:
    """Return the tiling for matrices of so many rows. It depends neither on the batch nor on a measurement.

    On the matrix units a row of a tile is 128 bytes deep, so that three loads in flight take at most 96 KiB of shared
    memory, within the 99 KiB of the smallest devices (8.6, 8.9, 12.0). Float32 of full precision does not use the
    matrix units: the registers hold whole rows of a tile, so the tiles stay small.
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
    """Return c X Xᵀ + b X by the kernel, or X Xᵀ without coefficients."""
    count, rows, cols = X.shape
    if count == 0 or rows == 0 or cols == 0:
        return X.new_zeros(count, rows, rows)
    if X.dtype == torch.bfloat16 and interpreted():
        # Triton's interpreter multiplies the bits of bfloat16 as integers, and truncates instead of rounding.
        return _row_products(X.float(), b, c).to(X.dtype)
    products = X.new_empty(count, rows, rows)
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    precision = "tf32" if tf32 else "ieee"
    block, depth, stages, warps = tiling(rows, X.dtype, precision)
    blocks = -(-rows // block)
    with torch.cuda.device_of(X):  # Triton launches on the current device
        lower_tile[(count * (blocks * (blocks + 1) // 2),)](
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
            enable_fp_fusion=True,  # the default until Triton 3.9, which warns if the option is not given
        )
    return products


@kernel(do_not_specialize=("blocks",))
@no_type_check
def lower_tile(
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
    """Compute one tile of C on or below the diagonal, and its mirror image: every entry of C is written once.

    The triangle's rows of tiles are laid out as a rectangle without gaps: the long row `blocks` - 1 - p, followed by
    the short row p (if `blocks` is even, else p - 1). GROUP rows of the rectangle are walked column by column, so that
    tiles computed at the same time share rows of X in the L2 cache.
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

    # Offsets are int64: a batch of matrices may have more than 2^31 entries, and a single stride may exceed 2^31.
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

    # In a tile on the diagonal only the entries below the diagonal are stored, and their mirror images: the result is
    # symmetric to the bit, in whatever order the matrix units add.
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
