"""Verdicts to people while a run trains: on stderr, to a function of the user's, and to a webhook.

Nothing here is done in the training's thread. The writer's thread hands verdicts over, and a thread of its own, which
begins with the first verdict, does what may take long.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from root_dash.exceptions import RootDashError
from root_dash.health import Health
from root_dash.monitor.failures import print_to_stderr
from root_dash.records import Frame, Layer, Run
from root_dash.records.verdict import Changes, Verdict

if TYPE_CHECKING:
    from root_dash.delivery.webhook import Webhook
    from root_dash.monitor.writing.sink import Sink

OnVerdict = Callable[[Verdict], object]

WAITING = 256
"""Verdicts that wait to be told, at most. Further ones are not told, and counted."""

KEPT = 1000
"""Verdicts that are kept in memory, at most: the newest."""

CLOSE_SECONDS = 10.0
"""How long `close` waits for the last verdicts to be told."""


class Alerts:
    """Tells the verdicts of one run, and keeps them."""

    def __init__(self, run: Run, on_verdict: OnVerdict | None = None, webhook: Webhook | None = None) -> None:
        self._run = run
        self._on_verdict = on_verdict
        self._webhook = webhook
        self._kept: dict[int, Verdict] = {}
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[Verdict, bool] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()
        self.failures = 0
        """How often a verdict could not be told."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The newest verdicts of the run in their present form, by id."""
        with self._lock:
            return tuple(self._kept[number] for number in sorted(self._kept))

    def tell(self, changes: Changes) -> None:
        """Take the changes of a frame. Never raises, and never waits for those who are told."""
        for verdict in changes.all():
            with self._lock:
                before = self._kept.get(verdict.id)
                self._kept[verdict.id] = verdict
                if len(self._kept) > KEPT:
                    del self._kept[min(self._kept)]
            if verdict.severity == "critical" and (before is None or before.severity != "critical"):
                print_to_stderr(f"root-dash: {self._run.title}: critical: {verdict.text}")
            if self._on_verdict is not None or self._webhook is not None:
                self._put(verdict, before is None)

    def close(self) -> None:
        """Wait for a while until all is told, and end."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                self._fail("verdicts were not told in time", "the end")

    def _put(self, verdict: Verdict, begun: bool) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="root-dash-alerts", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((verdict, begun))
        except queue.Full:
            self._fail(f"{WAITING} verdicts wait to be told: further ones are not told", "waiting")

    def _work(self) -> None:
        while (told := self._waiting.get()) is not None:
            verdict, begun = told
            if self._on_verdict is not None:
                try:
                    self._on_verdict(verdict)
                except Exception as error:  # the code of somebody else
                    self._fail(f"on_verdict failed: {type(error).__name__}: {error}", "on_verdict")
            if self._webhook is not None and begun:
                try:
                    self._webhook.post(f"{self._run.title}: {verdict.severity}: {verdict.text}")
                except RootDashError as error:
                    self._fail(str(error), "webhook")
        if self._webhook is not None:
            self._webhook.close()

    def _fail(self, text: str, what: str) -> None:
        """Count a failure, and say the first of its kind."""
        with self._lock:
            self.failures += 1
            said = what in self._said
            self._said.add(what)
        if not said:
            print_to_stderr(f"root-dash: {text}; training goes on, this is said once")


class AlertingSink:
    """A sink of frames whose verdicts are told.

    A store judges the frames itself, and tells the alerts. The frames of a spool are judged by a server as well, which
    may be away: a fold of the trainer's own tells the same verdicts without the server.
    """

    def __init__(self, sink: Sink, alerts: Alerts, layers: Sequence[Layer] | None = None) -> None:
        """Tell the verdicts of a sink; given the run's layers, judge its frames here."""
        self._sink = sink
        self._alerts = alerts
        self._fold = None if layers is None else Health(layers)

    def append(self, frame: Frame) -> object:
        """Store a frame, and then judge it."""
        stored = self._sink.append(frame)
        if self._fold is not None:
            try:
                self._alerts.tell(self._fold.update(frame))
            except Exception as error:
                self._stop(error)
        return stored

    def extend(self, layers: Sequence[Layer]) -> object:
        """Take layers that come later."""
        extended = self._sink.extend(layers)
        if self._fold is not None:
            try:
                self._fold.extend(layers)
            except Exception as error:
                self._stop(error)
        return extended

    def end(self, time: float, lost: int) -> None:
        """End the run."""
        self._sink.end(time, lost)

    def close(self) -> None:
        """Close the sink, and wait for what is still to be told."""
        try:
            self._sink.close()
        finally:
            self._alerts.close()

    def _stop(self, error: Exception) -> None:
        self._fold = None
        reason = f"{type(error).__name__}: {error}"
        print_to_stderr(f"root-dash: the diagnosis failed, and judges no further frame: {reason}")
