"""Waiting until a run has grown: PostgreSQL notifies its listeners, a SQLite file is asked again after a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine

from root_dash.exceptions import StoreError
from root_dash.store.backends import postgres
from root_dash.store.backends.backend import Backend

_IDLE_CHECK_SECONDS = 0.25
"""How often the listening thread checks whether any run still has a follower."""


class Follower:
    """A follower of a run, which waits in an event loop until the run may have grown."""

    def __init__(self, quiet_seconds: float | None = None) -> None:
        """Make a follower of a run. Without `quiet_seconds` there are no notifications, and the follower only waits."""
        self._quiet_seconds = quiet_seconds
        self._grown = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def wait(self, interval: float) -> None:
        """Wait until the run may have grown; without notifications, wait for `interval` seconds."""
        if self._quiet_seconds is None:
            await asyncio.sleep(interval)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._quiet_seconds):  # wait_for may swallow the cancellation of its task
                await self._grown.wait()
        self._grown.clear()  # later frames are announced again, and earlier frames can be read

    def wake(self) -> None:
        """End the wait, from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._grown.set)


class Listener:
    """A connection to a PostgreSQL server, open while any run has a follower, and the thread that listens."""

    def __init__(self, backend: Backend, engine: Engine) -> None:
        self._backend = backend
        self._engine = engine
        self._followers: dict[Follower, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @contextmanager
    def following(self, run_id: int) -> Iterator[Follower]:
        """Yield a follower that wakes up whenever a frame of the run is stored."""
        follower = Follower(self._backend.limits.quiet_seconds)
        with self._lock:
            self._followers[follower] = run_id
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="root-dash-listener", daemon=True)
                self._thread.start()
        try:
            yield follower
        finally:
            with self._lock:
                del self._followers[follower]

    def close(self) -> None:
        """End the thread. Followers are not woken any more."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(2 * _IDLE_CHECK_SECONDS)

    def _is_idle(self) -> bool:
        return not self._followers or self._closing.is_set()

    def _wake(self, run_id: int | None) -> None:
        with self._lock:
            found = [follower for follower, run in self._followers.items() if run_id in (run, None)]
        for follower in found:
            follower.wake()

    def _listen(self) -> None:
        while True:
            with self._lock:
                if self._is_idle():
                    self._thread = None
                    return
            try:
                with self._backend.translated():
                    self._hear()
            except StoreError:
                # The followers ask meanwhile, and get the error.
                self._closing.wait(self._backend.limits.quiet_seconds)

    def _hear(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw: Any = connection.connection.driver_connection
            try:
                connection.exec_driver_sql(f"LISTEN {postgres.CHANNEL}")
                self._wake(None)  # frames may have come before the connection listened
                while not self._is_idle():
                    for heard in raw.notifies(timeout=_IDLE_CHECK_SECONDS):
                        self._wake(int(heard.payload) if heard.payload.isdecimal() else None)
            finally:
                connection.invalidate()  # this connection listens, and must not return to the pool
