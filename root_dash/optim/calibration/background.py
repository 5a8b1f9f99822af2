"""One background thread per process, for work that the training thread must not wait for.

The thread is a daemon and starts with the first job. A forked process has none of its parent's threads: the child
starts a thread of its own, and computes an unfinished job of the parent when the result is asked for.

When the process ends, waiting jobs are dropped, and the process waits for the job in progress. Otherwise Python would
cut the thread off inside of torch's C++ frames, which aborts the process although the training has ended.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

END_SECONDS = 60.0
"""How long the end of the process waits for the job in progress. A calibration takes at most a few seconds."""


class Job(Generic[T]):
    """A computation in the background, begun at once. `compute` must be pure, because a fork may call it twice."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._process = os.getpid()
        self._done = False
        self._finished = threading.Event()
        _begin(self)

    def result(self) -> T:
        """Wait for the computation, and return its result or raise its error."""
        if self._process == os.getpid():
            self._finished.wait()
        elif not self._done:
            self.run()
        if self._error is not None:
            raise self._error
        return self._value

    def run(self) -> None:
        """Compute in the calling thread."""
        self._error: BaseException | None = None
        try:
            self._value = self._compute()
        except BaseException as error:  # `result` raises the error again
            self._error = error
        self._done = True  # set before the event, because a fork may copy the lock of the event in any state
        self._finished.set()

    def cancel(self) -> None:
        """Let `result` raise an error instead of waiting for a computation that never begins."""
        self._error = RuntimeError("the process ended before the computation began")
        self._done = True
        self._finished.set()


_jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
"""Waiting jobs. None ends the thread."""
_thread: threading.Thread | None = None
_lock = threading.Lock()
_ended = False


def _begin(job: Job[Any]) -> None:
    global _thread
    with _lock:
        if not _ended and _thread is None:
            _thread = threading.Thread(target=_work, args=(_jobs,), name="root-dash calibration", daemon=True)
            _thread.start()
        if not _ended:
            return _jobs.put(job)
    job.run()


def _work(jobs: queue.SimpleQueue[Job[Any] | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()


def _end() -> None:
    """Cancel the waiting jobs, and wait for the job in progress. A later job runs in the thread that begins the job."""
    global _ended
    with _lock:
        _ended = True
        if _thread is None:
            return
        with suppress(queue.Empty):
            while (job := _jobs.get_nowait()) is not None:
                job.cancel()
        _jobs.put(None)
    _thread.join(END_SECONDS)


atexit.register(_end)


def _forget() -> None:
    global _jobs, _thread, _lock
    _jobs, _thread, _lock = queue.SimpleQueue(), None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
