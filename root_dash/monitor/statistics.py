"""Everything that is measured on the training device: tensors in, small tensors out.

Of the statistics these are sums over the entries; the statistics themselves are made of them by the writer's thread, in
`root_dash.monitor.columns`, so that the training thread starts as few operations as possible. All functions are batched
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

from root_dash.optim.plan import CPU_MULTIPLIES_BFLOAT16
from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, QUANTILE_COUNT, QUANTILE_REACH

LARGEST_COUNT = 32
"""How many of the entries of greatest magnitude a mask names by coordinate."""

# The bins of `records.histogram_edges` as arithmetic on the bits of a float32: dropping all but the sign, the exponent
# and the two leading bits of the mantissa numbers the bins of four an octave, from zero outwards on either side.
_KEY_SHIFT = 23 - (HISTOGRAM_BINS_PER_OCTAVE.bit_length() - 1)
_KEYS = 2 ** (32 - _KEY_SHIFT)
_FIRST_KEY = (127 + HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE  # below it everything is in the middle bin
_OPEN_KEY = (127 + HISTOGRAM_OCTAVES[1]) * HISTOGRAM_BINS_PER_OCTAVE  # from it on everything is in the outermost one
_NONFINITE_KEY = 255 * HISTOGRAM_BINS_PER_OCTAVE
HISTOGRAM_BINS = 2 * (_OPEN_KEY - _FIRST_KEY + 1) + 1

_PIECE = 2**17
"""Entries that are taken at a time on a CPU: with what is computed of them, they stay in the second cache of a core."""
PIECE_WIDTH = 2**16
"""Of one row, so that float32 sums stay exact to 1e-6; pieces are added up in float64, on the host."""
_LENGTH_PARTS = 32
_ORDINARY = (1e-25, 1e30)
"""Sums of squares, or of fourth powers, between these neither over- nor underflowed in float32 where it matters."""

_AT_ONCE = 2**24
"""Entries that a device counts at a time."""

_EXPONENT = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}
"""Of a float: the integer of its size, and which of its bits are the exponent's."""

_LEAST_INFINITE, _GREATEST_INFINITE = 0x7F80, -0x7F81
"""What is not finite among `_ordered` bfloat16: from the one on upwards, and from the other on downwards."""

