"""Waiting until a run has grown: PostgreSQL says when, SQLite is asked again after a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine

from root_dash.exceptions import StoreError
from root_dash.store.backends import postgres
from root_dash.store.backends.location import Server

QUIET_SECONDS = 1.0
"""After so long it is asked for even where nothing was heard: a notification may be lost with its connection."""

_PATIENCE = 0.25
"""Seconds until the thread that listens looks whether anybody still wants to hear."""


class Follower:
    """Waits, in an event loop, until one run may have grown."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._grown = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def wait(self, interval: float) -> None:
        """Until the run may have grown: where nothing is heard of that, for so many seconds."""
        if self._seconds is None:
            await asyncio.sleep(interval)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):  # wait_for may swallow that its task is cancelled
                await self._grown.wait()
        self._grown.clear()  # what comes from here on is heard of again, and what came before is there to be read

    def wake(self) -> None:
        """Say so, from any thread."""
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._grown.set)


class Listener:
    """One connection to a PostgreSQL server, open while anybody follows a run, and the thread that listens to it."""

    def __init__(self, server: Server, engine: Engine) -> None:
        self._server = server
        self._engine = engine
        self._followers: dict[Follower, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @contextmanager
    def following(self, run_id: int) -> Iterator[Follower]:
        """One who is woken whenever a frame of the run is stored."""
        follower = Follower(QUIET_SECONDS)
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
        """End the thread; followers are woken no more."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(QUIET_SECONDS)

    def _idle(self) -> bool:
        return not self._followers or self._closing.is_set()

    def _tell(self, run_id: int | None) -> None:
        with self._lock:
            found = [follower for follower, run in self._followers.items() if run_id in (run, None)]
        for follower in found:
            follower.wake()

    def _listen(self) -> None:
        while True:
            with self._lock:
                if self._idle():
                    self._thread = None
                    return
            try:
                with postgres.translated(self._server):
                    self._hear()
            except StoreError:
                self._closing.wait(QUIET_SECONDS)  # its followers ask meanwhile, and are told what is wrong

    def _hear(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw: Any = connection.connection.driver_connection
            try:
                connection.exec_driver_sql(f"LISTEN {postgres.CHANNEL}")
                self._tell(None)  # what came before it listened
                while not self._idle():
                    for heard in raw.notifies(timeout=_PATIENCE):
                        self._tell(int(heard.payload) if heard.payload.isdecimal() else None)
            finally:
                connection.invalidate()  # it listens, and nobody else is to have it
