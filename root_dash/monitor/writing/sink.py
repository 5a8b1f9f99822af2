"""Sinks of frames: the store, a spool on its way to a server, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from root_dash.records import Frame, Layer


class Sink(Protocol):
    """The destination of a run's frames. Only the writer's thread uses a sink."""

    def append(self, frame: Frame) -> object:
        """Store a frame, whole or not at all. A frame that is stored already does not change."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Add new layers to the run, before the first frame with these layers."""

    def end(self, time: float, lost: int) -> None:
        """End the run: no more frames come, and `lost` frames were lost since the last stored frame."""

    def close(self) -> None:
        """Release the resources of the sink."""


class NullSink:
    """A sink without storage, for a process that does not store frames."""

    def append(self, frame: Frame) -> object:
        """Drop the frame."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Drop the layers."""

    def end(self, time: float, lost: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
