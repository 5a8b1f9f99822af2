"""The norm of the momentum, and its angle with the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities import outliers
from root_dash.monitor.quantities.pieces import are_ordinary, by_pieces, exact_norm, length, scaled
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
from root_dash.records import Float64Array

FIELDS = Fields(gradient=1, momentum=1, product=2)
"""‖G‖, ‖M‖ and ⟨G, M⟩ of a piece. Gradient and momentum have units of their own; the product has that of both."""


def on_device(batch: LayerBatch) -> Tensors:
    """Return `"sums"` (L, pieces, fields) of gradients and momenta, and `"norm"` (L,) of momenta that were scaled.

    Sums of several processes have to be in the same units, although an angle has none: if the tensors are shards,
    `"units"` (L, 2) are what gradients and momenta were divided by.
    """
    if batch.gradient is None or batch.momentum is None:
        return {}
    if "alignment" in batch.one_pass:
        norms = outliers.FIELDS.column(batch.one_pass["outliers"], "momentum")
        norm: Tensor = torch.linalg.vector_norm(norms, dim=-1)
        return {"sums": batch.one_pass["alignment"], "norm": norm.float()}
    gradient, momentum = batch.gradient.flatten(1), batch.momentum.flatten(1)
    if gradient.is_cpu:
        sums = by_pieces(_sums, gradient, momentum)
        if are_ordinary(sums[..., : FIELDS.names.index("product")].square().sum(1)):
            return {"sums": sums}
    (gradients, by), (momenta, momenta_by) = scaled(gradient), scaled(momentum)
    found = {"sums": by_pieces(_sums, gradients, momenta), "norm": exact_norm(momentum)}
    if batch.shard_of is not None:
        found["units"] = 1.0 / torch.cat([by.double(), momenta_by.double()], 1)
    return found


def merge(parts: Sequence[ShardPart]) -> Arrays:
    """Return the pieces of all parts in the largest units of the parts, and the `"norm"` of the whole momentum."""
    rows = len(parts[0].arrays["sums"])
    units = [part.arrays.get("units", np.ones((rows, 2))).astype(np.float64) for part in parts]
    largest = np.max(units, 0)
    pieces, norms = [], list[Float64Array]()
    for part, own in zip(parts, units, strict=True):
        sums = part.arrays["sums"].astype(np.float64)
        ratios = own / largest
        pieces.append(sums * np.concatenate([ratios, ratios.prod(1, keepdims=True)], 1)[:, None])
        norm = np.sqrt((FIELDS.split(sums)["momentum"] ** 2).sum(1)) * own[:, 1]
        norms.append(part.arrays["norm"].astype(np.float64) if "norm" in part.arrays else norm)
    return {"sums": np.concatenate(pieces, 1), "norm": np.linalg.norm(norms, axis=0)}


@quiet
def on_host(layers: HostBatch) -> HostResult:
    """Return `momentum_norm`, and the `alignment` of gradients and momenta."""
    sums = FIELDS.split(layers.arrays["sums"])
    gradient, momentum = (np.sqrt((sums[name] ** 2).sum(-1)) for name in ("gradient", "momentum"))
    norm = layers.arrays["norm"].astype(np.float64) if "norm" in layers.arrays else momentum
    cosine = sums["product"].sum(-1) / (gradient * momentum)
    return HostResult({"momentum_norm": norm, "alignment": or_zero(cosine, gradient * norm)})


def _sums(gradient: Tensor, momentum: Tensor) -> Tensor:
    """Return the sums of gradients and momenta (l, n)."""
    gradient, momentum = gradient.float(), momentum.float()
    return FIELDS.stack(gradient=length(gradient), momentum=length(momentum), product=(gradient * momentum).sum(-1))


ALIGNMENT = Quantity("alignment", "statistics", on_device, on_host, merge, ("momentum_norm", "alignment"))
