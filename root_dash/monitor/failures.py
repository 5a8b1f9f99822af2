"""Failures of the recording: counted, shown once, and never raised into the training."""

from __future__ import annotations

import sys
import traceback

FAILURES = 3
"""The number of failures in a row after which the recorder gives up."""


class Failures:
    """Counts failures of the recording, shows the first, and reports when recording gives up; never raises."""

    def __init__(self, limit: int | None = FAILURES) -> None:
        self.count = 0
        self.gave_up = False
        self._limit = limit
        self._in_a_row = 0

    def add(self, doing: str, error: Exception) -> None:
        """Count a failure while `doing` something."""
        self.count += 1
        self._in_a_row += 1
        if self.count == 1:
            trace = "".join(traceback.format_exception(error))
            print_to_stderr(f"root-dash: failed {doing}; training goes on, this is shown once\n{trace}")
        if self._limit is not None and self._in_a_row >= self._limit and not self.gave_up:
            self.gave_up = True
            print_to_stderr(f"root-dash: recording is off after {self._in_a_row} failures, the last: {error}")

    def clear(self) -> None:
        """Forget the failures so far: only failures in a row are a reason to give up."""
        self._in_a_row = 0


def print_to_stderr(text: str) -> None:
    """Write a line to stderr; a stderr that is closed, missing, or cannot encode a letter is no reason to fail."""
    try:
        sys.stderr.write(text + "\n")
    except (AttributeError, OSError, ValueError):
        pass
