"""Verdicts: what a health rule says of a layer or of a whole run, since which step, and on which evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Severity = Literal["note", "warning", "critical"]
"""How much a verdict matters: a note informs, a warning asks for a look, a critical one means that training is lost."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The severities in ascending order."""


class Measured(NamedTuple):
    """A number that a verdict rests on, and the baseline that it is compared with; None if nothing is compared."""

    value: float
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says of one layer, or of the whole run, over an interval of steps.

    `id` counts the verdicts of a run from 1, in the order in which they began. A verdict with the same `id` replaces
    the verdict before it.
    """

    id: int
    layer: int | None
    """Position of the layer; None if the verdict is about the whole run. A store counts the positions in the order of
    `Store.layers`."""
    rule: str
    severity: Severity
    since: int
    """First sick step that was recorded. It may lie before the step at which the verdict began."""
    text: str
    """One English sentence with numbers, for people."""
    evidence: Mapping[str, Measured] = field(default_factory=dict)
    until: int | None = None
    """Last sick step that was recorded; None while the fault lasts."""
    under: int | None = None
    """`id` of the verdict that explains this verdict; None if nothing explains it."""
    candidates: tuple[int, ...] = ()
    """Positions of the layers of which one is the cause, if the cause could not be told further."""
    cursor: int = field(default=0, compare=False)
    """Frame with which a store took the verdict's present form; 0 before storing."""

    def ended(self, step: int) -> Verdict:
        """Return the verdict with its last sick step."""
        return replace(self, until=step)


@dataclass(frozen=True, slots=True)
class Changes:
    """Verdicts that a frame began, changed or ended, each in its new form."""

    begun: tuple[Verdict, ...] = ()
    changed: tuple[Verdict, ...] = ()
    ended: tuple[Verdict, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.begun or self.changed or self.ended)

    def all(self) -> tuple[Verdict, ...]:
        """Return all verdicts of the change: what a table of verdicts has to write, by `id`."""
        return self.begun + self.changed + self.ended


_RULE_NUMBERS = 128
"""Numbers that a rule may have, from 0."""

_SEVERITY_PARTS, _SEVERITY_LIMIT = 16, 1023.0
"""Parts of 1 to which a severity is told in a `severity_rule`, and the largest severity that is told apart there."""


def severity_rules(severities: NDArray[np.floating[Any]], rules: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return the statistic `severity_rule` of layers, (L,), of their severities and the numbers of their rules.

    The number of the rule fills the lowest 7 bits, and the severity in sixteenths the bits above. So the largest of
    several is the one of the worst severity, at whatever length of a run they are summarized. Every number is exact in
    float32.
    """
    parts = np.floor(np.clip(severities, 0.0, _SEVERITY_LIMIT) * _SEVERITY_PARTS)
    numbers: NDArray[np.float32] = (parts * _RULE_NUMBERS + rules).astype(np.float32)
    return numbers


def rule_numbers(severity_rules: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the numbers of the rules in values of the statistic `severity_rule`; -1 for NaN."""
    known = ~np.isnan(severity_rules)
    return np.where(known, np.where(known, severity_rules, 0.0).astype(np.int64) % _RULE_NUMBERS, -1)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain JSON values. Numbers that JSON lacks become their names, as in `"nan"`."""
    return {
        "id": verdict.id,
        "layer": verdict.layer,
        "rule": verdict.rule,
        "severity": verdict.severity,
        "since": verdict.since,
        "until": verdict.until,
        "text": verdict.text,
        "evidence": {name: [_plain(number) for number in measured] for name, measured in verdict.evidence.items()},
        "under": verdict.under,
        "candidates": list(verdict.candidates),
    }


def from_json(values: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `to_json` wrote."""
    evidence = {
        name: Measured(float(value), None if baseline is None else float(baseline))
        for name, (value, baseline) in values["evidence"].items()
    }
    return Verdict(
        id=values["id"],
        layer=values["layer"],
        rule=values["rule"],
        severity=values["severity"],
        since=values["since"],
        text=values["text"],
        evidence=evidence,
        until=values["until"],
        under=values["under"],
        candidates=tuple(values["candidates"]),
        cursor=values.get("cursor", 0),
    )


def _plain(number: float | None) -> float | str | None:
    if number is None or number - number == 0.0:  # finite
        return number
    return str(float(number))
