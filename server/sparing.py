"""A log that a flood of requests cannot flood."""

from __future__ import annotations

import logging


class Sparing(logging.Filter):
    """Lets each place in the code log a line without a traceback once a minute, and tells how many were left out.

    Who sends junk would otherwise fill the disk with what is said of it.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._told: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.exc_info:
            return True
        place = record.pathname, record.lineno
        told, left_out = self._told.get(place, (float("-inf"), 0))
        if record.created - told < self._seconds:
            self._told[place] = told, left_out + 1
            return False
        self._told[place] = record.created, 0
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like it since the last)"
        return True
