"""Who records where several processes train, and how what each measured of its shards comes to the first.

Of replicated parameters the first process records, and nothing is ever sent; or each records a run of its own. Sharded
parameters are measured where their shards are. From the writer's thread of each process what it measured goes to the
writer's thread of the first, over a process group of the recorders' own, and becomes one frame there. The training
threads send nothing, and wait for nothing: neither for each other nor for a process that lags or has died.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.distributed
from torch import Tensor

from root_dash.monitor.failures import print_to_stderr
from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.ranks.merge import Joined, merged
from root_dash.monitor.ranks.message import Part, packed, unpacked
from root_dash.optim.matrices.shards import counted_here, is_dtensor
from root_dash.records import Event, Layer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Which = Literal["first", "all"]
"""Which processes record replicated parameters."""

PATIENCE_SECONDS = 30.0
"""How long the first process' writer waits for what another measured at a step, before it goes on without that one."""

WAITING_BYTES = 64 * 2**20
"""What may have come from other processes and wait for the first process' own frames: the rest waits where it is."""

_MESSAGE_BYTES = 1024  # what a message holds beside its bytes, about
_LARGEST = 2**31  # bytes: more is no message of ours
_FOREVER = timedelta(days=365)  # a wait of the group's own default would end, and close all connections of the group
_SIZE, _BODY, _NOTHING = 1, 2, 3  # tags
_AT_ONCE = timedelta(milliseconds=1)
_ENDING_SECONDS = 5.0  # for threads to end whose connections were closed: they take milliseconds


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process is among those that train: its number, what it records, and how it is linked to the others."""

    rank: int
    positions: Mapping[Tensor, int]
    """Those of the parameters that it records, or measures; none where it does nothing."""
    link: Inbox | Outbox | None = None

    @property
    def records(self) -> bool:
        """Whether anything is to be done here."""
        return self.link is not None or bool(self.positions)

    @property
    def stores(self) -> bool:
        """Whether frames are stored here."""
        return self.records and not isinstance(self.link, Outbox)


def standing_of(which: Which, layers: Sequence[Layer], positions: Mapping[Tensor, int]) -> Standing:
    """What this process is to record of the watched layers, whose parameters have these positions.

    A collective call of all processes where a parameter is sharded, and none otherwise.

    Raises:
        ValueError: `which` is unknown, parameters are sharded and all processes were to record them on their own, or
            the processes do not watch the same layers.
    """
    if which not in get_args(Which):
        raise ValueError(f"ranks must be 'first' or 'all', got {which!r}")
    sharded = any(map(is_dtensor, positions))
    if which == "all" and sharded:
        raise ValueError(
            "ranks must be 'first' where parameters are sharded, got 'all': what the processes measure of their shards "
            "is put together and recorded by the first"
        )
    if not _several():
        return Standing(0, positions)
    rank = torch.distributed.get_rank()
    if not sharded:
        return Standing(rank, positions if rank == 0 or which == "all" else {})
    own = {
        parameter: position
        for parameter, position in positions.items()
        if (counted_here(parameter, whole=False) if is_dtensor(parameter) else rank == 0)
    }
    group = torch.distributed.new_group(backend="gloo")
    assert group is not None
    senders = _agreed(group, layers, bool(own))
    if rank == 0:
        return Standing(rank, own, Inbox(group, [sender for sender in senders if sender]))
    return Standing(rank, own, Outbox(group) if own else None)


def of_the_first(text: str) -> str:
    """The text that the first process has: a collective call where there are several."""
    if not _several():
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


class Outbox:
    """What a process other than the first does with its measurements: it sends them there."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._closed = False

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """Send what was measured at a step, which may be nothing; nothing remains to be stored here."""
        if self._closed:
            return Joined([], lost=1)
        message = torch.from_numpy(packed(Part(step, tuple(groups))))
        try:
            self._send(torch.tensor([len(message)]), _SIZE)
            self._send(message, _BODY)
        except RuntimeError:  # of the connection
            self._closed = True
            print_to_stderr("root-dash: process 0 takes no more of what is measured here; training goes on")
            return Joined([], lost=1)
        return Joined([])

    def close(self) -> None:
        """Say that nothing more will come; the first process may have ended by now."""
        if not self._closed:
            try:
                self._send(torch.tensor([0]), _SIZE)
            except RuntimeError:
                self._closed = True

    def abandon(self) -> None:
        """Let go of what is being sent."""
        _disconnect(self._group, 0)

    def _send(self, tensor: Tensor, tag: int) -> None:
        self._group.send([tensor], 0, tag).wait(_FOREVER)


@dataclass(slots=True)
class _Sender:
    """Another process, as the first sees it."""

    waiting: deque[tuple[Part, int]] = field(default_factory=deque)
    """Its parts in order, with their bytes."""
    ended: str | None = None
    """Why no more will come."""
    silent: bool = False
    """Whether it was waited for in vain, and has not been heard since."""
    told: bool = False
    """Whether the recording tells that it is missing."""
    receiving: bool = False
    """Whether a message of it is on its way."""


