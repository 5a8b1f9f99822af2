"""How the measurements of other processes come to the first, which stores them as one frame.

They go from the writer's thread of each process to the writer's thread of the first, over a process group of the
recorders' own. The training threads send nothing and wait for nothing: neither for each other nor for a process that
lags or has died.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from root_dash.monitor.failures import print_to_stderr
from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.quantities.sentinels import SENTINELS
from root_dash.monitor.ranks.merge import Joined, merged, with_earlier
from root_dash.monitor.ranks.message import RankMessage, decode_message, encode_message
from root_dash.records import Event

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OVERHEAD_BYTES = 1024
"""About what a received message holds beside its own bytes."""
_LARGEST = 2**31
"""Bytes beyond which a message cannot be one of ours."""
_FOREVER = timedelta(days=365)
"""A time-out that never comes. After a wait of the group's default length gloo would close all its connections."""
_SIZE_TAG, _BODY_TAG, _UNUSED_TAG = 1, 2, 3
_IMMEDIATELY = timedelta(milliseconds=1)
_ENDING_SECONDS = 5.0
"""How long threads may take to end after their connections were closed; they take milliseconds."""


@dataclass(frozen=True, slots=True)
class RankLimits:
    """For how long, and for how much, the first process waits.

    Args:
        patience_seconds: how long its writer waits for what another process measured at a step, before it goes on
            without that process.
        waiting_bytes: what may have come from other processes and wait for the first process's own frames. Further
            messages wait where they are.
    """

    patience_seconds: float = 30.0
    waiting_bytes: int = 64 * 2**20


DEFAULT_LIMITS = RankLimits()


