"""Findings: what single rules found in one frame, before their causes are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from root_dash.records.verdict import Measured, Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that a rule saw begin. `Causes` makes a verdict of it."""

    layer: int | None
    """Position of the layer; None for the whole run."""
    rule: str
    severity: Severity
    since: int
    what: str
    """A clause without its layer, as in "gradient norm is 31 times its usual value"."""
    evidence: Mapping[str, Measured] = field(default_factory=dict)
    score: float = 1.0
    """How far beyond its bound the number lies that was judged; infinite for what must never be."""
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """A fault that a rule saw end; `until` is the last sick step."""

    layer: int | None
    rule: str
    until: int
