"""Every quantity that is measured on the training device: tensors in, small tensors out.

All functions are batched over the L layers of one shape, allocate what they return, never write to their inputs and
never read a value back to the host, so they neither block nor synchronize a device. The definitions are those of
`root_dash.records.STATISTICS`; non-finite entries are counted and left out of the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, QUANTILE_COUNT, QUANTILE_REACH

LARGEST_COUNT = 32
"""How many of the entries of greatest magnitude a mask names by coordinate."""

# The bins of `records.histogram_edges` as arithmetic on the bits of a float32: dropping all but the exponent and the
# two leading bits of the mantissa numbers the bins of four an octave.
_MANTISSA_SHIFT = 23 - (HISTOGRAM_BINS_PER_OCTAVE.bit_length() - 1)
_FIRST_KEY = (127 + HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE
_SIDE_BINS = (HISTOGRAM_OCTAVES[1] - HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE + 1  # the last one is open
HISTOGRAM_BINS = 2 * _SIDE_BINS + 1

Columns = dict[str, Tensor]
"""Statistics by name, each of shape (L,)."""


def gradient_statistics(gradient: Tensor) -> Columns:
    """The `grad_*` statistics of gradients (L, n), each (L,)."""
    finite = torch.isfinite(gradient)
    finite_count = finite.sum(-1)
    nan = torch.isnan(gradient).sum(-1)
    entries = gradient.shape[-1]
    scaled, abs_max = _scaled(gradient)
    count = finite_count.float()
    mean = scaled.sum(-1) / count
    centered = (scaled - mean.unsqueeze(-1)).masked_fill_(~finite, 0.0)
    squares = centered * centered
    second = squares.sum(-1) / count
    third = _dot(squares, centered) / count
    fourth = _dot(squares, squares) / count
    return {
        "grad_norm": abs_max * (count * (second + mean**2)).sqrt(),
        "grad_abs_max": abs_max.masked_fill(finite_count == 0, torch.nan),
        "grad_mean": abs_max * mean,
        "grad_std": abs_max * second.sqrt(),
        "grad_skewness": _or_zero(third / second**1.5, second),
        "grad_kurtosis": _or_zero(fourth / second**2 - 3.0, second),
        "grad_nan": nan,
        "grad_inf": entries - finite_count - nan,
        "grad_zero": entries - torch.count_nonzero(gradient, dim=-1),
    }


def momentum_statistics(gradient: Tensor, momentum: Tensor) -> Columns:
    """`momentum_norm`, and the `alignment` of gradients and momenta, both (L, n)."""
    norm = _norm(momentum)
    (unit_gradient, _), (unit_momentum, _) = _scaled(gradient), _scaled(momentum)
    cosine = _dot(unit_gradient, unit_momentum) / (_norm(unit_gradient) * _norm(unit_momentum))
    return {"momentum_norm": norm, "alignment": _or_zero(cosine, norm * _norm(unit_gradient))}


def outlier_statistics(momentum: Tensor, base: Tensor, threshold: Tensor) -> Columns:
    """What the threshold (L,) takes from momenta (L, n), given their bases clamp(M, -ε, ε)."""
    scale = momentum.float().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    whole, kept = momentum / scale, base / scale
    outliers = whole - kept
    energy = _dot(whole, whole)
    return {
        "threshold": threshold,
        "outlier_fraction": (outlier_mask(momentum, threshold).sum(-1) / momentum.shape[-1]).masked_fill(
            threshold.isnan(), torch.nan
        ),
        "outlier_energy": _or_zero(_dot(outliers, outliers) / energy, energy),
        "base_alignment": _or_zero(_dot(whole, kept) / (_norm(whole) * _norm(kept)), energy),
    }


def update_statistics(update: Tensor, weight_norm: Tensor, lr: float | Tensor) -> Columns:
    """`update_norm` of updates (L, n), `weight_norm`, and their ratio at the scaled learning rate."""
    norm = _norm(update)
    return {"update_norm": norm, "weight_norm": weight_norm, "update_to_weight": norm * lr / weight_norm}


def orthogonality_error(update: Tensor) -> Tensor:
    """‖X Xᵀ − I‖_F / √m of updates (L, rows, cols) on their short side: (L,).

    Rows of the short side that are exactly zero (a dead unit, a byte that never occurred) have no direction to be
    orthogonal and are left out of both the norm and m. NaN where all are.
    """
    short = _short_side(update).float()
    residual = short @ short.mT
    diagonal = residual.diagonal(dim1=-2, dim2=-1)
    null = (diagonal == 0).sum(-1)
    diagonal -= 1.0
    squared = (residual * residual).sum((-2, -1)) - null
    return (squared.clamp(min=0) / (short.shape[-2] - null)).sqrt()


def outlier_mask(momentum: Tensor, threshold: Tensor) -> Tensor:
    """|M| > ε for momenta (L, n) and thresholds (L,): booleans (L, n)."""
    return momentum.abs() > threshold.unsqueeze(-1)


def packed_bits(mask: Tensor) -> Tensor:
    """Masks (L, n) as bytes (L, ⌈n / 8⌉), eight entries each, the first in the highest bit, as `np.packbits`."""
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
    magnitude = bits & 0x7FFFFFFF
    key = ((magnitude >> _MANTISSA_SHIFT) - _FIRST_KEY + 1).clamp_(0, _SIDE_BINS)
    # -0.0 carries a sign bit and the key 0: both zeros fall into the middle bin.
    index = torch.where(bits < 0, _SIDE_BINS - key, _SIDE_BINS + key)
    nan = torch.isnan(entries)
    inf = torch.isinf(entries)
    # What is not finite is counted in a bin of its own, which is then cut off.
    index = torch.where(nan | inf, HISTOGRAM_BINS, index).long()
    counts = torch.zeros(entries.shape[0], HISTOGRAM_BINS + 1, dtype=torch.int64, device=entries.device)
    counts.scatter_add_(1, index, torch.ones((), dtype=torch.int64, device=entries.device).expand_as(index))
    return counts[:, :HISTOGRAM_BINS], nan.sum(-1), inf.sum(-1)


def quantiles(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles of the finite entries of tensors (L, n): (L, 65) at `quantile_probabilities()`, and the counts (L,).

    Linear between order statistics, as `numpy.quantile` does by default. NaN where nothing is finite.
    """
    finite = torch.isfinite(entries)
    count = finite.sum(-1)
    # What is not finite sorts to the end, behind the `count` entries that are ranked.
    ordered = entries.float().masked_fill(~finite, torch.inf).sort(-1).values
    # Computed on the device: a constant copied to it would synchronize.
    positions = torch.linspace(
        -QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT, dtype=torch.float64, device=count.device
    )
    probabilities = torch.special.ndtr(positions)
    position = probabilities * (count.unsqueeze(-1) - 1).clamp(min=0)
    below = position.floor().long()
    above = torch.minimum(below + 1, (count.unsqueeze(-1) - 1).clamp(min=0))
    low, high = ordered.gather(-1, below).double(), ordered.gather(-1, above).double()
    values = torch.lerp(low, high, position - below)
    return values.masked_fill((count == 0).unsqueeze(-1), torch.nan).float(), count


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Left Rightᵀ on the short side in float64: (L, rows, cols) twice -> (L, m, m), m = min(rows, cols).

    In float64, since squaring halves the digits: singular values down to 1.5e-8 of the largest survive.
    """
    return _short_side(left).double() @ _short_side(right).double().mT


def _short_side(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def _dot(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left, right)
    return product


def _norm(entries: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(entries, dim=-1, dtype=torch.float64)
    return norm.float()


def _scaled(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (L, n) in float32, divided by the largest of each row, 0 where not finite; and those largest (L,).

    So that neither 1e-30 nor 1e30 (nor, in float64, 1e300) leaves float32's range when raised to the fourth power.
    """
    finite = entries.nan_to_num(0.0, 0.0, 0.0)
    finite = finite if finite.dtype == torch.float64 else finite.float()  # dividing in half precision would round
    largest = finite.abs().amax(-1)
    divisor = largest.clamp(min=torch.finfo(finite.dtype).tiny).unsqueeze(-1)
    return (finite / divisor).float(), largest.float()


def _or_zero(value: Tensor, energy: Tensor) -> Tensor:
    """`value`, or 0 where the quantity it is relative to has no energy: a constant has no skew, a zero no angle.

    What is not finite has neither: NaN stays NaN.
    """
    return torch.where(energy == 0, torch.zeros_like(value), value)
