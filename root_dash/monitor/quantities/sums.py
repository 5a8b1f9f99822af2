"""Everything that is measured on the training device: tensors in, small tensors out.

Of the statistics these are sums over the entries; the statistics themselves are made of them by the writer's thread, in
`quantities.statistics`, so that the training thread starts as few operations as possible. All functions are batched
over the L layers of one shape, allocate what they return, never write to their inputs and off the CPU never read a
value back to the host, so they neither block nor synchronize a device. Non-finite entries are counted and left out of
the rest.

What costs on a CPU is a pass over memory. There the entries are taken piece by piece, each small enough to stay in a
core's cache for all passes over it, first as if they were finite and of ordinary size; whoever sees in the sums that
they were not, takes them again with masks and scales, as every other device does from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from root_dash.optim.newton_schulz.plan import CPU_MULTIPLIES_BFLOAT16

LARGEST_COUNT = 32
"""How many of the entries of greatest magnitude a mask names by coordinate."""

_PIECE = 2**17
"""Entries that are taken at a time on a CPU: with what is computed of them, they stay in the second cache of a core."""
PIECE_WIDTH = 2**16
"""Of one row, so that float32 sums stay exact to 1e-6; pieces are added up in float64, on the host."""
_LENGTH_PARTS = 32
_ORDINARY = (1e-25, 1e30)
"""Sums of squares, or of fourth powers, between these neither over- nor underflowed in float32 where it matters."""

_EXPONENT = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}
"""Of a float: the integer of its size, and which of its bits are the exponent's."""

Sums = dict[str, Tensor]
"""What the statistics of L layers follow from, by the names that `root_dash.monitor.quantities.statistics` reads."""


def gradient_sums(gradient: Tensor) -> Sums:
    """Of gradients (L, n): `"gradient"` (L, pieces, k), and `"gradient.unit"` (L,) where they were scaled by it."""
    if gradient.is_cpu:
        sums = _by_pieces(_moments, gradient)
        if _ordinary(sums[..., 3].square()):
            return {"gradient": sums}
    scale = _scale(_largest(gradient.nan_to_num(0.0, 0.0, 0.0)))
    return {"gradient": _by_pieces(_careful_moments, gradient, scale), "gradient.unit": 1.0 / scale[:, 0].double()}


def momentum_sums(gradient: Tensor, momentum: Tensor, *, units: bool = False) -> Sums:
    """Of gradients and momenta (L, n): `"momentum"` (L, pieces, 3), and `"momentum.norm"` (L,) where scaled.

    What either was divided by is then in `"momentum.units"` (L, 2), where `units` are asked for: an angle has none, but
    sums of several processes have to be in the same ones.
    """
    if gradient.is_cpu:
        sums = _by_pieces(_angle, gradient, momentum)
        if _ordinary(sums[..., :2].square().sum(1)):
            return {"momentum": sums}
    (gradients, by), (momenta, momenta_by) = _scaled(gradient), _scaled(momentum)
    careful = {"momentum": _by_pieces(_angle, gradients, momenta), "momentum.norm": _norm(momentum)}
    if units:
        careful["momentum.units"] = 1.0 / torch.cat([by.double(), momenta_by.double()], 1)
    return careful


def outlier_sums(momentum: Tensor, base: Tensor) -> Sums:
    """Of momenta (L, n) and their bases clamp(M, -ε, ε): `"outliers"` (L, pieces, 5)."""
    if momentum.is_cpu:
        sums = _by_pieces(_outliers, momentum, base)
        if _ordinary(sums[..., :2].square().sum(1)):
            return {"outliers": sums}
    scale = _scale(_largest(momentum.nan_to_num(0.0, 0.0, 0.0)))
    return {"outliers": _by_pieces(_careful_outliers, momentum * scale, base * scale)}


