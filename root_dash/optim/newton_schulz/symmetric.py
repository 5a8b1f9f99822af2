"""Products that are symmetric: X Xᵀ, A², and the product of two symmetric matrices that commute.

On a CPU in float32 and float64 only the blocks on and below the diagonal are multiplied, and the rest is mirrored: with
4 blocks a side, 10 of 16. Half precision gains nothing there, because its products copy a block first. On CUDA the
Triton kernels of `root_dash.kernels.symmetric` do the same with tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The least rows for which blocks pay. On a core in float32 they take 0.78 of the time of the whole product for
# (8, 256, 256) squared, 0.74 for X Xᵀ at (2, 256, 1024), 0.71 for (2, 512, 512) squared, 0.69 at (1, 512, 2048). At 128
# rows they gain nothing.
_BLOCKED_ROWS = 256
_MANY_BLOCKS_ROWS = 1024


def gram(X: Tensor) -> Tensor:
    """Return X Xᵀ of each matrix of a batch: (L, m, n) -> (L, m, m)."""
    if X.is_cuda:
        from root_dash.kernels import symmetric

        return symmetric.gram(X)
    return symmetric_product(X, X.mT)


def square(A: Tensor) -> Tensor:
    """Return A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m)."""
    return gram(A) if A.is_cuda else symmetric_product(A, A)


def polynomial(A: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    """Return b A + c A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m), of the same dtype.

    Coefficients in tensors, of one element each, are applied in float32 or wider.
    """
    if A.is_cuda:
        from root_dash.kernels import symmetric

        return symmetric.polynomial(A, b, c)
    if isinstance(b, Tensor) or isinstance(c, Tensor) or _block(A) < A.shape[-1]:
        return combination(A, square(A), b, c, A.dtype)
    if c == 0:  # torch 2.13's baddbmm in bfloat16 on a CPU ignores beta if alpha is 0
        return A * b
    return torch.baddbmm(A, A, A, beta=b, alpha=c)


def combination(A: Tensor, AA: Tensor, b: float | Tensor, c: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Return b A + c AA, computed in float32 or wider and rounded to `dtype` once.

    If b or c is a tensor, it has one element or the shape (L, 1, 1).
    """
    wide = torch.promote_types(A.dtype, torch.float32)  # first: torch is ten times slower on operands of mixed dtypes
    if isinstance(c, Tensor):
        G = AA.to(wide) * c.to(wide)
        return (torch.addcmul(G, A.to(wide), b.to(wide)) if isinstance(b, Tensor) else G.add_(A, alpha=b)).to(dtype)
    return torch.add(A.to(wide) * b, AA.to(wide), alpha=c).to(dtype)


def symmetric_product(X: Tensor, Y: Tensor) -> Tensor:
    """Return X Y, (L, m, n) and (L, n, m) -> (L, m, m), a product that is symmetric in exact arithmetic.

    The product is symmetric for Y = Xᵀ, and for two symmetric matrices that commute. Above the blocks of the diagonal
    the result is a mirror image of the rounded result below. Half precision is multiplied in full.
    """
    block = _block(X)
    m = X.shape[-2]
    if block == m:
        return torch.bmm(X, Y)
    product = X.new_empty(X.shape[0], m, m)
    for top in range(0, m, block):
        rows = slice(top, top + block)
        # Written in place, without a copy. The last block may be smaller.
        torch.bmm(X[:, rows], Y[:, :, : top + block], out=product[:, rows, : top + block])
        if top:
            product[:, :top, rows] = product[:, rows, :top].mT
    return product


def _block(X: Tensor) -> int:
    """Return the rows per block, from the shape and dtype of one matrix: no bit depends on the size of the batch."""
    m = X.shape[-2]
    whole = X.is_cuda or m < _BLOCKED_ROWS or X.dtype not in (torch.float32, torch.float64)
    if whole or torch.compiler.is_compiling():
        return m
    return -(-m // (8 if m >= _MANY_BLOCKS_ROWS else 4))
