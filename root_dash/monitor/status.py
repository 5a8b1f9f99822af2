"""What a recorder tells of itself: frames that are stored or lost, its cost, and what the diagnosis says."""

from __future__ import annotations

import os
from typing import Protocol

from root_dash.monitor.failures import Failures
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.pace import Pace
from root_dash.monitor.logged import Log
from root_dash.monitor.open_frame import OpenFrame
from root_dash.monitor.writing.writer import Writer
from root_dash.records.verdict import Verdict


class VerdictKeeper(Protocol):
    """Keeps the verdicts of the run while it trains."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The newest verdicts, by id."""

    @property
    def failures(self) -> int:
        """How often a verdict could not be told."""


class RecorderStatus:
    """The read-only part of a recorder."""

    _alerts: VerdictKeeper | None
    _begun: bool
    _closed: bool
    _failures: Failures
    _frame: OpenFrame
    _log: Log
    _pace: Pace
    _process: int
    _writer: Writer

    @property
    def pending(self) -> int:
        """Frames taken and not yet stored, including the frame that is still open."""
        return self._writer.pending + self._frame.unsealed

    @property
    def stored(self) -> int:
        """Frames that were stored."""
        return self._writer.stored

    @property
    def lost(self) -> int:
        """Frames that could not be stored, or were stored without what another process had to add."""
        return self._writer.lost

    @property
    def cadence(self) -> Cadence:
        """The present interval of each kind: as asked, or longer to keep the budget."""
        return self._pace.budget.cadence

    @property
    def left_out(self) -> int:
        """How many recordings of a kind were left out because the store could not keep up."""
        return self._pace.left_out

    @property
    def overhead(self) -> float:
        """The share of a step's time that recording adds by its own measurement; 0 before the share is known."""
        return self._pace.budget.overhead

    @property
    def failures(self) -> int:
        """How often recording failed, or telling a verdict. The first failure was shown on stderr."""
        untold = 0 if self._alerts is None else self._alerts.failures
        return self._failures.count + self._log.misused.count + self._writer.failures.count + untold

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the diagnosis says of the run so far: the newest 1,000 verdicts in their present form, by id."""
        return () if self._alerts is None else self._alerts.verdicts

    @property
    def active(self) -> bool:
        """Whether this recorder records: it has begun and is not closed, and has not given up."""
        return self._is_open and not self._failures.gave_up and not self._writer.failures.gave_up

    @property
    def _is_open(self) -> bool:
        """Whether steps are the run's: not before the run has begun, after it is closed, or in a forked process.

        Hooks are attached before the run begins, and another thread may step meanwhile.
        """
        return self._begun and not self._closed and os.getpid() == self._process