class RankSender:
    """Sends the measurements of a process to the first process."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._closed = False

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """Send what was measured at a step, even if nothing was; nothing remains to be stored here."""
        if self._closed:
            return Joined([], lost=1)
        message = torch.from_numpy(encode_message(RankMessage(step, tuple(groups))))
        try:
            self._send(torch.tensor([len(message)]), _SIZE_TAG)
            self._send(message, _BODY_TAG)
        except RuntimeError:  # the connection is lost
            self._closed = True
            print_to_stderr("root-dash: process 0 takes no more of what is measured here; training goes on")
            return Joined([], lost=1)
        return Joined([])

    def close(self) -> None:
        """Tell the first process, which may have ended by now, that nothing more will come."""
        if not self._closed:
            try:
                self._send(torch.tensor([0]), _SIZE_TAG)
            except RuntimeError:
                self._closed = True

    def abandon(self) -> None:
        """Stop sending."""
        _disconnect(self._group, 0)

    def _send(self, tensor: Tensor, tag: int) -> None:
        self._group.send([tensor], 0, tag).wait(_FOREVER)


@dataclass(slots=True)
class _Peer:
    """Another process, as the first process sees it."""

    waiting: deque[tuple[RankMessage, int]] = field(default_factory=deque)
    """Its messages in order, with their bytes."""
    ended: str | None = None
    """Why no more messages will come; None if more may come."""
    silent: bool = False
    """Whether the first process waited for it in vain, and has not heard it since."""
    sentinels: list[LayerGroup] = field(default_factory=list)
    """The sentinels of steps of which the first process made no frame: they go with its next."""
    reported: bool = False
    """Whether an event of the recording says that it is missing."""
    receiving: bool = False
    """Whether a message of it is on its way."""


class RankReceiver:
    """Receives what the other processes send to the first, each in a thread of its own."""

    def __init__(self, group: ProcessGroup, ranks: Sequence[int], limits: RankLimits = DEFAULT_LIMITS) -> None:
        self._group = group
        self.limits = limits
        self._peers = {rank: _Peer() for rank in ranks}
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._receive, args=item, name=f"root-dash-rank-{item[0]}", daemon=True)
            for item in self._peers.items()
        ]
        for thread in self._threads:
            thread.start()

    def join(self, step: int, groups: Sequence[LayerGroup]) -> Joined:
        """Return what was measured at a step by all processes; waits for the others within the patience.

        A process that has died, or does not answer in time, is not waited for until it is heard again. Meanwhile the
        layers that it has a part of are missing, and events say so.
        """
        deadline = time.monotonic() + self.limits.patience_seconds
        sources, events, missing = [groups], list[Event](), False
        for rank, peer in self._peers.items():
            message = self._message_of(peer, step, deadline)
            text = None
            if message is not None:
                sources.append(message.groups)
                if peer.reported:
                    text = f"process {rank} is heard again: the layers that it has a part of are recorded"
            else:
                missing = missing or not peer.reported
                why = peer.ended or (f"was silent for {self.limits.patience_seconds:g} s" if peer.silent else None)
                if why is not None and not peer.reported:
                    text = f"process {rank} {why}: the layers that it has a part of are not recorded"
            if text is not None:
                peer.reported = message is None
                print_to_stderr(f"root-dash: {text}; training goes on")
                events.append(Event("ranks", text, step, time.time()))
        return Joined(merged(sources), tuple(events), lost=int(missing))

    def close(self) -> None:
        """Close the connections, and end the threads that wait for messages.

        The threads must not outlive the interpreter: a thread that returns from a wait while the interpreter ends
        aborts the process.
        """
        self.abandon()
        for thread in self._threads:
            thread.join(_ENDING_SECONDS)

    def abandon(self) -> None:
        """Stop waiting for other processes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            # A process whose connection is closed while it sends would wait for ever. No message begins any more.
            self._changed.wait_for(lambda: not any(peer.receiving for peer in self._peers.values()), _ENDING_SECONDS)
        for rank in list(self._peers)[:1]:
            _disconnect(self._group, rank)

    def _message_of(self, peer: _Peer, step: int, deadline: float) -> RankMessage | None:
        """Return what a process measured at a step; None if it sent nothing for the step, or not in time."""
        with self._changed:
            while True:
                while peer.waiting and peer.waiting[0][0].step < step:
                    peer.sentinels += [one for one in self._taken(peer).groups if SENTINELS.name in one.arrays]
                if peer.waiting:
                    if peer.waiting[0][0].step != step:
                        return None
                    message = self._taken(peer)
                    earlier, peer.sentinels = peer.sentinels, []
                    return replace(message, groups=tuple(with_earlier(earlier, message.groups)))
                if peer.silent or peer.ended is not None or self._closed:
                    return None
                peer.silent = not self._changed.wait(deadline - time.monotonic())

    def _taken(self, peer: _Peer) -> RankMessage:
        message, size = peer.waiting.popleft()
        self._bytes -= size
        self._changed.notify_all()
        return message

    def _receive(self, rank: int, peer: _Peer) -> None:
        try:
            while (message := self._receive_message(rank, peer)) is not None:
                self._put(peer, decode_message(message.numpy()), len(message) + _OVERHEAD_BYTES)
            reason = "has ended its recording"
        except RuntimeError:  # the connection is lost
            reason = "is gone"
        except Exception as error:
            reason = f"has sent what cannot be read ({_first_line(error)})"
        with self._changed:
            peer.ended = reason
            self._changed.notify_all()

    def _receive_message(self, rank: int, peer: _Peer) -> Tensor | None:
        """Return the next message of a process, None if the process has ended; waits for as long as that takes."""
        size = torch.empty(1, dtype=torch.int64)
        self._group.recv([size], rank, _SIZE_TAG).wait(_FOREVER)
        if not 0 <= int(size) < _LARGEST:
            raise ValueError(f"a message of {int(size)} bytes")
        with self._changed:
            if int(size) == 0 or self._closed:
                return None
            peer.receiving = True
        try:
            message = torch.empty(int(size), dtype=torch.uint8)
            self._group.recv([message], rank, _BODY_TAG).wait(_FOREVER)
        finally:
            with self._changed:
                peer.receiving = False
                self._changed.notify_all()
        return message

    def _put(self, peer: _Peer, message: RankMessage, size: int) -> None:
        with self._changed:
            # One message may always wait: it may be the message that `join` waits for.
            room = self.limits.waiting_bytes - size
            self._changed.wait_for(lambda: self._closed or not peer.waiting or self._bytes <= room)
            if not self._closed:
                peer.waiting.append((message, size))
                peer.silent = False
                self._bytes += size
                self._changed.notify_all()


def _disconnect(group: ProcessGroup, rank: int) -> None:
    """Close all connections of the group in this process, so that what waits for them fails.

    gloo closes the connections of a group when a receive times out, so a receive is made to time out.
    """
    try:
        group.recv([torch.empty(1, dtype=torch.uint8)], rank, _UNUSED_TAG).wait(_IMMEDIATELY)
    except RuntimeError:
        pass


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