class Inbox:
    """What the other processes sent to the first, each received by a thread of its own."""

    def __init__(self, group: ProcessGroup, ranks: Sequence[int], patience: float = PATIENCE_SECONDS) -> None:
        self._group = group
        self._patience = patience
        self._senders = {rank: _Sender() for rank in ranks}
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._receive, args=item, name=f"root-dash-rank-{item[0]}", daemon=True)
            for item in self._senders.items()
        ]
        for thread in self._threads:
            thread.start()

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """What was measured at a step by this process and by all others: waits for these, but not for ever.

        Who has died, or does not answer in time, is not waited for again until it is heard again: the layers that it
        has a part of are missing meanwhile, and events say so.
        """
        deadline = time.monotonic() + self._patience
        sources, events, missing = [groups], list[Event](), False
        for rank, sender in self._senders.items():
            part = self._part(sender, step, deadline)
            text = None
            if part is not None:
                sources.append(part.groups)
                if sender.told:
                    text = f"process {rank} is heard again: the layers that it has a part of are recorded"
            else:
                missing = missing or not sender.told
                why = sender.ended or (f"was silent for {self._patience:g} s" if sender.silent else None)
                if why is not None and not sender.told:
                    text = f"process {rank} {why}: the layers that it has a part of are not recorded"
            if text is not None:
                sender.told = part is None
                print_to_stderr(f"root-dash: {text}; training goes on")
                events.append(Event("ranks", text, step, time.time()))
        return Joined(merged(sources), tuple(events), lost=int(missing))

    def close(self) -> None:
        """Take no more: closes the connections, and ends the threads that wait for something to come.

        They must not outlive the interpreter: a thread that comes back from a wait while it ends, ends the process.
        """
        self.abandon()
        for thread in self._threads:
            thread.join(_ENDING_SECONDS)

    def abandon(self) -> None:
        """Let go of everybody that is waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            # A process whose connection is closed while it sends would wait for ever; none begins now.
            self._changed.wait_for(
                lambda: not any(sender.receiving for sender in self._senders.values()), _ENDING_SECONDS
            )
        for rank in list(self._senders)[:1]:
            _disconnect(self._group, rank)

    def _part(self, sender: _Sender, step: int, deadline: float) -> Part | None:
        """What a process measured at a step; None where it has sent none, or gives none in time."""
        with self._changed:
            while True:
                while sender.waiting and sender.waiting[0][0].step < step:
                    self._taken(sender)
                if sender.waiting:
                    return self._taken(sender) if sender.waiting[0][0].step == step else None
                if sender.silent or sender.ended is not None or self._closed:
                    return None
                sender.silent = not self._changed.wait(deadline - time.monotonic())

    def _taken(self, sender: _Sender) -> Part:
        part, size = sender.waiting.popleft()
        self._bytes -= size
        self._changed.notify_all()
        return part

    def _receive(self, rank: int, sender: _Sender) -> None:
        try:
            while (message := self._message(rank, sender)) is not None:
                self._put(sender, unpacked(message.numpy()), len(message) + _MESSAGE_BYTES)
            reason = "has ended its recording"
        except RuntimeError:  # of the connection
            reason = "is gone"
        except Exception as error:
            reason = f"has sent what cannot be read ({_first_line(error)})"
        with self._changed:
            sender.ended = reason
            self._changed.notify_all()

    def _message(self, rank: int, sender: _Sender) -> Tensor | None:
        """The next message of a process, None where it has ended: waits for as long as it takes."""
        size = torch.empty(1, dtype=torch.int64)
        self._group.recv([size], rank, _SIZE).wait(_FOREVER)
        if not 0 <= int(size) < _LARGEST:
            raise ValueError(f"a message of {int(size)} bytes")
        with self._changed:
            if int(size) == 0 or self._closed:
                return None
            sender.receiving = True
        try:
            message = torch.empty(int(size), dtype=torch.uint8)
            self._group.recv([message], rank, _BODY).wait(_FOREVER)
        finally:
            with self._changed:
                sender.receiving = False
                self._changed.notify_all()
        return message

    def _put(self, sender: _Sender, part: Part, size: int) -> None:
        with self._changed:
            # One may always wait: it may be the very one that is waited for.
            self._changed.wait_for(lambda: self._closed or not sender.waiting or self._bytes + size <= WAITING_BYTES)
            if not self._closed:
                sender.waiting.append((part, size))
                sender.silent = False
                self._bytes += size
                self._changed.notify_all()


def _disconnect(group: ProcessGroup, rank: int) -> None:
    """Close all connections of the group here: what waits for one then fails. By a wait that ends, as gloo has it."""
    try:
        group.recv([torch.empty(1, dtype=torch.uint8)], rank, _NOTHING).wait(_AT_ONCE)
    except RuntimeError:
        pass


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _several() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def _agreed(group: ProcessGroup, layers: Sequence[Layer], sends: bool) -> list[int]:
    """Which processes have something to send, once all have said that they watch the same layers."""
    described = [(layer.name, layer.shape, layer.algorithm, layer.position) for layer in layers]
    digest = hashlib.sha256(repr(described).encode()).digest()
    said = torch.frombuffer(bytearray([*digest, sends]), dtype=torch.uint8)
    found = [torch.empty_like(said) for _ in range(group.size())]
    torch.distributed.all_gather(found, said, group)
    others = [rank for rank, one in enumerate(found) if not torch.equal(one[:-1], found[0][:-1])]
    if others:
        raise ValueError(
            f"ranks must watch the same layers where parameters are sharded, got others on {others} than on 0: "
            "what they measure of their shards could not be put together"
        )
    return [rank for rank, one in enumerate(found) if int(one[-1])]
