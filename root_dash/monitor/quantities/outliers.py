"""What the threshold ε takes from the momentum M: B = clamp(M, -ε, ε) is the base, O = M - B the outliers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.pieces import are_ordinary, by_pieces, count_entries, length, row_scale
from root_dash.monitor.quantities.quantity import (
    Fields,
    HostBatch,
    HostResult,
    LayerBatch,
    Quantity,
    Tensors,
    flat,
    or_zero,
    quiet,
)

FIELDS = Fields(momentum=1, base=1, outliers=1, product=2, count=0)
"""‖M‖, ‖B‖, ‖O‖, ⟨B, O⟩ and the number of outliers of a piece."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return `"sums"` (L, pieces, fields), which have no unit since only their ratios count, and `"threshold"` (L,)."""
    if batch.momentum is None or batch.base is None or batch.threshold is None:
        return {}
    threshold = batch.threshold.float()
    if "outliers" in batch.one_pass:
        return {"sums": batch.one_pass["outliers"], "threshold": threshold}
    momentum, base = flat(batch.momentum, batch.base)
    if momentum.is_cpu:
        sums = by_pieces(_finite_sums, momentum, base)
        if are_ordinary(sums[..., : FIELDS.names.index("outliers")].square().sum(1)):
            return {"sums": sums, "threshold": threshold}
    scale = row_scale(momentum)
    return {"sums": by_pieces(_sums, momentum * scale, base * scale), "threshold": threshold}


@quiet
def on_host(layers: HostBatch) -> HostResult:
    """Return the threshold, what share of entries and of energy lies beyond it, and the angle of momentum and base."""
    sums, threshold = FIELDS.split(layers.arrays["sums"]), layers.arrays["threshold"].astype(np.float64)
    whole, base, outliers = ((sums[name] ** 2).sum(1) for name in ("momentum", "base", "outliers"))
    return HostResult(
        {
            "threshold": threshold,
            "outlier_fraction": np.where(np.isnan(threshold), np.nan, sums["count"].sum(1) / layers.entries),
            "outlier_energy": or_zero(outliers / whole, whole),
            "base_alignment": or_zero((base + sums["product"].sum(1)) / np.sqrt(whole * base), whole),
        }
    )


def _finite_sums(momentum: Tensor, base: Tensor) -> Tensor:
    """Return the sums of momenta and bases (l, n) without NaN: |M| - ε rounds to 0 for no |M| > ε."""
    return _stacked(momentum, base, None)


def _sums(momentum: Tensor, base: Tensor) -> Tensor:
    """Return the sums of any momenta and bases (l, n): a NaN, which makes a length NaN too, counts as no outlier."""
    return _stacked(momentum, base, (momentum.abs() > base.abs()).sum(-1).double())


def _stacked(momentum: Tensor, base: Tensor, count: Tensor | None) -> Tensor:
    momentum, base = momentum.float(), base.float()
    outliers = momentum - base
    lengths = {"momentum": length(momentum), "base": length(base), "outliers": length(outliers)}
    product = (base * outliers).sum(-1)
    counted = count_entries(torch.ne, outliers, outliers) if count is None else count
    return FIELDS.stack(**lengths, product=product, count=counted)


OUTLIERS = Quantity(
    "outliers",
    "statistics",
    on_device,
    on_host,
    statistics=("threshold", "outlier_fraction", "outlier_energy", "base_alignment"),
)
