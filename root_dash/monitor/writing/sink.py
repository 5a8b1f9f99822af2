"""Where frames go: the store, a spool on its way to a server, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from root_dash.records import Frame, Layer


class Sink(Protocol):
    """Takes the frames of one run. Only the writer's thread uses it."""

    def append(self, frame: Frame) -> object:
        """Store a frame, whole or not at all; storing it again changes nothing."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Take layers that the run did not have at its start, before the first frame that names them."""

    def end(self, time: float, lost: int) -> None:
        """End the run: no more frames come, and `lost` were lost since the last frame that was stored."""

    def close(self) -> None:
        """Release what the sink holds."""


class NullSink:
    """A sink that keeps nothing, for a process that does not store frames."""

    def append(self, frame: Frame) -> object:
        """Drop the frame."""

    def extend(self, layers: Sequence[Layer]) -> object:
        """Drop the layers."""

    def end(self, time: float, lost: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
