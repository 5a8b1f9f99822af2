"""Newton-Schulz orthogonalization: from a matrix toward its polar factor, the nearest semi-orthogonal matrix.

M = U S Vᵀ is scaled until every singular value lies in [0, 1], then each step X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X moves
them toward 1, so that X approaches U Vᵀ using matrix products only.

How M is scaled decides how many steps are spent on bringing small singular values up. Muon divides by the Frobenius
norm, which exceeds σ₁ eleven times for a Gaussian 512 x 512. The Schatten-8 norm (Σσ⁸)^(1/8) = ‖(X Xᵀ)²‖_F^(1/4) bounds
σ₁ from above too, exceeds it at most m^(1/8) times, and needs only the products that the first step computes anyway.

A wide matrix can take its steps in Gram space: a step multiplies X from the left by Z = a I + b R + c R², where R is
X Xᵀ, so R becomes Z R Z, and the product Q of the Z is applied to X once at the end. `newton_schulz.plan` decides
which steps are taken so, and in which precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from root_dash.checks import one_of
from root_dash.coefficients.tables import NORMALIZATIONS, SCHATTEN8_MARGIN, Coefficients, Normalization
from root_dash.optim.newton_schulz.plan import IterationForm, Stage, plan
from root_dash.optim.newton_schulz.symmetric import combination, gram, polynomial, square, symmetric_product

Triple: TypeAlias = "tuple[float | Tensor, float | Tensor, float | Tensor]"

# The bits of the exponent of a float that is read as an integer of the same width (IEEE 754).
_EXPONENT = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}

_CACHED_ENTRIES = 1 << 19  # entries of a batch that a thread's cache holds: 2 MiB in float32


@dataclass(frozen=True, slots=True)
class Orthogonalized:
    """The update, and products of the first step."""

    update: Tensor
    """(..., m, n), in the input's orientation and the dtype of the last step."""
    gram: Tensor | None
    """(..., s, s) A = X₀ X₀ᵀ on the short side s, X₀ the scaled input, in the first product's dtype; None if empty."""
    gram_squared: Tensor | None
    """(..., s, s) A², perhaps of a narrower dtype than A; None under `"frobenius"`, or if empty."""
    scale: Tensor | None
    """(..., 1, 1): X₀ = scale · B, so A = scale² · B Bᵀ, B the input, or its transpose if it is tall."""


def newton_schulz(
    matrix: Tensor,
    coefficients: Sequence[Coefficients] | Tensor,
    *,
    normalization: Normalization = "schatten8",
    eps: float = 1e-30,
    dtype: torch.dtype | None = None,
    algorithm: IterationForm = "auto",
    largest: Tensor | None = None,
) -> Orthogonalized:
    """Apply one Newton-Schulz step per coefficient triple to a matrix, or to each of a batch.

    The result does not depend on the scale of the input as long as the Frobenius norm exceeds `eps`. Below `eps` the
    result fades to zero with the input, and a zero matrix gives exactly zero. A matrix with NaN or Inf becomes NaN. No
    bit of an update depends on the other matrices of the batch, as long as torch computes on one thread.

    Coefficients in a tensor may change without a new compilation or a new capture.

    Args:
        matrix: (..., m, n).
        coefficients: (a, b, c) of every step: K triples, or a tensor (K, 3) on the matrix' device.
        normalization: the norm by which the matrix is divided first: `"schatten8"` or `"frobenius"`.
        eps: the smallest norm, in the scale of the matrix.
        dtype: the dtype of every matrix product. None: float64 for float64; bfloat16 on CUDA; on a CPU with bfloat16
            units float32 for early steps, and bfloat16 for late steps, which magnify rounding little; else float32.
        algorithm: `"standard"`, `"gram"`, or `"auto"` for the cheaper form that keeps the accuracy.
        largest: (...,) the largest magnitude in each matrix, or NaN if the matrix has one; saves two passes.

    Raises:
        TypeError: a normalization or algorithm that is no string.
        ValueError: an unknown normalization or algorithm, or coefficients that are not triples.
    """
    one_of("normalization", normalization, NORMALIZATIONS)
    triples = _triples(coefficients)
    rows, cols = matrix.shape[-2:]
    short, long = min(rows, cols), max(rows, cols)
    stages = plan(short, long, len(triples), dtype, algorithm, matrix.dtype, matrix.device.type)
    if matrix.numel() == 0:
        return Orthogonalized(matrix.to(stages[-1].dtype, copy=True), None, None, None)
    batch = matrix.reshape(-1, rows, cols)
    if rows > cols:
        batch = batch.mT
    count = _together(batch)
    known = [None] * len(batch) if largest is None else largest.reshape(-1, 1, 1).split(count)
    # Under the user's autocast the products would have another dtype than the plan and the set are made for.
    with torch.autocast(batch.device.type, enabled=False):
        parts = [
            _iterate(part, of_part, triples, stages, normalization, eps)
            for part, of_part in zip(batch.split(count), known, strict=False)
        ]
        X, A, AA, scale = parts[0] if len(parts) == 1 else (_joined(field) for field in zip(*parts, strict=True))
    assert X is not None
    assert A is not None
    assert scale is not None
    shape = (*matrix.shape[:-2], short, short)
    return Orthogonalized(
        update=(X.mT if rows > cols else X).reshape(matrix.shape),
        gram=A.reshape(shape),
        gram_squared=None if AA is None else AA.reshape(shape),
        scale=scale.reshape(*matrix.shape[:-2], 1, 1),
    )


