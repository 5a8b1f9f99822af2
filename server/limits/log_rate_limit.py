"""A limit on repeated log lines, so that a flood of bad requests does not fill the disk."""

from __future__ import annotations

import logging


class LogRateLimit(logging.Filter):
    """A filter that lets each place in the code log a line without a traceback once per period.

    The next line from the same place counts the omitted lines. A line with a traceback always passes.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._logged: dict[tuple[str, int], tuple[float, int]] = {}  # place -> last time, lines left out since then

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is logged, and add the number of omitted lines."""
        if record.exc_info:
            return True
        place = record.pathname, record.lineno
        last, left_out = self._logged.get(place, (float("-inf"), 0))
        if record.created - last < self._seconds:
            self._logged[place] = last, left_out + 1
            return False
        self._logged[place] = record.created, 0
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like it since the last)"
        return True
