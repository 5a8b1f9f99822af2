"""What a scheduler's SIGTERM does to a recording: the frames that wait are stored, and the signal ends the process.

Without a handler Python ends at once, and frames in the queue are lost. A handler is set only if the process has none
of its own, and the exit status stays the status of a process that SIGTERM ended. Python runs handlers between two of
its instructions, and so never while the main thread hangs within a call of C: a collective whose peers are gone, a
kernel that does not return. For such a process a thread is woken from within the signal itself, through
`signal.set_wakeup_fd`, and ends the process. Two cases are left to SIGKILL: a call of C that keeps the interpreter's
lock, so that no thread runs, and a process in which other code, such as asyncio, is woken instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Protocol

from root_dash.monitor.failures import print_to_stderr

TERMINATED_SECONDS = 5.0
"""How long SIGTERM waits for frames to be stored; Docker kills 10 s after it, Slurm and Kubernetes 30 s."""

_REPORT_SECONDS = 1.0
"""How long a message about lost frames may take to be written."""

_CREDENTIALS = struct.Struct("3i")
"""What Linux tells about the writer of a socket: process, user and group."""


class Draining(Protocol):
    """Something that has frames to store before the process ends."""

    @property
    def pending(self) -> int:
        """The number of frames that wait."""

    def close(self, timeout: float) -> bool:
        """Store the frames that wait, for at most `timeout` seconds; return whether all were stored."""


_open: list[Draining] = []
_ends = threading.Lock()
"""Held by the one thread that ends the process."""
_alarm: tuple[socket.socket, socket.socket] | None = None
"""The socket to which Python writes the number of a signal, and the socket from which our thread reads it."""


def drain_on_termination(writer: Draining) -> None:
    """Let SIGTERM wait for a writer, and then end the process as it would have without waiting.

    Nothing is done if the process handles or ignores SIGTERM already, or outside the main thread: Python allows no
    handler there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGTERM) is _terminate:
        _open.append(writer)
        _set_alarm()


def forget(writer: Draining) -> None:
    """Undo `drain_on_termination`; a handler that other code has set since stays."""
    if writer in _open:
        _open.remove(writer)
    if _open or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _unset_alarm()


def _terminate(number: int, frame: FrameType | None) -> None:
    """End the process from another thread: the interrupted thread may hold the lock that the writer waits for."""
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    try:
        threading.Thread(target=_drain, args=(number,), name="root-dash-termination", daemon=True).start()
    except RuntimeError:  # the interpreter is ending already, and has stored the frames
        os.kill(os.getpid(), number)


def _drain(number: int) -> None:
    if not _ends.acquire(blocking=False):
        return
    until = time.monotonic() + TERMINATED_SECONDS
    for writer in list(_open):
        if not writer.close(max(until - time.monotonic(), 0.0)) and writer.pending:
            _report(f"root-dash: terminated with {writer.pending} frames that could not be stored in time")
    os.kill(os.getpid(), number)


def _report(text: str) -> None:
    """Write to stderr from a thread that is left behind if stderr is a full pipe that nobody reads."""
    writing = threading.Thread(target=print_to_stderr, args=(text,), daemon=True)
    with suppress(RuntimeError):  # the interpreter is ending already
        writing.start()
        writing.join(_REPORT_SECONDS)


def _set_alarm() -> None:
    """Have a thread of ours woken by signals, unless other code is woken already."""
    global _alarm
    if os.name != "posix":
        return  # nothing sends SIGTERM on other systems
    writes, reads = _alarm or socket.socketpair()
    writes.setblocking(False)
    if hasattr(socket, "SO_PASSCRED"):
        reads.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    theirs = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    if theirs not in (-1, writes.fileno()):
        signal.set_wakeup_fd(theirs)
        if _alarm is None:
            writes.close()
            reads.close()
    elif _alarm is None:
        _alarm = writes, reads
        default = ctypes.CDLL(None).signal  # found now: a thread that hangs may hold the loader's lock
        threading.Thread(target=_listen, args=(reads, default), name="root-dash-signals", daemon=True).start()


def _unset_alarm() -> None:
    """Undo `_set_alarm`. Code that is woken instead may put our socket back later: then it stays open, and unused."""
    global _alarm
    if _alarm is None:
        return
    woken = signal.set_wakeup_fd(-1)
    if woken != _alarm[0].fileno():
        signal.set_wakeup_fd(woken)
        return
    _alarm[0].close()  # ends the thread
    _alarm = None


def _listen(reads: socket.socket, default: Callable[[int, None], object]) -> None:
    with reads:
        for number in _signals(reads):
            if number == signal.SIGTERM and signal.getsignal(number) is _terminate:
                default(number, None)  # as `signal.signal` would, which the main thread alone may call
                _drain(number)


def _signals(reads: socket.socket) -> Iterator[int]:
    """Yield the numbers of this process's signals; a forked process writes to the same socket until it closes it."""
    while True:
        written, writers, *_ = reads.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not written:
            return
        if all(_CREDENTIALS.unpack(writer)[0] == os.getpid() for _, _, writer in writers):
            yield written[0]


def _forget_in_child() -> None:
    """Let SIGTERM end a forked process, such as a DataLoader's worker, at once: it has nothing to store."""
    global _alarm
    if _alarm is not None:
        _, reads = _alarm
        _unset_alarm()
        _alarm = None
        reads.close()
    if _open:
        _open.clear()
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
