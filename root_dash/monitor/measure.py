"""The measurement of one batch of layers: a `LayerBatch` in, small tensors on the device out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from root_dash.monitor.quantities.quantity import DEFAULT_LIMITS, LayerBatch, MeasureLimits, Quantity, Tensors
from root_dash.monitor.quantities.registry import QUANTITIES, of_kind, with_one_pass
from root_dash.records import Kind

Timed = Callable[[Kind], AbstractContextManager[object]]
"""Returns the context in which a kind is measured."""

Memory = dict[str, dict[int, Tensor]]
"""What each quantity keeps on the device of each layer, by the quantity's name and the layer's position."""

OnShortage = Callable[[Kind, torch.OutOfMemoryError], object]
"""Is called with a kind for which the device had no memory left."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Tensors measured of L layers of one shape, on the device, by quantity and name.

    `positions` are the layers' places in the model's order.
    """

    positions: tuple[int, ...]
    shape: tuple[int, int]
    tensors: dict[str, Tensors]
    entries: int | None = None
    """How many entries of each layer were measured if the tensors were shards; None if all entries were."""


def _raise(kind: Kind, error: torch.OutOfMemoryError) -> None:
    raise error


def measure(
    batch: LayerBatch,
    kinds: Collection[Kind],
    timed: Timed = lambda kind: nullcontext(),
    on_shortage: OnShortage = _raise,
    *,
    limits: MeasureLimits = DEFAULT_LIMITS,
    quantities: Sequence[Quantity] = QUANTITIES,
    memory: Memory | None = None,
) -> Measurement:
    """Measure all quantities of some kinds, each kind in the context that `timed` returns for it.

    Of shards only the quantities that can be merged are measured. The kinds are measured in the order of `quantities`,
    the lightest first. If the device has no memory for a kind, `on_shortage` is called, and the kind and all after it
    are left out. `memory` is what quantities keep from one recording to the next; None if nothing is kept.
    """
    memory = {} if memory is None else memory
    measured: dict[str, Tensors] = {}
    for kind in dict.fromkeys(quantity.kind for quantity in quantities):
        taken = [one for one in of_kind(quantities, kind) if batch.shard_of is None or one.merge is not None]
        if kind in kinds and taken:
            try:
                with timed(kind):
                    measured |= _measure(replace(batch, limits=limits), kind, taken, memory)
            except torch.OutOfMemoryError as error:
                on_shortage(kind, error)
                break
    rows, cols = batch.seen.shape[1:]
    if batch.shard_of is not None:
        return Measurement(batch.positions, batch.shard_of, measured, rows * cols)
    return Measurement(batch.positions, (rows, cols), measured)


def _measure(batch: LayerBatch, kind: Kind, quantities: Sequence[Quantity], memory: Memory) -> dict[str, Tensors]:
    seen = with_one_pass(batch) if kind == "statistics" else batch
    measured = {one.name: one.on_device(replace(seen, memory=memory.setdefault(one.name, {}))) for one in quantities}
    return {name: tensors for name, tensors in measured.items() if tensors}
