"""The end of a process: waiting frames are stored, and sentinels that belong to no frame yet."""

from __future__ import annotations

import time

from root_dash.monitor.sentinels.rows import Sentinels
from root_dash.monitor.writing.pending import PendingFrame
from root_dash.monitor.writing.sigterm import forget
from root_dash.monitor.writing.transfer import send
from root_dash.monitor.writing.writer import Writer


class Drain:
    """Hands over the last sentinels, and closes the writer.

    A drain holds neither the recorder nor the model. Any thread may close a drain: when a signal ends the process, the
    training thread may hang.
    """

    def __init__(self, writer: Writer, sentinels: Sentinels) -> None:
        self._writer = writer
        self._sentinels = sentinels

    @property
    def pending(self) -> int:
        """The number of frames that wait."""
        return self._writer.pending

    def flush(self) -> None:
        """Hand over the waiting sentinels as a frame of their last step."""
        if rows := self._sentinels.take():
            self._writer.put(PendingFrame(rows[-1].step, time.time(), (), send({}), {}, 0.0, sentinels=rows))

    def close(self, timeout: float) -> bool:
        """Store all waiting frames, for at most `timeout` seconds; return whether all were stored."""
        self.flush()
        return self._writer.close(timeout)

    def release(self) -> None:
        """Let the writer store the waiting frames, and return at once."""
        forget(self)
        self.flush()
        self._writer.release()
