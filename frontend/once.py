"""A bounded cache of answers: each answer is made once, also if many threads ask at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np
from dash.development.base_component import Component

BYTES = 64 * 2**20
"""The size of all kept answers, estimated."""


class Once:
    """Answers by key. The answers used last are kept, up to `limit` bytes.

    If several threads ask for the same key, one makes the answer, and the others wait.
    """

    def __init__(self, limit: int = BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._size = 0

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the kept answer of a key, or make the answer.

        An error of `make` goes to all waiting threads, and is not kept.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            waiting = self._making.get(key)
            if waiting is None:
                made = self._making[key] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            answer = make()
        except BaseException as error:
            made.set_exception(error)
            with self._lock:
                del self._making[key]
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, answer)
        made.set_result(answer)
        return answer

    def _keep(self, key: Hashable, answer: Any) -> None:
        size = weight(answer)
        if size > self._limit:
            return
        self._kept[key] = answer, size
        self._size += size
        while self._size > self._limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self._size -= freed


def weight(answer: Any) -> int:
    """Return about how many bytes an answer of dictionaries, lists, texts, numbers, arrays and components takes."""
    if isinstance(answer, str):
        return len(answer) + 50
    if isinstance(answer, np.ndarray):
        return 100 + answer.nbytes
    if isinstance(answer, Component):
        return weight(vars(answer))
    if isinstance(answer, dict):
        return 100 + sum(weight(key) + weight(value) for key, value in answer.items())
    if isinstance(answer, list | tuple):
        return 60 + sum(map(weight, answer))
    return 50
