"""What goes wrong on our side: counted, shown once, and never raised into the training."""

from __future__ import annotations

import sys
import traceback

FAILURES = 3
"""After so many failures in a row the recorder gives up."""


class Failures:
    """Counts what went wrong on our side; shows the first traceback, says so when it gives up, and never raises."""

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
        """What failed before works again: only failures in a row are a reason to give up."""
        self._in_a_row = 0


def print_to_stderr(text: str) -> None:
    """Write a line to stderr; a closed or missing stderr is no reason to fail, nor is one that cannot say a letter."""
    try:
        sys.stderr.write(text + "\n")
    except (AttributeError, OSError, ValueError):
        pass