def norms(entries: Tensor) -> Tensor:
    """Euclidean norms of tensors (L, n): (L,)."""
    if entries.is_cpu:
        pieces = _by_pieces(lambda piece: _length(piece.float()).unsqueeze(-1), entries)
        squares = pieces.double().square().sum((1, 2))
        if _ordinary(squares):
            return squares.sqrt().float()
    return _norm(entries)


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of L tensors of one shape, wherever each of them lies: (L,).

    Without a copy: of 8 of 128 x 512 in 71 µs on one thread, where to stack them and take `norms` takes 177.
    """
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64)).float()
    if tensors[0].is_cpu and tensors[0].dtype == torch.float32 and tensors[0].numel():
        pieces = list(tensors)
        if pieces[0].numel() > PIECE_WIDTH:
            pieces = [piece for tensor in tensors for piece in tensor.reshape(-1).split(PIECE_WIDTH)]
        squares = torch.stack(torch._foreach_norm(pieces)).double().square().view(len(tensors), -1).sum(1)
        if _ordinary(squares):
            return squares.sqrt().float()
    return norms(torch.stack(list(tensors)).reshape(len(tensors), -1))  # also of what has no dimension


def orthogonality_error(update: Tensor) -> Tensor:
    """‖X Xᵀ − I‖_F / √m of updates (L, rows, cols) on their short side: (L,).

    Rows of the short side that are exactly zero (a dead unit, a byte that never occurred) have no direction to be
    orthogonal and are left out of both the norm and m. NaN where all are.
    """
    short = _short_side(update)
    if short.dtype == torch.bfloat16 and short.is_cpu and CPU_MULTIPLIES_BFLOAT16:
        return _half_orthogonality_error(short)
    if short.is_cuda and short.dtype in (torch.bfloat16, torch.float16):
        residual = torch.bmm(short, short.mT, out_dtype=torch.float32)  # exact products at the speed of half precision
    else:
        short = short.float()
        residual = short @ short.mT
    diagonal = residual.diagonal(dim1=-2, dim2=-1)
    null = (diagonal == 0).sum(-1)
    diagonal -= 1.0
    squared = residual.mul_(residual).sum((-2, -1)) - null
    return (squared.clamp(min=0) / (short.shape[-2] - null)).sqrt()


def outlier_mask(momentum: Tensor, threshold: Tensor) -> Tensor:
    """|M| > ε for momenta (L, n) and thresholds (L,): booleans (L, n)."""
    return momentum.abs() > threshold.unsqueeze(-1)


def packed_bits(mask: Tensor) -> Tensor:
    """Masks (L, n) as bytes (L, ⌈n / 8⌉), eight entries each, the first in the highest bit, as `np.packbits`."""
    if mask.is_cpu:
        return torch.from_numpy(np.packbits(mask.numpy(), axis=-1))
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    weights = torch.ones(8, dtype=torch.uint8, device=mask.device) << torch.arange(7, -1, -1, device=mask.device).byte()
    return (padded.view(padded.shape[0], -1, 8) * weights).sum(-1, dtype=torch.uint8)


def largest_entries(momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices and signed values of the entries of greatest magnitude of momenta (L, n), both (L, ≤ 32)."""
    indices = momentum.abs().topk(min(LARGEST_COUNT, momentum.shape[-1]), dim=-1).indices
    return indices, momentum.gather(-1, indices)


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Left Rightᵀ on the short side in float64: (L, rows, cols) twice -> (L, m, m), m = min(rows, cols).

    In float64, since squaring halves the digits: singular values down to 1.5e-8 of the largest survive.
    """
    return _short_side(left).double() @ _short_side(right).double().mT


def _moments(gradient: Tensor) -> Tensor:
    """Mean, sums of squares and cubes of the deviations, root of that of fourth powers; zeros, maximum, minimum.

    Of finite gradients (l, n) of ordinary size: (l, 7).
    """
    gradient = gradient.float()
    mean = gradient.mean(-1)
    x = gradient - mean.unsqueeze(-1)
    return torch.stack([mean, *_powers(x), _ones(torch.eq, gradient, x), gradient.amax(-1), gradient.amin(-1)], -1)


def _careful_moments(gradient: Tensor, scale: Tensor) -> Tensor:
    """The `_moments` of the finite entries of any gradients (l, n), multiplied by scales (l, 1); NaNs and infinities.

    (l, 9) in float64.
    """
    finite = torch.isfinite(gradient)
    count, nan = finite.sum(-1), torch.isnan(gradient).sum(-1)
    missing = ~finite
    x = (gradient * scale).float().masked_fill_(missing, 0.0)
    ends = [x.amax(-1), x.amin(-1)]
    mean = x.sum(-1) / count.clamp(min=1)
    x = (x - mean.unsqueeze(-1)).masked_fill_(missing, 0.0)
    infinite = gradient.shape[1] - count - nan
    sums = [mean, *_powers(x), _ones(torch.eq, gradient, x), *ends, nan, infinite]
    return torch.stack([one.double() for one in sums], -1)


def _powers(x: Tensor) -> list[Tensor]:
    """Sums of squares and cubes, root of the sum of fourth powers of (l, n), which is overwritten: each (l,)."""
    squares = x * x
    return [squares.sum(-1), x.mul_(squares).sum(-1), _length(squares)]


def _angle(gradient: Tensor, momentum: Tensor) -> Tensor:
    """‖G‖, ‖M‖ and ⟨G, M⟩ of each row: (l, 3)."""
    gradient, momentum = gradient.float(), momentum.float()
    return torch.stack([_length(gradient), _length(momentum), (gradient * momentum).sum(-1)], -1)


def _outliers(momentum: Tensor, base: Tensor) -> Tensor:
    """‖M‖, ‖B‖, ‖O‖, ⟨B, O⟩ and the number of outliers O = M - B of each row: (l, 5)."""
    momentum, base = momentum.float(), base.float()
    outliers = momentum - base
    sums = [_length(momentum), _length(base), _length(outliers), (base * outliers).sum(-1)]
    return torch.stack([*sums, _ones(torch.ne, outliers, outliers)], -1)  # |M| - ε rounds to 0 for no |M| > ε


def _careful_outliers(momentum: Tensor, base: Tensor) -> Tensor:
    """The `_outliers` where a NaN, which makes one of the lengths, is no outlier."""
    sums = _outliers(momentum, base)
    sums[:, 4] = (momentum.abs() > base.abs()).sum(-1)
    return sums


def _length(x: Tensor) -> Tensor:
    """‖x‖ of each row (l, n) in float32, in one pass that writes nothing: (l,).

    In parts, since torch adds up one after another: of 65,536 squares the sum was 1e-5 off, so it is 1e-6.
    """
    rest = x.shape[-1] % _LENGTH_PARTS
    if x.shape[-1] > 8 * _LENGTH_PARTS:
        parts = torch.linalg.vector_norm(x[..., rest:].unflatten(-1, (_LENGTH_PARTS, -1)), dim=-1)
        x = torch.cat([parts, x[..., :rest]], -1) if rest else parts
    length: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return length


def _by_pieces(sums: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Tensor:
    """What `sums` makes, (l, k), of pieces of tensors (L, n): (L, pieces of a row, k).

    A tensor of one column goes with every piece of its row. Off the CPU all is one piece.
    """
    rows, columns = first.shape
    width = min(columns, PIECE_WIDTH) if first.is_cpu else columns
    height = max(1, _PIECE // width) if first.is_cpu else rows
    if height >= rows and width >= columns:
        return sums(first, *others).unsqueeze(1)

    def piece(row: int, column: int) -> Tensor:
        high = (tensor[row : row + height] for tensor in (first, *others))
        return sums(*(one if one.shape[1] == 1 else one[:, column : column + width] for one in high))

    return torch.cat(
        [torch.stack([piece(row, column) for column in range(0, columns, width)], 1) for row in range(0, rows, height)]
    )


def _ordinary(squares: Tensor) -> bool:
    """Whether sums of squares neither over- nor underflowed, nor are of what is not finite. For the CPU alone."""
    low, high = torch.aminmax(squares)
    return _ORDINARY[0] < float(low) and float(high) < _ORDINARY[1]  # NaN is neither


def _largest(entries: Tensor) -> Tensor:
    """max |x| of each row (L, n), NaN where there is one: (L,), in float32 or wider."""
    largest = torch.maximum(entries.amax(-1), -entries.amin(-1))
    return largest if largest.dtype == torch.float64 else largest.float()


def _scale(largest: Tensor) -> Tensor:
    """The power of two (L, 1) that brings what is largest in a row, (L,), to [1, 2); multiplying rounds nothing.

    So that neither 1e-30 nor 1e30 (nor, in float64, 1e300) leaves float32's range when raised to the fourth power.
    """
    integer, exponent = _EXPONENT[largest.dtype]
    power = (largest.view(integer) & exponent).view(largest.dtype)
    return 1.0 / power.clamp(min=torch.finfo(largest.dtype).tiny).unsqueeze(-1)


def _scaled(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (L, n) by their `_scale`, in float32, 0 where not finite; and that (L, 1)."""
    finite = entries.nan_to_num(0.0, 0.0, 0.0)
    scale = _scale(_largest(finite))
    return (finite * scale).float(), scale


