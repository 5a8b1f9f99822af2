"""Newton-Schulz orthogonalization: from a matrix toward its polar factor, the nearest semi-orthogonal matrix.

M = U S Vᵀ is scaled until every singular value lies in [0, 1], then each step X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X moves
them toward 1, so that X approaches U Vᵀ using matrix products only.

How M is scaled decides how many steps are spent on bringing small singular values up. Muon divides by the Frobenius
norm, which exceeds σ₁ eleven times for a Gaussian 512 x 512. The Schatten-8 norm (Σσ⁸)^(1/8) = ‖(X Xᵀ)²‖_F^(1/4) bounds
σ₁ from above too, exceeds it at most m^(1/8) times, and needs only the products that the first step computes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from root_dash.optim.coefficients import SCHATTEN8_MARGIN, Coefficients, Normalization, check_normalization

# The bits of the exponent of a float, seen as an integer of the same width (IEEE 754).
_EXPONENT = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}


def compute_dtype(matrix: Tensor) -> torch.dtype:
    """The dtype of the matrix products by default: float64 for float64, else bfloat16 on CUDA and float32 off it."""
    if matrix.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if matrix.is_cuda else torch.float32


def orthogonalize(
    matrix: Tensor,  # (..., m, n), any real float dtype, left as it is
    coefficients: Sequence[Coefficients],
    *,
    normalization: Normalization = "schatten8",
    eps: float = 1e-30,
    dtype: torch.dtype | None = None,
) -> Tensor:  # (..., m, n), of the compute dtype
    """Apply one Newton-Schulz step per coefficient triple to a matrix, or to each of a batch.

    The result does not depend on the input's scale as long as the norm exceeds `eps`; below, it fades to zero with the
    input, and a zero matrix gives exactly zero. NaN and Inf turn their own matrix into NaN. `dtype` is that of the
    matrix products, `compute_dtype(matrix)` by default; norms before it are taken in float32 or wider.

    Raises:
        ValueError: an unknown normalization.
    """
    check_normalization(normalization)
    dtype = dtype or compute_dtype(matrix)
    if matrix.numel() == 0:
        return matrix.to(dtype, copy=True)
    rows, cols = matrix.shape[-2:]
    batch = matrix.reshape(-1, rows, cols)
    X, floor = _prescale(batch.mT if rows > cols else batch, eps)
    if normalization == "schatten8":
        X = _first_step_schatten8(X, floor, coefficients[0], dtype)
        coefficients = coefficients[1:]
    else:
        X = X.to(dtype)
        X = X / torch.maximum(_frobenius(X), floor.to(dtype))
    for a, b, c in coefficients:
        A = X @ X.mT
        G = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, G, X, beta=a)
    return (X.mT if rows > cols else X).reshape(matrix.shape)


def _prescale(X: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """X in float32 or wider, each matrix divided by the power of two below its largest entry, and `eps` divided alike.

    Squares of what remains neither over- nor underflow, and dividing by a power of two rounds nothing.
    """
    X = X if X.dtype == torch.float64 else X.float()
    integer, exponent = _EXPONENT[X.dtype]
    scale = (X.abs().amax((-2, -1), keepdim=True).view(integer) & exponent).view(X.dtype)
    scale = torch.where(scale == 0, 1.0, scale)
    return X / scale, eps / scale


def _frobenius(X: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    return norm


def _first_step_schatten8(X: Tensor, floor: Tensor, step: Coefficients, dtype: torch.dtype) -> Tensor:
    """The first step from X / (1.01 ‖X‖_S8), whose norm comes out of the products that the step needs.

    X is first brought to the Frobenius norm m^(1/4): the entries of A² then lie between those of 1/m and m whatever the
    spectrum, which half precision holds. Its Schatten-8 norm is at least m^(-1/8), by the power-mean inequality; as a
    floor, that bound keeps a zero matrix from being divided by zero.
    """
    a, b, c = step
    m = X.shape[-2]
    X = (X * (m**0.25 / torch.maximum(_frobenius(X), floor))).to(dtype)
    A = X @ X.mT
    AA = A @ A
    norm = _frobenius(AA if dtype == torch.float64 else AA.float()).pow(0.25).clamp(min=m**-0.125)
    s = SCHATTEN8_MARGIN * norm  # (L, 1, 1)
    G = A * (b / s**2) + AA * (c / s**4)
    X = (X / s).to(dtype)
    return torch.baddbmm(X, G.to(dtype), X, beta=a)
