"""Waiting for what other threads and processes do: for the condition itself, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

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
