"""What the verdicts of a run say together: which layers need a look, the worst first, and what follows from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from root_dash.frontend.numbers import count, plural
from root_dash.records.verdict import SEVERITIES, Severity, Verdict

_WORDS: Mapping[str, str] = {
    "non-finite-gradient": "gradient not finite",
    "non-finite-loss": "loss not finite",
    "learning-rate-jump": "learning rate jumped",
    "no-gradient": "no gradient",
    "absolute": "dead, overwritten or diverging",
}
"""Rules in words, if the words are not the rule's own name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict that no other verdict explains, and all verdicts that it explains, the earliest first."""

    verdict: Verdict
    below: tuple[Verdict, ...] = ()

    @property
    def lasts(self) -> bool:
        """Return whether the verdict, or a warning below the verdict, has not ended."""
        return any(one.until is None and (one is self.verdict or one.severity != "note") for one in self.all)

    @property
    def all(self) -> tuple[Verdict, ...]:
        """Return the verdict and the verdicts below the verdict."""
        return (self.verdict, *self.below)


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a run, each group with the worst and then the earliest first."""

    now: tuple[Finding, ...] = ()
    """Warnings and critical findings that last."""
    earlier: tuple[Finding, ...] = ()
    """Warnings and critical findings that have ended."""
    notes: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Severity | None:
        """Return the severity of the worst finding that lasts; None if none lasts."""
        return self.now[0].verdict.severity if self.now else None

    @property
    def sick(self) -> tuple[int, ...]:
        """Return the places of the layers that lasting findings name, each once."""
        places = (finding.verdict.layer for finding in self.now)
        return tuple(dict.fromkeys(place for place in places if place is not None))

    @property
    def following(self) -> int:
        """Return how many layers are ill only because of a lasting finding, and not sick by themselves."""
        places = {one.layer for finding in self.now for one in finding.below if one.until is None}
        return len(places - {None, *self.sick})


def findings(verdicts: Sequence[Verdict]) -> Findings:
    """Group the verdicts of a run by what explains them."""
    known = {verdict.id: verdict for verdict in verdicts}
    below: dict[int, list[Verdict]] = {}
    for verdict in verdicts:
        top = _top(verdict, known)
        if top is not verdict:
            below.setdefault(top.id, []).append(verdict)
    tops = [verdict for verdict in verdicts if _top(verdict, known) is verdict]
    tops.sort(key=lambda one: (-SEVERITIES.index(one.severity), one.since, one.id))
    found = [Finding(top, tuple(sorted(below.get(top.id, ()), key=lambda one: (one.since, one.id)))) for top in tops]
    serious = [finding for finding in found if finding.verdict.severity != "note"]
    return Findings(
        tuple(finding for finding in serious if finding.lasts),
        tuple(finding for finding in serious if not finding.lasts),
        tuple(finding for finding in found if finding.verdict.severity == "note"),
    )


def _top(verdict: Verdict, known: Mapping[int, Verdict]) -> Verdict:
    """Return the verdict that explains a verdict and is not explained itself."""
    seen: set[int] = set()
    while verdict.under is not None and verdict.under in known and verdict.id not in seen:
        seen.add(verdict.id)
        verdict = known[verdict.under]
    return verdict


def headline(found: Findings, layers: int) -> str:
    """Return the first sentence of the dashboard: how many of a run's layers need a look."""
    sick, whole = len(found.sick), any(finding.verdict.layer is None for finding in found.now)
    some = f"{count(sick)} of {plural(layers, 'layer')} {'needs' if sick == 1 else 'need'} a look"
    if whole:
        return f"The whole run needs a look, and {some}" if sick else "The whole run needs a look"
    if sick:
        return some
    if not layers:
        return "No layers yet"
    if found.earlier:
        return "No layer needs a look now"
    return f"All {count(layers)} layers are within their own range" if layers > 1 else "The layer is within its range"


def rule_words(rule: str) -> str:
    """Return a rule in plain words: heavy tails, gradient not finite."""
    return _WORDS.get(rule, rule.replace("-", " "))


def when(verdict: Verdict) -> str:
    """Return since when a verdict holds, and until when if it has ended."""
    if verdict.until is None:
        return f"since step {count(verdict.since)}"
    if verdict.until == verdict.since:
        return f"at step {count(verdict.since)}"
    return f"from step {count(verdict.since)} to {count(verdict.until)}"


def said(verdict: Verdict, name: str | None) -> str:
    """Return a verdict's sentence without what stands beside the sentence: name, onset, and the verdict above."""
    text = verdict.text.removeprefix(f"{name}: ") if name is not None else verdict.text
    text = text.split("; it follows from verdict ")[0].replace(f", since step {count(verdict.since)}", "", 1)
    text = capital(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def capital(text: str) -> str:
    """Return a text with a capital at its start."""
    return text[:1].upper() + text[1:]
