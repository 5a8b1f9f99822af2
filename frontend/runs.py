"""The list of runs in the header: state, steps, start, last loss and worst verdict of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from dash import Output, no_update

from root_dash.frontend import ids
from root_dash.frontend.findings import findings
from root_dash.frontend.judgement import JudgeAnew, judgement
from root_dash.frontend.numbers import count, plural, value
from root_dash.frontend.once import Once
from root_dash.records import Run
from root_dash.records.verdict import Verdict

if TYPE_CHECKING:
    from root_dash.store import Store

AGAIN = {
    "runs": Output(ids.RUN_PICKER, "data", allow_duplicate=True),
    "gone": Output(ids.GONE, "data"),
    "judged": Output(ids.JUDGED, "data"),
}
"""The outputs that `Runs.again` fills, by name."""

QUIET = 60.0
"""Seconds without a frame after which a run that has not ended no longer counts as live."""


def state(run: Run, now: float) -> str:
    """Return what a run does: it is live, quiet, waits for its first frame, or has ended."""
    if run.ended_at is not None:
        return "ended"
    if run.last_time is None:
        return "waiting" if now - run.started_at < QUIET else "quiet"
    return "live" if now - run.last_time < QUIET else "quiet"


def found(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """Return the worst severity that lasts in a run, and a few words; empty texts if nothing was found."""
    groups = findings(verdicts)
    if not groups.now:
        return "", plural(len(groups.earlier), "earlier finding") if groups.earlier else ""
    worst, many = groups.now[0].verdict, len(groups.now)
    return worst.severity, f"{plural(many, 'finding')}{', worst' if many > 1 else ''} since step {count(worst.since)}"


class Runs:
    """The options of the run picker. What a run logged last is read again only when the run has changed."""

    def __init__(self, store: Store, replay: JudgeAnew | None = None, clock: Callable[[], float] = time.time) -> None:
        self._store, self._replay, self._clock, self._once = store, replay, clock, Once()

    def options(self, runs: Sequence[Run]) -> list[dict[str, str | float]]:
        """Return an option for each run; `label` is unique and tells runs of one name apart."""
        names, now = Counter(run.title for run in runs), self._clock()
        return [
            {
                "value": str(run.id),
                "label": run.title if names[run.title] == 1 else f"{run.title} · run {run.id}",
                "title": run.title if names[run.title] == 1 else f"{run.title} · run {run.id}",
                "state": state(run, now),
                "step": "–" if run.last_step is None else count(run.last_step),
                "started": run.started_at,
                **self._facts(run),
            }
            for run in runs
        ]

    def again(
        self, tick: Any, view: dict[str, Any] | None, before: list[dict[str, Any]] | None, judged: Any = None
    ) -> dict[str, Any]:
        """Return the options if they have changed, and what has become of the run of a view.

        The run may have lost all that the view shows, or have been judged further by the server.
        """
        runs = self._store.runs()
        options, view = self.options(runs), view or {}
        frames = {run.id: run.frames for run in runs}
        run_id = int(view.get("run") or 0)
        recorded = bool(frames.get(run_id))
        return {
            "runs": no_update if options == before else options,
            "gone": tick if view.get("latest") is not None and not recorded else no_update,
            "judged": self._judged_further(run_id, judged) if recorded else no_update,
        }

    def _judged_further(self, run_id: int, before: Any) -> Any:
        found = judgement(self._store, run_id, self._replay)
        now = [run_id, *found.revision]
        # Verdicts that are stored come with a frame, and every frame draws the panels anew.
        return no_update if found.progress in ("stored", "unjudged") or now == before else now

    def _facts(self, run: Run) -> dict[str, str]:
        def make() -> dict[str, str]:
            logged = self._store.last_scalars(run.id)
            losses = [name for name in ("loss", *logged) if name in logged and "loss" in name.lower()]
            loss = "" if not losses else "NaN" if isnan(logged[losses[0]]) else value(logged[losses[0]])
            worst, words = found(self._store.verdicts(run.id))
            return {"loss": loss, "worst": worst, "found": words}

        facts: dict[str, str] = self._once((run.uid, run.id, run.frames, run.last_step, run.last_time), make)
        return facts
