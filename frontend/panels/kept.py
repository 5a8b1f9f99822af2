"""Keeping what a panel reads for a few seconds: not every frame is worth a large read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from root_dash.store import Store

T = TypeVar("T")


class Kept(Generic[T]):
    """A function of a store and a run, whose answer is kept for `period` seconds."""

    RUNS = 16
    """Runs of a store whose answers are kept."""

    def __init__(
        self, read: Callable[[Store, int], T], period: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.period = period
        self._read = read
        self._clock = clock
        self._known: WeakKeyDictionary[Store, dict[int, tuple[float, T]]] = WeakKeyDictionary()

    def __call__(self, store: Store, run_id: int) -> T:
        """Return the answer for a run, at most `period` seconds old."""
        known, now = self._known.setdefault(store, {}), self._clock()
        before = known.get(run_id)
        if before is not None and now - before[0] < self.period:
            return before[1]
        answer = self._read(store, run_id)
        if len(known) >= self.RUNS:
            known.clear()
        known[run_id] = (now, answer)
        return answer
