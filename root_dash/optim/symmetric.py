"""Products known to be symmetric: X Xᵀ, A², and the product of two symmetric matrices that commute.

On a CPU in float32 and float64 only the blocks on and below the diagonal are multiplied and the rest is mirrored: at
4 blocks a side that is 10 of 16. Half precision gains nothing there, since its products copy a block first. On CUDA the
Triton kernels of `root_dash.optim.kernels` do the same by tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows from which blocks pay. One core, float32, (18, 256, 1024) X Xᵀ: 20 ms instead of 25; (6, 512, 2048): 45 for 64;
# (1, 2048, 2048): 116 in 4 blocks a side and 108 in 8, for 185. At 128 rows, and at 256 with as many columns, they gain
# nothing.
_BLOCKED_ROWS = 256
_BLOCKED_SQUARE_ROWS = 512
_MANY_BLOCKS_ROWS = 1024


def gram(X: Tensor) -> Tensor:
    """X Xᵀ of each matrix of a batch: (L, m, n) -> (L, m, m)."""
    if X.is_cuda:
        from root_dash.optim import kernels

        return kernels.gram(X)
    return symmetric_product(X, X.mT)


def square(A: Tensor) -> Tensor:
    """A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m)."""
    return gram(A) if A.is_cuda else symmetric_product(A, A)


def polynomial(A: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    """b A + c A² of each symmetric matrix of a batch: (L, m, m) -> (L, m, m), of the same dtype.

    Coefficients in tensors, of one element each, are applied in float32 or wider.
    """
    if A.is_cuda:
        from root_dash.optim import kernels

        return kernels.polynomial(A, b, c)
    if isinstance(b, Tensor) or isinstance(c, Tensor) or _block(A) < A.shape[-1]:
        return combination(A, square(A), b, c, A.dtype)
    if c == 0:  # torch 2.13's baddbmm in bfloat16 on a CPU forgets beta where alpha is 0
        return A * b
    return torch.baddbmm(A, A, A, beta=b, alpha=c)


def combination(A: Tensor, AA: Tensor, b: float | Tensor, c: float | Tensor, dtype: torch.dtype) -> Tensor:
    """b A + c AA in float32 or wider, rounded to `dtype` once. Tensors among b and c have one element, or (L, 1, 1)."""
    wide = torch.promote_types(A.dtype, torch.float32)  # first: torch is ten times slower on operands of mixed dtypes
    if isinstance(c, Tensor):
        G = AA.to(wide) * c.to(wide)
        return (torch.addcmul(G, A.to(wide), b.to(wide)) if isinstance(b, Tensor) else G.add_(A, alpha=b)).to(dtype)
    return torch.add(A.to(wide) * b, AA.to(wide), alpha=c).to(dtype)


def symmetric_product(X: Tensor, Y: Tensor) -> Tensor:
    """X Y, (L, m, n) and (L, n, m) -> (L, m, m), where that is symmetric in exact arithmetic.

    So it is for Y = Xᵀ, and for two symmetric matrices that commute. Above the blocks of the diagonal the result is
    mirrored from below, rounding and all. Half precision is multiplied in full.
    """
    block = _block(X)
    m = X.shape[-2]
    if block == m:
        return torch.bmm(X, Y)
    product = X.new_empty(X.shape[0], m, m)
    for top in range(0, m, block):
        rows = slice(top, top + block)
        strip = torch.bmm(X[:, rows], Y[:, :, : top + block])  # (L, block, top + block), less at the end
        product[:, rows, : top + block] = strip
        if top:
            product[:, :top, rows] = strip[:, :, :top].mT
    return product


def _block(X: Tensor) -> int:
    """Rows per block: by the shape and dtype of one matrix, so that no bit depends on how many share the batch."""
    m, n = X.shape[-2:]
    least = _BLOCKED_ROWS if n >= 2 * m else _BLOCKED_SQUARE_ROWS
    if X.is_cuda or m < least or X.dtype not in (torch.float32, torch.float64):
        return m
    return -(-m // (8 if m >= _MANY_BLOCKS_ROWS else 4))