Sums = dict[str, Tensor]
"""What the statistics of L layers follow from, by the names that `root_dash.monitor.columns` reads."""


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
    scale = _scale(_largest(momentum))
    return {"outliers": _by_pieces(_outliers, momentum * scale, base * scale)}


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

    On a CPU without a copy: of 8 of 128 x 512 in 71 µs on one thread, where to stack them and take `norms` takes 177.
    """
    if tensors[0].is_cpu and tensors[0].dtype == torch.float32 and tensors[0].numel():
        pieces = list(tensors)
        if pieces[0].numel() > PIECE_WIDTH:
            pieces = [piece for tensor in tensors for piece in tensor.reshape(-1).split(PIECE_WIDTH)]
        squares = torch.stack(torch._foreach_norm(pieces)).double().square().view(len(tensors), -1).sum(1)
        if _ordinary(squares):
            return squares.sqrt().float()
    return norms(torch.stack(list(tensors)).flatten(1))


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


def histogram_counts(entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts of tensors (L, n) in the run's fixed bins: counts (L, 515), NaNs (L,) and infinities (L,).

    The bin follows from a float32's bits by a shift, so an entry on an edge is never misplaced by rounding; wider
    types are rounded to float32 first.
    """
    bits = entries.float().contiguous().view(torch.int32)
    counts = _host_key_counts(bits) if bits.is_cpu else _counts((bits >> _KEY_SHIFT) & (_KEYS - 1), _KEYS)
    sides = counts.view(-1, 2, _KEYS // 2)  # zero and positive, then negative
    nonfinite = sides[..., _NONFINITE_KEY:].sum((1, 2))
    clean = bits.is_cpu and not bool(nonfinite.any())
    nan = nonfinite if clean else torch.isnan(entries).sum(-1)
    middle = sides[..., :_FIRST_KEY].sum((1, 2)).unsqueeze(-1)
    positive, negative = sides[..., _FIRST_KEY:_OPEN_KEY].unbind(1)
    above, below = sides[..., _OPEN_KEY:_NONFINITE_KEY].sum(-1, keepdim=True).unbind(1)
    return torch.cat([below, negative.flip(-1), middle, positive, above], -1), nan, nonfinite - nan


def quantiles(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles of the finite entries of tensors (L, n): (L, 65) at `quantile_probabilities()`, and the counts (L,).

    Of the entries rounded to bfloat16, linear between order statistics, as `numpy.quantile` does by default. NaN where
    nothing is finite.
    """
    if not entries.is_cpu:
        finite = torch.isfinite(entries)
        keys = _ordered(_rounded(entries, finite))
        cumulative = _counts(keys.int() + 2**15, 2**16).cumsum(-1)
        return _quantiles(finite.sum(-1), lambda rank: torch.searchsorted(cumulative, rank, right=True) - 2**15)
    count = torch.full((len(entries),), entries.shape[1])
    keys = _sorted(_ordered(entries.bfloat16()))
    if entries.numel() and bool(((keys[:, -1] >= _LEAST_INFINITE) | (keys[:, 0] <= _GREATEST_INFINITE)).any()):
        finite = torch.isfinite(entries)
        count = finite.sum(-1)
        keys = _sorted(_ordered(_rounded(entries, finite)))
    return _quantiles(count, lambda rank: keys.gather(-1, rank))


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


def _host_key_counts(bits: Tensor) -> Tensor:
    rows = bits.numpy().view(np.uint32)
    counts = np.zeros((len(rows), _KEYS), np.int64)
    for row, count in zip(rows, counts, strict=True):
        for start in range(0, len(row), _PIECE):
            count += np.bincount(row[start : start + _PIECE] >> _KEY_SHIFT, minlength=_KEYS)
    return torch.from_numpy(counts)


def _counts(index: Tensor, size: int) -> Tensor:
    """How many entries of each row (L, n) have each index below `size`: (L, size)."""
    counts = torch.zeros(len(index), size, dtype=torch.int64, device=index.device)
    one = torch.ones((), dtype=torch.int64, device=index.device)
    width = max(1, _AT_ONCE // max(1, len(index)))  # an index takes eight bytes
    for part in index.split(width, 1):
        counts.scatter_add_(1, part.long(), one.expand_as(part))
    return counts


def _rounded(entries: Tensor, finite: Tensor) -> Tensor:
    """Entries in bfloat16, where what is finite stays so, and what is not is infinite."""
    largest = torch.finfo(torch.bfloat16).max
    return entries.clamp(-largest, largest).masked_fill_(~finite, torch.inf).bfloat16()


def _ordered(entries: Tensor) -> Tensor:
    """The bits of bfloat16 as int16 that are ordered as the values are."""
    bits = entries.contiguous().view(torch.int16)
    return bits ^ ((bits >> 15) & 0x7FFF)


def _sorted(keys: Tensor) -> Tensor:
    # NumPy's stable sort of 16-bit integers is a radix sort: 3 ns an entry, where a sort of float32 takes 20 and more.
    return torch.from_numpy(np.sort(keys.numpy(), axis=-1, kind="stable"))


def _quantiles(count: Tensor, key_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Quantiles (L, 65) of `count` (L,) entries, and that, given the `_ordered` bits at ranks (L, 65) among them."""
    # Computed on the device: a constant copied to it would synchronize.
    z = torch.linspace(-QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT, dtype=torch.float64, device=count.device)
    last = (count.unsqueeze(-1) - 1).clamp(min=0)
    position = torch.special.ndtr(z) * last
    below = position.floor().long()
    low, high = (_value(key_of(rank)) for rank in (below, torch.minimum(below + 1, last)))
    values = torch.lerp(low, high, position - below)
    return values.masked_fill((count == 0).unsqueeze(-1), torch.nan).float(), count


def _value(keys: Tensor) -> Tensor:
    """The numbers whose `_ordered` bits these are, in float64."""
    keys = keys.int()
    return ((keys ^ ((keys >> 15) & 0x7FFF)) << 16).view(torch.float32).double()


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
