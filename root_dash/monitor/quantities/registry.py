"""All quantities, the lightest kinds first. A new quantity is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from root_dash.kernels import moments as kernel
from root_dash.monitor.quantities import alignment, moments, outliers
from root_dash.monitor.quantities.alignment import ALIGNMENT
from root_dash.monitor.quantities.changes import CHANGES
from root_dash.monitor.quantities.histogram import HISTOGRAM
from root_dash.monitor.quantities.mask import MASK
from root_dash.monitor.quantities.moments import MOMENTS
from root_dash.monitor.quantities.norms import NORMS
from root_dash.monitor.quantities.orthogonality import ORTHOGONALITY
from root_dash.monitor.quantities.outliers import OUTLIERS
from root_dash.monitor.quantities.quantiles import QUANTILES
from root_dash.monitor.quantities.quantity import LayerBatch, Quantity
from root_dash.monitor.quantities.sentinels import SENTINELS
from root_dash.monitor.quantities.spectral.rows import ROWS
from root_dash.monitor.quantities.spectral.spectrum import SPECTRUM
from root_dash.monitor.quantities.spectral.weights import WEIGHTS
from root_dash.records import Kind

QUANTITIES: tuple[Quantity, ...] = (
    *(MOMENTS, ALIGNMENT, OUTLIERS, NORMS, SENTINELS, ORTHOGONALITY, CHANGES),
    HISTOGRAM,
    QUANTILES,
    MASK,
    *(SPECTRUM, ROWS, WEIGHTS),
)
"""Every quantity. If a device has no memory left for a kind, that kind and all after it are left out of the step."""

FUSED = {"moments": moments.FIELDS, "alignment": alignment.FIELDS, "outliers": outliers.FIELDS}
"""The fields of the quantities whose sums a Triton kernel makes in one pass."""


def of_kind(quantities: Iterable[Quantity], kind: Kind) -> list[Quantity]:
    """Return the quantities that come with a kind."""
    return [quantity for quantity in quantities if quantity.kind == kind]


def leading(quantities: Iterable[Quantity], kind: Kind) -> Quantity | None:
    """Return the first quantity of a kind that is merged over shards: a layer without it has nothing of the kind.

    None if no quantity of the kind is merged.
    """
    return next((quantity for quantity in of_kind(quantities, kind) if quantity.merge is not None), None)


def with_one_pass(batch: LayerBatch) -> LayerBatch:
    """Return the batch with the sums that a kernel makes in one pass, if a kernel drives the batch's device."""
    threshold = None if batch.momentum is None or batch.base is None else batch.threshold
    wanted = batch.gradient is not None or threshold is not None
    if not wanted or not kernel.takes(batch.gradient, batch.momentum):
        return batch
    gradient, momentum = (None if one is None else one.flatten(1) for one in (batch.gradient, batch.momentum))
    fields = {name: fields.names for name, fields in FUSED.items()}
    return replace(batch, one_pass=kernel.sums(gradient, momentum, threshold, fields))
