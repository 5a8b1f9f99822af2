"""One background thread per process, for work that the training thread must not wait for.

The thread is a daemon and starts with the first job. A forked process has none of its parent's threads: it starts a
thread of its own, and computes an unfinished job of the parent when the result is asked for.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A computation in the background, begun at once. It must be a pure function, because a fork may run it twice."""

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
        except BaseException as error:  # `result` raises it again
            self._error = error
        self._done = True  # set before the event, because a fork may copy the lock of the event in any state
        self._finished.set()


_jobs: queue.SimpleQueue[Job[Any]] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def _begin(job: Job[Any]) -> None:
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_work, args=(_jobs,), name="root-dash calibration", daemon=True)
            _thread.start()
        _jobs.put(job)


def _work(jobs: queue.SimpleQueue[Job[Any]]) -> None:
    while True:
        jobs.get().run()


def _forget() -> None:
    global _jobs, _thread, _lock
    _jobs, _thread, _lock = queue.SimpleQueue(), None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
