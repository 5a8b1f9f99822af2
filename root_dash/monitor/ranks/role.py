"""The role of a process among those that train: what it records, and how its measurements reach the first process.

Of replicated parameters the first process records, and nothing is sent; or each process records a run of its own.
Sharded parameters are measured on the processes that hold the shards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.distributed
from torch import Tensor

from root_dash.monitor.ranks.exchange import RankReceiver, RankSender
from root_dash.optim.matrices.shards import counted_here, is_dtensor
from root_dash.records import Layer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RecordingRanks = Literal["first", "all"]
"""Which processes record replicated parameters."""

_SEED_BYTES = 4


@dataclass(frozen=True, slots=True)
class RankRole:
    """What a process does for the recording: its number, what it records, and how it is linked to the others."""

    rank: int
    positions: Mapping[Tensor, int]
    """The places of the parameters that the process records or measures among the run's layers; none if idle."""
    link: RankReceiver | RankSender | None = None
    seed: int | None = None
    """A number that all processes have, so that they choose the same steps; None if they need not agree."""

    @property
    def records(self) -> bool:
        """Whether the process has anything to do."""
        return self.link is not None or bool(self.positions)

    @property
    def stores(self) -> bool:
        """Whether the process stores frames."""
        return self.records and not isinstance(self.link, RankSender)


def role_of_this_process(ranks: RecordingRanks, layers: Sequence[Layer], positions: Mapping[Tensor, int]) -> RankRole:
    """Return what this process records of the watched layers, whose parameters have these positions.

    If a parameter is sharded, this is a collective call of all processes; else it communicates with none.

    Raises:
        ValueError: `ranks` is unknown, it is `"all"` and parameters are sharded, or the processes do not watch the
            same layers.
    """
    if ranks not in get_args(RecordingRanks):
        raise ValueError(f"ranks must be 'first' or 'all', got {ranks!r}")
    sharded = any(map(is_dtensor, positions))
    if ranks == "all" and sharded:
        raise ValueError(
            "ranks must be 'first' if parameters are sharded, got 'all': what the processes measure of their shards "
            "is put together and recorded by the first"
        )
    if not _several_processes():
        return RankRole(0, positions)
    rank = torch.distributed.get_rank()
    if not sharded:
        return RankRole(rank, positions if rank == 0 or ranks == "all" else {})
    own = {
        parameter: position
        for parameter, position in positions.items()
        if (counted_here(parameter, whole=False) if is_dtensor(parameter) else rank == 0)
    }
    group = torch.distributed.new_group(backend="gloo")
    assert group is not None
    senders, seed = _agree(group, layers, bool(own))
    if rank == 0:
        return RankRole(rank, own, RankReceiver(group, [sender for sender in senders if sender]), seed)
    return RankRole(rank, own, RankSender(group) if own else None, seed)


def text_of_first_rank(text: str) -> str:
    """Return the text that the first process has. With several processes this is a collective call."""
    if not _several_processes():
        return text
    group = torch.distributed.new_group(backend="gloo")
    assert group is not None
    encoded = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    size = torch.tensor([len(encoded)])
    torch.distributed.broadcast(size, 0, group)
    if torch.distributed.get_rank():
        encoded = torch.empty(int(size), dtype=torch.uint8)
    torch.distributed.broadcast(encoded, 0, group)
    torch.distributed.destroy_process_group(group)
    return encoded.numpy().tobytes().decode()


def _several_processes() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def _agree(group: ProcessGroup, layers: Sequence[Layer], sends: bool) -> tuple[list[int], int]:
    """Return the processes that have something to send and a seed, after checking that all watch the same layers.

    Raises:
        ValueError: a process watches other layers than the first.
    """
    described = [(layer.name, layer.shape, layer.algorithm, layer.position) for layer in layers]
    digest = hashlib.sha256(repr(described).encode()).digest()
    own = torch.frombuffer(bytearray([*digest, *os.urandom(_SEED_BYTES), sends]), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(found, own, group)
    same = len(digest)
    others = [rank for rank, one in enumerate(found) if not torch.equal(one[:same], found[0][:same])]
    if others:
        raise ValueError(
            f"ranks must watch the same layers if parameters are sharded, got others on {others} than on 0: "
            "what they measure of their shards could not be put together"
        )
    seed = int.from_bytes(bytes(found[0][same : same + _SEED_BYTES].tolist()), "little")  # the first process's
    return [rank for rank, one in enumerate(found) if int(one[-1])], seed
