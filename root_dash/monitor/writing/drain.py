"""What must be stored before a process ends: the frames that wait, and the sentinels that no frame has yet."""

from __future__ import annotations

import time

from root_dash.monitor.sentinels.rows import Sentinels
from root_dash.monitor.writing.pending import PendingFrame
from root_dash.monitor.writing.sigterm import forget
from root_dash.monitor.writing.transfer import send
from root_dash.monitor.writing.writer import Writer


class Drain:
    """Hands over the last sentinels, and closes the writer.

    It holds neither the recorder nor the model, and another thread than the training's may close it: when a signal ends
    the process, the training's may hang.
    """

    def __init__(self, writer: Writer, sentinels: Sentinels) -> None:
        self._writer = writer
        self._sentinels = sentinels

    @property
    def pending(self) -> int:
        """The number of frames that wait."""
        return self._writer.pending

    def flush(self) -> None:
        """Hand over the sentinels that wait as a frame of the last step that they speak of."""
        if rows := self._sentinels.take():
            self._writer.put(PendingFrame(rows[-1].step, time.time(), (), send({}), {}, 0.0, sentinels=rows))

    def close(self, timeout: float) -> bool:
        """Store what waits, for at most `timeout` seconds; return whether all was stored."""
        self.flush()
        return self._writer.close(timeout)

    def release(self) -> None:
        """Let what waits be stored, without waiting for it."""
        forget(self)
        self.flush()
        self._writer.release()
