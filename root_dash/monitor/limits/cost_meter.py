"""Measures what each kind of recording takes of the training, without waiting for a device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from root_dash.monitor.limits.budget import Charge

WAITING_STEPS = 64
"""Steps whose device times may be missing before they are settled without these times."""


@dataclass(slots=True)
class StepCost:
    """What recording a step cost: seconds of the training thread by kind, and pairs of events on a device's stream.

    If the model trains on the cores that the writer's thread computes on, the seconds of that thread count too. They
    are charged to the heaviest kind of the frame.
    """

    host: dict[Charge, float] = field(default_factory=dict)
    events: list[tuple[Charge, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    step_time: float = 0.0
    awaits_writer: bool = False
    writer: tuple[Charge, float] | None = None

    @property
    def complete(self) -> bool:
        """Whether the device has passed all events, and the writer has stored the frame."""
        written = self.writer is not None or not self.awaits_writer
        return written and all(end.query() for _, _, end in self.events)

    def by_kind(self) -> dict[Charge, float]:
        """Return seconds by kind: the larger of the thread's and the device's, since they run side by side."""
        device: dict[Charge, float] = {}
        for kind, begin, end in self.events if self.complete else ():
            device[kind] = device.get(kind, 0.0) + begin.elapsed_time(end) / 1e3
        costs = {kind: max(seconds, device.get(kind, 0.0)) for kind, seconds in self.host.items()}
        if self.writer is not None:
            kind, seconds = self.writer
            costs[kind] = costs.get(kind, 0.0) + seconds
        return costs


class CostMeter:
    """Keeps the cost of each step. On CUDA the device's time is read when it is known, some steps later."""

    def __init__(self) -> None:
        self.current = StepCost()
        """The cost of the step that is under way."""
        self._waiting: deque[StepCost] = deque()

    @contextmanager
    def timed(self, kind: Charge, device: torch.device) -> Iterator[None]:
        """Charge what is done in this context to a kind."""
        begin = _event(device)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.charge(kind, time.perf_counter() - started)
            end = _event(device)
            if begin is not None and end is not None:
                self.current.events.append((kind, begin, end))

    def charge(self, kind: Charge, seconds: float) -> None:
        """Charge the training thread's time to a kind."""
        self.current.host[kind] = self.current.host.get(kind, 0.0) + seconds

    @property
    def charged(self) -> bool:
        """Whether anything was charged to the step that is under way, or will be."""
        return bool(self.current.host) or self.current.awaits_writer

    def total(self) -> float:
        """Return the seconds of the training thread that were charged in this step."""
        return sum(self.current.host.values())

    def settle(self, step_time: float) -> Iterator[StepCost]:
        """End the step, which took `step_time` seconds without recording, and yield the complete costs in order."""
        self.current.step_time = step_time
        self._waiting.append(self.current)
        self.current = StepCost()
        while self._waiting and (len(self._waiting) > WAITING_STEPS or self._waiting[0].complete):
            yield self._waiting.popleft()


def _event(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
