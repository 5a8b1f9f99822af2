"""Moments of the gradient: norm, mean, deviation, skewness, kurtosis, extremes, zeros and what is not finite.

The device sends sums about each piece's own mean; the host adds up the pieces in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.pieces import are_ordinary, by_pieces, count_entries, length, piece_widths, row_scale
from root_dash.monitor.quantities.quantity import (
    Arrays,
    Fields,
    HostBatch,
    HostResult,
    LayerBatch,
    Quantity,
    ShardPart,
    Tensors,
    or_zero,
    quiet,
)

FIELDS = Fields(mean=1, second=2, third=3, root_fourth=2, zeros=0, largest=1, smallest=1, nans=0, infinities=0)
"""Of a piece's finite entries: mean, sums of squares and cubes of the deviations, root of that of fourth powers, ..."""

_ROUNDING = 2.0**-21
"""Relative float32 error of a mean. A deviation below `_ROUNDING * |mean|` is set to 0: a constant measured 1.5e-7."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return `"sums"` (L, pieces, fields) of the gradients, and `"unit"` (L,) if they were scaled by its inverse."""
    if batch.gradient is None:
        return {}
    if "moments" in batch.one_pass:
        return {"sums": batch.one_pass["moments"]}
    gradient = batch.gradient.flatten(1)
    if gradient.is_cpu:
        sums = by_pieces(_finite_sums, gradient)
        if are_ordinary(FIELDS.column(sums, "root_fourth").square()):
            return {"sums": sums}
    scale = row_scale(gradient)
    return {"sums": by_pieces(_sums, gradient, scale), "unit": 1.0 / scale[:, 0].double()}


def merge(parts: Sequence[ShardPart]) -> Arrays:
    """Return the pieces of all parts in one unit, the largest of the parts', with their `"widths"` (L, pieces).

    An entry that vanishes in the largest unit is nothing beside the entries that set the unit.
    """
    rows = len(parts[0].arrays["sums"])
    units = [part.arrays.get("unit", np.ones(rows)).astype(np.float64) for part in parts]
    unit = np.max(units, 0)
    pieces, widths = [], []
    for part, own in zip(parts, units, strict=True):
        sums = FIELDS.padded(part.arrays["sums"])
        pieces.append(sums * (own / unit)[:, None, None] ** FIELDS.powers)
        widths.append(np.tile(piece_widths(part.entries, sums.shape[1]), (rows, 1)))
    return {"sums": np.concatenate(pieces, 1), "widths": np.concatenate(widths, 1), "unit": unit}


@quiet
def on_host(layers: HostBatch) -> HostResult:
    """Return the `grad_*` statistics."""
    arrays = layers.arrays
    sums = FIELDS.split(arrays["sums"])
    widths = arrays["widths"] if "widths" in arrays else piece_widths(layers.entries, arrays["sums"].shape[1])
    unit = arrays.get("unit", np.float64(1.0))
    means, seconds, thirds, fourths = sums["mean"], sums["second"], sums["third"], sums["root_fourth"] ** 2
    counts = widths - sums["nans"] - sums["infinities"]
    count = counts.sum(-1)
    mean = (counts * means).sum(-1) / count
    # Moments about each piece's own mean become moments about the row's mean.
    d = means - mean[:, None]
    second = (seconds + counts * d**2).sum(-1) / count
    second = np.where(second > (_ROUNDING * mean) ** 2, second, 0.0)
    third = (thirds + 3 * d * seconds + counts * d**3).sum(-1) / count
    fourth = (fourths + 4 * d * thirds + 6 * d**2 * seconds + counts * d**4).sum(-1) / count
    largest = unit * np.maximum(sums["largest"].max(-1), -sums["smallest"].min(-1))
    return HostResult(
        {
            "grad_norm": unit * np.sqrt(count * (second + mean**2)),
            "grad_abs_max": np.where(count == 0, np.nan, largest),
            "grad_mean": unit * mean,
            "grad_std": unit * np.sqrt(second),
            "grad_skewness": or_zero(third / second**1.5, second),
            "grad_kurtosis": or_zero(fourth / second**2 - 3.0, second),
            "grad_nan": sums["nans"].sum(-1),
            "grad_inf": sums["infinities"].sum(-1),
            "grad_zero": sums["zeros"].sum(-1),
        }
    )


def _finite_sums(gradient: Tensor) -> Tensor:
    """Return the sums of finite gradients (l, n) of ordinary size, without the fields of what is not finite."""
    gradient = gradient.float()
    mean = gradient.mean(-1)
    x = gradient - mean.unsqueeze(-1)
    second, third, root_fourth = _powers(x)
    return FIELDS.stack(
        mean=mean,
        second=second,
        third=third,
        root_fourth=root_fourth,
        zeros=count_entries(torch.eq, gradient, x),
        largest=gradient.amax(-1),
        smallest=gradient.amin(-1),
    )


def _sums(gradient: Tensor, scale: Tensor) -> Tensor:
    """Return the sums of the finite entries of any gradients (l, n), multiplied by scales (l, 1), in float64."""
    finite = torch.isfinite(gradient)
    count, nans = finite.sum(-1), torch.isnan(gradient).sum(-1)
    missing = ~finite
    x = (gradient * scale).float().masked_fill_(missing, 0.0)
    largest, smallest = x.amax(-1), x.amin(-1)
    mean = x.sum(-1) / count.clamp(min=1)
    x = (x - mean.unsqueeze(-1)).masked_fill_(missing, 0.0)
    second, third, root_fourth = _powers(x)
    return FIELDS.stack(
        mean=mean.double(),
        second=second.double(),
        third=third.double(),
        root_fourth=root_fourth.double(),
        zeros=count_entries(torch.eq, gradient, x).double(),
        largest=largest.double(),
        smallest=smallest.double(),
        nans=nans.double(),
        infinities=(gradient.shape[1] - count - nans).double(),
    )


def _powers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of squares and cubes and the root of the sum of fourth powers of x (l, n), which is overwritten.

    Each is (l,).
    """
    squares = x * x
    return squares.sum(-1), x.mul_(squares).sum(-1), length(squares)


MOMENTS = Quantity(
    "moments",
    "statistics",
    on_device,
    on_host,
    merge,
    (
        *("grad_norm", "grad_abs_max", "grad_mean", "grad_std", "grad_skewness", "grad_kurtosis"),
        *("grad_nan", "grad_inf", "grad_zero"),
    ),
)
