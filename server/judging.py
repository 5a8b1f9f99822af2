"""Verdicts of runs without stored verdicts: one thread judges a run when a client asks for its verdicts."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from root_dash.exceptions import RootDashError
from root_dash.health import Health
from root_dash.records import Layer
from root_dash.records.verdict import Verdict
from root_dash.store import Judge, Replay, Store

Progress = Literal["replayed", "pending", "failed"]
"""How far a run is judged: to its newest frame, in part, or no further because the diagnosis failed."""

_log = logging.getLogger(__name__)


class Replays:
    """Judges runs in memory. Nothing is written: the database may belong to another process.

    At most `kept` runs stay in memory. The run with the oldest request is forgotten, and judged anew when asked for.
    """

    def __init__(self, store: Store, stopping: threading.Event, judge: Judge = Health, kept: int = 8) -> None:
        self._store = store
        self._stopping = stopping
        self._judge = judge
        self._kept = kept
        self._runs: OrderedDict[int, Replay] = OrderedDict()
        self._failed: set[int] = set()
        self._wanted: list[int] = []
        self._lock = threading.Lock()
        self._working = False

    def verdicts(self, run_id: int) -> tuple[Progress, list[Verdict]]:
        """Return the verdicts of a run so far, and let the thread judge the remaining frames.

        Raises:
            NotRecorded: the store has no such run.
        """
        newest = self._store.latest(run_id)
        with self._lock:
            replay = self._runs.setdefault(run_id, Replay(self._store, run_id, self._judge))
            self._runs.move_to_end(run_id)
            if len(self._runs) > self._kept:
                forgotten, _ = self._runs.popitem(last=False)
                self._failed.discard(forgotten)
            if run_id in self._failed:
                return "failed", replay.verdicts
            if newest is None or replay.cursor >= newest.id:
                return "replayed", replay.verdicts
            if run_id not in self._wanted:
                self._wanted.append(run_id)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="root-dash-replay", daemon=True).start()
            return "pending", replay.verdicts

    def _work(self) -> None:
        while (replay := self._next()) is not None:
            run_id, of_run = replay
            try:
                while not self._stopping.is_set() and of_run.advance():
                    pass
            except RootDashError as error:  # the next request begins again
                _log.warning("run %d could not be judged: %s", run_id, error)
            except Exception:
                _log.exception("the diagnosis of run %d failed", run_id)
                with self._lock:
                    self._failed.add(run_id)
            with self._lock:
                self._wanted.remove(run_id)

    def _next(self) -> tuple[int, Replay] | None:
        """Return the run with the oldest request. The run stays listed while it is judged: no run is judged twice."""
        with self._lock:
            self._wanted = [run_id for run_id in self._wanted if run_id in self._runs]
            self._working = bool(self._wanted) and not self._stopping.is_set()
            return (self._wanted[0], self._runs[self._wanted[0]]) if self._working else None


def as_json(verdicts: Iterable[Verdict], layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Return verdicts as plain values for the API, with the ids of their layers."""
    return [
        {
            "id": one.id,
            "layer": None if one.layer is None else layers[one.layer].id,
            "rule": one.rule,
            "severity": one.severity,
            "since": one.since,
            "until": one.until,
            "text": one.text,
            "evidence": {name: measured._asdict() for name, measured in one.evidence.items()},
            "under": one.under,
            "candidates": [layers[place].id for place in one.candidates],
            "cursor": one.cursor,
        }
        for one in verdicts
    ]
