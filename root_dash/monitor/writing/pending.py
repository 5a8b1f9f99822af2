"""A step's measurements while they wait for the writer: on their way to the host, and what they become there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.limits.budget import Charge
from root_dash.monitor.limits.cost_meter import StepCost
from root_dash.monitor.measure import Measurement
from root_dash.monitor.ranks.merge import Joined
from root_dash.monitor.sentinels.rows import SentinelRow, groups_of_rows
from root_dash.monitor.skipped import SkipCounts
from root_dash.monitor.writing.transfer import Arrival
from root_dash.records import Event, Frame

FRAME_BYTES, ARRAY_BYTES = 512, 320
"""Bytes of a waiting frame beside its arrays (463 measured), and of each array beside its entries (286 measured)."""


ROW_BYTES = 700
"""Bytes of a sentinels' row beside its numbers."""


class SentArray(NamedTuple):
    """The place of a tensor that was sent: which batch of the step, which quantity, and the tensor's name there."""

    batch: int
    quantity: str
    name: str


class SentScalar(NamedTuple):
    """The name of a logged tensor that was sent."""

    name: str


Sent = SentArray | SentScalar | SkipCounts


class BatchShape(NamedTuple):
    """What the host needs to know of a measured batch beside its arrays: see `Measurement`."""

    positions: tuple[int, ...]
    shape: tuple[int, int]
    entries: int | None


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """A step's measurements on their way to the host. Scalars that were logged as tensors are among them."""

    step: int
    time: float
    batches: tuple[BatchShape, ...]
    """The measured batches, in the order of `SentArray.batch`."""
    arrival: Arrival[Sent]
    scalars: Mapping[str, float]
    cost: float
    events: tuple[Event, ...] = ()
    step_cost: StepCost | None = None
    """Where the writer notes the time that the frame took of its thread; None if nobody asks."""
    charge: Charge = "statistics"
    """What that time is charged to."""
    joins: bool = False
    """Whether other processes have measured something of the step."""
    sentinels: tuple[SentinelRow, ...] = ()
    """The sentinels of the steps since they were last handed over."""

    @property
    def nbytes(self) -> int:
        """About how many bytes of the host's memory the frame holds while it waits."""
        rows = sum(ROW_BYTES + 16 * len(row.watched) for row in self.sentinels)
        return FRAME_BYTES + ARRAY_BYTES * len(self.arrival.slots) + self.arrival.nbytes + rows


def tensors_to_send(
    measured: Sequence[Measurement],
    scalars: Mapping[str, float | Tensor],
    skips: Iterable[tuple[SkipCounts, Tensor]] = (),
) -> dict[Sent, Tensor]:
    """Return all tensors of a step by their place, the logged tensors and the counts of skips among them."""
    tensors: dict[Sent, Tensor] = dict(skips)
    tensors |= {SentScalar(name): value for name, value in scalars.items() if isinstance(value, Tensor)}
    for index, measurement in enumerate(measured):
        for quantity, found in measurement.tensors.items():
            tensors |= {SentArray(index, quantity, name): tensor for name, tensor in found.items()}
    return tensors


def groups_of(pending: PendingFrame, arrays: Mapping[Sent, NDArray[Any]]) -> list[LayerGroup]:
    """Return the measured batches of a step with the arrays that arrived."""
    found: list[dict[str, dict[str, NDArray[Any]]]] = [{} for _ in pending.batches]
    for place, array in arrays.items():
        if isinstance(place, SentArray):
            found[place.batch].setdefault(place.quantity, {})[place.name] = array
    measured = [
        LayerGroup(batch.positions, batch.shape, quantities, batch.entries)
        for batch, quantities in zip(pending.batches, found, strict=True)
    ]
    return measured + groups_of_rows(pending.sentinels)


def assembled(
    assembler: Assembler,
    pending: PendingFrame,
    joined: Joined,
    arrays: Mapping[Sent, NDArray[Any]],
    seq: int,
    lost: int,
) -> Frame:
    """Return the frame of a step, given its groups and the arrays that arrived."""
    sent = {place.name: float(array) for place, array in arrays.items() if isinstance(place, SentScalar)}
    skips = {place: array for place, array in arrays.items() if isinstance(place, SkipCounts)}
    skipped = [Event("skip", text, pending.step, pending.time) for text in assembler.skips.texts(skips)]
    return assembler.frame(
        joined.groups,
        seq=seq,
        step=pending.step,
        time=pending.time,
        scalars=dict(pending.scalars) | sent,
        events=(*pending.events, *skipped, *joined.events),
        lost=lost,
        cost=pending.cost,
    )
