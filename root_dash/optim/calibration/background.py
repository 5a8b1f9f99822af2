"""One background thread per process, for what the training thread must not wait for, and how tensors get there.

The thread is a daemon and starts with the first job. A forked process has none of its parent's threads: it starts its
own, and does what its parent's had left undone for it where the result is asked for.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A computation in the background, begun at once. It must be a pure function: it may be done twice after a fork."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._process = os.getpid()
        self._done = False
        self._finished = threading.Event()
        _begin(self)

    def result(self) -> T:
        """What was computed, waiting for it where it must; raises what the computation raised."""
        if self._process == os.getpid():
            self._finished.wait()
        elif not self._done:
            self.run()
        if self._error is not None:
            raise self._error
        return self._value

    def run(self) -> None:
        """Compute, in the thread that calls this."""
        self._error: BaseException | None = None
        try:
            self._value = self._compute()
        except BaseException as error:  # re-raised where the result is asked for
            self._error = error
        self._done = True  # before the event, whose lock a fork may copy in any state
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
