"""The verdicts of a recorded run, for people and for scripts: the body of `root-dash diagnose`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from root_dash.cli.app import printable
from root_dash.health import SEVERITIES, Health, Severity, Verdict, to_json
from root_dash.records import Layer, Run
from root_dash.store import Replay, Store

_STYLES: dict[Severity, str] = {"note": "dim", "warning": "yellow", "critical": "bold red"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A run, its layers in the model's order, and its verdicts: the worst first, then the earliest."""

    run: Run
    layers: tuple[Layer, ...]
    verdicts: tuple[Verdict, ...]

    def layer_name(self, verdict: Verdict) -> str | None:
        """Return the name of the verdict's layer; None if the verdict is about the whole run."""
        return None if verdict.layer is None else self.layers[verdict.layer].name

    def is_at_least(self, severity: Severity) -> bool:
        """Return whether a verdict has this severity or a worse one."""
        least = SEVERITIES.index(severity)
        return any(SEVERITIES.index(verdict.severity) >= least for verdict in self.verdicts)


def diagnose(store: Store, run_id: int, *, replay: bool = False) -> Diagnosis:
    """Return the stored verdicts of a run; judge the run anew if it has none, or with `replay`.

    Raises:
        NotRecorded: there is no such run.
    """
    run, layers = store.run(run_id), tuple(store.layers(run_id))
    verdicts = judged_anew(store, run_id) if replay or not store.is_judged(run_id) else store.verdicts(run_id)
    ordered = sorted(verdicts, key=lambda v: (-SEVERITIES.index(v.severity), v.since, v.id))
    return Diagnosis(run, layers, tuple(ordered))


def judged_anew(store: Store, run_id: int) -> list[Verdict]:
    """Judge a run from its first frame to its newest."""
    replay = Replay(store, run_id, Health)
    while replay.advance():
        pass
    return replay.verdicts


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain JSON values, the layers by their names."""
    found = []
    for verdict in diagnosis.verdicts:
        values = to_json(verdict)
        candidates = [diagnosis.layers[position].name for position in verdict.candidates]
        found.append(values | {"layer": diagnosis.layer_name(verdict), "candidates": candidates})
    run = diagnosis.run
    return {"run": run.id, "name": run.name, "steps": run.last_step, "verdicts": found}


def render(diagnosis: Diagnosis) -> RenderableType:
    """Return a diagnosis for people: a sentence, and a table if there are verdicts."""
    run, verdicts = diagnosis.run, diagnosis.verdicts
    judged = f"run {run.id}, {printable(run.title)}: {run.frames:,} frames of {len(diagnosis.layers)} layers"
    if not verdicts:
        return Text(f"{judged}; no layer needs a look")
    leading = [verdict for verdict in verdicts if verdict.under is None]
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("severity", "layer", "since", "until", "rule", "what"):
        steps, wraps = heading in ("since", "until"), heading in ("layer", "what")
        table.add_column(heading, overflow="fold", justify="right" if steps else "left", no_wrap=not wraps)
    for verdict in leading:
        below = _below(verdict, verdicts)
        table.add_row(
            Text(verdict.severity, style=_STYLES[verdict.severity]),
            Text(printable(diagnosis.layer_name(verdict) or "whole run")),
            f"{verdict.since:,}",
            "" if verdict.until is None else f"{verdict.until:,}",
            Text(verdict.rule),
            Text(printable(verdict.text) + (f" (explains {below} more)" if below else "")),
        )
    return Group(Text(judged), table)


def _below(verdict: Verdict, verdicts: Sequence[Verdict]) -> int:
    return sum(other.under == verdict.id for other in verdicts)