def _together(batch: Tensor) -> int:
    """Return how many matrices of a batch to take through all steps at a time: on a CPU, as many as its caches hold.

    One core, in parts of 3 instead of all at once: (18, 256, 1024) 158 ms for 193, (24, 256, 256) 76 for 87.
    """
    if batch.is_cuda or torch.compiler.is_compiling():
        return len(batch)
    return max(1, _CACHED_ENTRIES * torch.get_num_threads() // batch[0].numel())


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _iterate(
    batch: Tensor,  # (L, m, n), m <= n
    largest: Tensor | None,  # (L, 1, 1)
    triples: Sequence[Triple],
    stages: Sequence[Stage],
    normalization: Normalization,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the update X, and A, A² and the scale of `Orthogonalized`."""
    wide = torch.promote_types(torch.promote_types(batch.dtype, stages[0].dtype), torch.float32)
    X, scale, floor = _prescale(batch.to(wide), None if largest is None else largest.to(wide), eps)
    X, scale, first = _open(X, scale, floor, stages[0], normalization)
    if stages[0].form == "factor":
        X = _by_factor(X, triples, stages, first)
    else:
        X = _by_stages(X, triples, stages, first)
    return X, first.gram, first.squared, scale


def _by_stages(X: Tensor, triples: Sequence[Triple], stages: Sequence[Stage], first: _Opening) -> Tensor:
    """Take all stages on X."""
    opening: _Opening | None = first
    for stage in stages:
        taken, triples = triples[: stage.steps], triples[stage.steps :]
        X = (_gram_steps if stage.form == "gram" else _standard_steps)(X.to(stage.dtype), taken, stage, opening)
        opening = None
    return X


_RIDGE = 3e-7
"""Share of ‖X‖² that is added to the diagonal of X Xᵀ, so that X Xᵀ has a Cholesky factor in float32.

With a third of this ridge a matrix of rank 1 with 1024 rows had no factor. The ridge turns a singular value of 1e-3
into 1.14e-3 with a weight of 0.88, and a polynomial that is linear there gives the same result: spectra from 1 to 1e-3
end at 0.106 instead of 0.099.
"""


def _by_factor(X: Tensor, triples: Sequence[Triple], stages: Sequence[Stage], first: _Opening) -> Tensor:
    """Take all stages on the Cholesky factor L of X Xᵀ = L Lᵀ.

    X = L V with orthonormal rows V, so p(X) = p(L) V = p(L) L⁻¹ X. L is square although X is wide. Late steps on L may
    have half precision, because their rounding meets V alone. A matrix that is too close to losing rank to have a
    factor takes its steps in Gram space.
    """
    norm = torch.ones_like(X[:, :1, :1]) if first.norm is None else first.norm
    ridged = first.gram.clone()
    ridged.diagonal(dim1=-2, dim2=-1).add_((_RIDGE * norm**2).squeeze(-1))
    factor, failed = torch.linalg.cholesky_ex(ridged)
    stepped = _by_stages(factor, triples, [stage._replace(form="standard") for stage in stages], first)
    onto = torch.linalg.solve_triangular(factor, stepped.to(factor.dtype), upper=False, left=False)
    update = _times(onto, X)
    if torch.compiler.is_compiling() or not failed.any():
        return update
    gram_stage = Stage("gram", len(triples), X.dtype, X.dtype)
    for index in failed.nonzero().flatten().tolist():
        one = slice(index, index + 1)
        opening = _Opening(first.gram[one], None, None)
        if first.norm is not None:
            exact = square(first.gram[one])
            opening = _Opening(first.gram[one], exact, first.norm[one])
        update[one] = _gram_steps(X[one], triples, gram_stage, opening)
    return update


class _Opening(NamedTuple):
    """The products that are computed before the first step, for use in it."""

    gram: Tensor  # (L, m, m) A = X Xᵀ
    squared: Tensor | None  # (L, m, m) A²
    norm: Tensor | None  # (L, 1, 1): the divisor that X still needs, None for 1


def _triples(coefficients: Sequence[Coefficients] | Tensor) -> list[Triple]:
    if not isinstance(coefficients, Tensor):
        return list(coefficients)
    if coefficients.ndim != 2 or coefficients.shape[1] != 3:
        raise ValueError(f"coefficients must be of shape (K, 3), got a tensor of shape {tuple(coefficients.shape)}")
    return [row.unbind() for row in coefficients.unbind()]  # type: ignore[misc]


def _prescale(X: Tensor, largest: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply each matrix of X, float32 or float64, and `eps` by a `scale`. Return X, scale and the scaled eps.

    The scale is the power of two that brings the largest entry to [1, 2). Then squares of entries neither over- nor
    underflow, and the multiplication rounds nothing.
    """
    if largest is None:  # without writing |X| to memory
        largest = torch.maximum(X.amax((-2, -1), keepdim=True), -X.amin((-2, -1), keepdim=True))
    integer, exponent = _EXPONENT[X.dtype]
    divisor = (largest.view(integer) & exponent).view(X.dtype)
    divisor = torch.where(divisor == 0, 1.0, divisor)
    return X / divisor, 1 / divisor, eps / divisor


def _open(
    X: Tensor, scale: Tensor, floor: Tensor, stage: Stage, normalization: Normalization
) -> tuple[Tensor, Tensor, _Opening]:
    """Scale X for the first product, and compute this product. Return X, its scale and the opening.

    `"schatten8"` leaves the division by 1.003 ‖X‖_S8 to the first step. Its lower bound by the power-mean inequality,
    m^(-3/8) ‖X‖_F, keeps a zero matrix from being divided by zero. Float16 lacks the range for entries of A² up to
    16 m n². So in float16 X is scaled to the Frobenius norm m^(1/4), which keeps the largest entries of A²
    between about 1/m and m, whatever the spectrum.
    """
    m = X.shape[-2]
    if normalization == "frobenius":
        if stage.dtype == torch.bfloat16:
            X = X.to(torch.bfloat16)  # as Muon does
        divisor = torch.maximum(_frobenius(X), floor.to(X.dtype))
        X = (X / divisor).to(stage.dtype)
        return X, scale / divisor, _Opening(gram(X), None, None)
    least = m**-0.375  # lower bound of the norm if X is not zero: its Frobenius norm is then at least 1
    if stage.dtype == torch.float16:
        factor = m**0.25 / torch.maximum(_frobenius(X), floor)
        X, scale, least = X * factor, scale * factor, least * m**0.25
    X = X.to(stage.dtype)
    A = gram(X)
    AA = square(A.to(stage.squares))
    wide = torch.promote_types(A.dtype, torch.float32)
    norm = SCHATTEN8_MARGIN * _frobenius(AA.to(wide)).pow(0.25).clamp(min=least)
    if stage.dtype != torch.float16:
        trace = A.diagonal(dim1=-2, dim2=-1).to(wide).sum(-1)[:, None, None]  # ‖X‖_F²
        norm = norm * (floor / trace.sqrt().clamp(min=1)).clamp(min=1)
    return X, scale, _Opening(A, AA, norm)


def _frobenius(X: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    return norm


def _correction(A: Tensor, triple: Triple, stage: Stage) -> Tensor:
    """Return b A + c A²."""
    _, b, c = triple
    if stage.squares != stage.dtype:
        return combination(A, square(A.to(stage.squares)), b, c, stage.dtype)
    return polynomial(A, b, c)


def _opened(opening: _Opening, triple: Triple, dtype: torch.dtype) -> Tensor:
    """Return Z = (a I + b A / norm² + c A² / norm⁴) / norm: Z X is the first step, with the division by the norm."""
    a, b, c = triple
    A, AA, norm = opening
    assert AA is not None
    assert norm is not None
    Z = combination(A, AA, b / norm**3, c / norm**5, norm.dtype)
    Z.diagonal(dim1=-2, dim2=-1).add_((a / norm).squeeze(-1))
    return Z.to(dtype)


def _with_identity(G: Tensor, a: float | Tensor) -> Tensor:
    """Return a I + G, in the memory of G."""
    G.diagonal(dim1=-2, dim2=-1).add_(a)
    return G


def _times(G: Tensor, X: Tensor) -> Tensor:
    """Return G X in the memory order of X: the product of a tall matrix is tall."""
    return torch.bmm(X.mT, G.mT).mT if _is_tall(X) else torch.bmm(G, X)


def _is_tall(X: Tensor) -> bool:
    return X.stride(-1) != 1 and X.stride(-2) == 1


def _standard_steps(X: Tensor, triples: Sequence[Triple], stage: Stage, opening: _Opening | None) -> Tensor:
    """Take each step on X itself."""
    for triple in triples:
        if opening is not None and opening.norm is not None and stage.dtype in (torch.float32, torch.float64):
            X = _times(_opened(opening, triple, stage.dtype), X)
        else:
            X = _step(X, triple, stage, opening)
        opening = None
    return X


def _step(X: Tensor, triple: Triple, stage: Stage, opening: _Opening | None) -> Tensor:
    """Return a X + (b A + c A²) X. In half precision a X stays out of the products.

    There an `a` on the diagonal of a matrix would be rounded, which changes whole rows of X.
    """
    a, b, c = triple
    norm = None if opening is None else opening.norm
    if opening is None or norm is None:
        G = _correction(gram(X) if opening is None else opening.gram, triple, stage)
    else:
        assert opening.squared is not None
        G = combination(opening.gram, opening.squared, b / norm**2, c / norm**4, stage.dtype)
    if stage.dtype in (torch.float32, torch.float64):
        return _times(_with_identity(G, a), X)  # no copy of X, as a sum would make
    if isinstance(a, Tensor):
        X = torch.addcmul(_times(G, X), X, a.float().reshape(1, 1, 1)).to(X.dtype)
    elif _is_tall(X):
        X = torch.baddbmm(X.mT, X.mT, G.mT, beta=a).mT
    else:
        X = torch.baddbmm(X, G, X, beta=a)
    return X if norm is None else (X.to(norm.dtype) / norm).to(stage.dtype)


def _gram_steps(X: Tensor, triples: Sequence[Triple], stage: Stage, opening: _Opening | None) -> Tensor:
    """Take all steps on R = X Xᵀ, and apply their product Q to X.

    Z multiplies Q from the left and in full. From the right, or with one half mirrored, the rounding of Z would reach
    the largest directions of X multiplied by all of Q, which is 800 in null directions: a rank-8 matrix of 256 x 1024
    then has 0.5 outside its range in float32, instead of 2e-3.
    """
    R = gram(X) if opening is None else opening.gram
    Q: Tensor | None = None
    for index, triple in enumerate(triples):
        if opening is not None and opening.norm is not None:
            Z = _opened(opening, triple, stage.dtype)
        else:
            Z = _with_identity(_correction(R, triple, stage), triple[0])
        opening = None
        Q = Z if Q is None else torch.bmm(Z, Q)
        if index + 1 < len(triples):
            R = symmetric_product(symmetric_product(Z, R), Z)
    return X if Q is None else _times(Q, X)