def _ones(compare: Callable[..., Tensor], entries: Tensor, out: Tensor) -> Tensor:
    """How many of each row's entries (l, n) compare to zero, (l,), at the cost of what was in `out`, (l, n) in float32.

    As floats, since on a CPU booleans are written and added up ten times slower.
    """
    return compare(entries, 0.0, out=out).sum(-1, dtype=None if out.is_cpu else torch.float64)


def _half_orthogonality_error(short: Tensor) -> Tensor:
    """`orthogonality_error` of wide bfloat16 updates (L, m, n), in half the time that float32 products take.

    I is subtracted before the one rounding of X Xᵀ - I, which is relative to the residual: the error is off by 2e-4 of
    itself at most, where a rounded X Xᵀ would not show errors under 0.002.
    """
    ones = torch.eye(short.shape[1], dtype=short.dtype).expand(len(short), -1, -1)
    residual = torch.baddbmm(ones, short, short.mT, beta=-1)
    squared: Tensor = torch.linalg.vector_norm(residual, dim=(-2, -1), dtype=torch.float32).square()
    null = torch.zeros(len(short), dtype=torch.int64)
    if bool((residual.diagonal(dim1=-2, dim2=-1) == -1).any()):  # perhaps rounded
        null = (short == 0).all(-1).sum(-1)
    error: Tensor = ((squared - null).clamp(min=0) / (short.shape[1] - null)).sqrt()
    return error


def _short_side(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def _norm(entries: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(entries, dim=-1, dtype=torch.float64)
    return norm.float()
