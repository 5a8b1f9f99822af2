"""Let threads begin together, and wait for what they and processes do: for the condition itself, never for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

LIMIT_SECONDS = 300.0
"""A guard against a test that hangs: no test passes or fails by it on a machine that is busy."""


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Return as soon as the condition holds; it is asked again every 5 ms.

    Raises:
        AssertionError: it did not hold within `LIMIT_SECONDS`.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not hold within {LIMIT_SECONDS:g} s"
        time.sleep(0.005)


def at_once(work: Callable[[int], object], threads: int = 4) -> None:
    """Run work, given its number, in threads that begin at the same moment; raise the first error of any."""
    start = threading.Barrier(threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: (start.wait(LIMIT_SECONDS), work(number)), range(threads)))
