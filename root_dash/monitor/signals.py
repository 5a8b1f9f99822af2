"""What a scheduler's SIGTERM does to a recording: what is waiting is stored, and then the process ends by the signal.

Without a handler Python ends at once, and what waits in the queue is lost. One is set only where the process has none
of its own, and the exit status stays that of a process that SIGTERM ended. One thing changes: Python runs handlers
between two of its instructions, so a process that hangs within a call of C no longer ends by SIGTERM, but by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Protocol

from root_dash.monitor.failures import print_to_stderr

TERMINATED_SECONDS = 5.0
"""How long SIGTERM waits for frames to be stored; Docker kills 10 s after it, Slurm and Kubernetes 30 s."""


class Draining(Protocol):
    """What has something to store before the process ends."""

    @property
    def pending(self) -> int:
        """How many frames wait."""

    def close(self, timeout: float) -> bool:
        """Store what waits, for at most `timeout` seconds; whether all was."""


_open: list[Draining] = []


def drain_on_termination(writer: Draining) -> None:
    """Let SIGTERM wait for a writer, and then end the process as if nobody had.

    Nothing is done where the process handles or ignores SIGTERM already, nor outside the main thread, where Python
    allows no handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGTERM) is _terminate:
        _open.append(writer)


def forget(writer: Draining) -> None:
    """Undo `drain_on_termination`; a handler that somebody else has set since stays."""
    if writer in _open:
        _open.remove(writer)
    if _open or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End from another thread: the one that was interrupted may hold the lock that the writer waits for."""
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    try:
        threading.Thread(target=_drain, args=(number,), name="root-dash-termination", daemon=True).start()
    except RuntimeError:  # the interpreter is ending already, and has drained
        os.kill(os.getpid(), number)


def _drain(number: int) -> None:
    until = time.monotonic() + TERMINATED_SECONDS
    for writer in list(_open):
        if not writer.close(max(until - time.monotonic(), 0.0)) and writer.pending:
            print_to_stderr(f"root-dash: terminated with {writer.pending} frames that could not be stored in time")
    os.kill(os.getpid(), number)


def _forget_in_child() -> None:
    """A forked process has nothing to store, and SIGTERM ends it as it would have: a DataLoader's workers."""
    if _open:
        _open.clear()
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
