"""Causes: the findings of a frame become verdicts, and the consequence of a verdict is placed under the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.health import nonfinite, run_rules
from root_dash.health.drift import DRIFT_RULE
from root_dash.health.findings import Ending, Finding
from root_dash.health.peaks import PEAK_RULE
from root_dash.records.verdict import Changes, Measured, Verdict, from_json, to_json

MANY_SHARE, MANY_LEAST = 0.25, 3
"""Share and least number of layers beyond their bounds at once from which on the run is to blame, and no layer."""

AFTERMATH = 30
"""Number of samples after the beginning or the end of a verdict within which new findings count as its consequences."""

MANY_RULE, FROZEN_RULE = "many-layers", "no-gradient"

_TOGETHER = {
    FROZEN_RULE: "have no gradient any more, as if a schedule had frozen them",
    PEAK_RULE: "had a gradient far above their highest before in a single step",
    "update-too-large": "have an orthogonalized update with singular values far above 1, as of a coefficient set that "
    "diverges",
    "updates-rounded-away": "have a weight whose data type is too coarse for its updates",
    "weight-overwritten": "have a weight that something else than their optimizer wrote, as a loaded checkpoint",
}
"""Rules whose findings in several layers at once become a single verdict about the run, with the words for it."""

_RUN_ORDER = (
    nonfinite.RULE, nonfinite.LOSS_RULE, run_rules.RATE_RULE, run_rules.LOSS_RULE, run_rules.GRADIENTS_RULE,
    run_rules.BATCHES_RULE, run_rules.DIVERGENCE_RULE,
)  # fmt: skip
_ALONE = (FROZEN_RULE, DRIFT_RULE, PEAK_RULE)
"""Rules whose verdicts are notes, which are no cause of other verdicts."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The state of the run at a frame, from which the causes of findings are inferred."""

    sample: int
    """Number of the frame among the frames with statistics, from 0."""
    beyond: NDArray[np.bool_]
    """Which layers are beyond a bound, (L,)."""
    rise: NDArray[np.int64]
    """Step since which each layer has been rising, (L,)."""
    count: int
    """Number of layers in the frame."""
    rate_jumped: bool
    loss_rises: bool


@dataclass(slots=True)
class _Root:
    """A verdict that may be the cause of others, with the samples of its beginning and end."""

    id: int
    layer: int | None
    rule: str
    since: int
    began: int
    ended: int | None = None


class Causes:
    """The verdicts of a run: a number for each, and the open verdicts, at most one per layer and rule."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.open: dict[tuple[int | None, str], Verdict] = {}
        self._roots: list[_Root] = []
        self._count = 0

    def settle(self, findings: Sequence[Finding], endings: Sequence[Ending], scene: Scene) -> Changes:
        """Return the changes of the verdicts by a frame's findings and endings."""
        ended = [verdict for ending in endings if (verdict := self._end(ending, scene)) is not None]
        above = {verdict.under for verdict in self.open.values()}
        self._roots = [
            root
            for root in self._roots
            if root.ended is None or root.id in above or scene.sample - root.ended <= AFTERMATH
        ]
        begun: list[Verdict] = []
        changed: list[Verdict] = []
        single = sorted((one for one in findings if one.layer is not None), key=lambda one: (one.since, -one.score))
        first = [one for one in single if one.rule == nonfinite.RULE and one.severity == "critical"]
        begun += [self._begin(one, None, scene) for one in first]
        whole = [one for one in findings if one.layer is None]
        for one in sorted(whole, key=lambda one: _RUN_ORDER.index(one.rule)):
            spike = self.open.get((None, run_rules.LOSS_RULE))
            if one.rule == run_rules.DIVERGENCE_RULE and spike is not None:
                worse = replace(spike, severity="critical", text=f"{spike.text} {_sentence(one.what)}")
                self.open[None, run_rules.LOSS_RULE] = worse
                changed.append(worse)
                continue
            if one.rule == run_rules.BATCHES_RULE and self._told_of_batches():
                continue
            begun.append(self._begin(one, self._above_run(one), scene))
        for rule, words in _TOGETHER.items():
            same = [one for one in single if one.rule == rule]
            if len(same) > 1:
                names = ", ".join(self._name(one.layer) for one in same[:3])
                what = f"{len(same)} layers at once {words}: {names}{', ...' if len(same) > 3 else ''}"
                positions = tuple(one.layer for one in same if one.layer is not None)
                together = replace(same[0], layer=None, what=what, candidates=positions[:8])
                begun.append(self._begin(together, self._above_run(together), scene))
                self.open |= {(one.layer, rule): self.open[None, rule] for one in same}
                single = [one for one in single if one.rule != rule]
        for one in single:
            if (one.layer, one.rule) in self.open:
                continue
            parent = self._above_layer(one, scene)
            if parent is None and one.rule not in _ALONE and self._many(one, scene):
                many = self._many_finding(one, scene)
                begun.append(self._begin(many, None, scene))
                parent = self._roots[-1]
            follows = parent is not None and one.rule != nonfinite.RULE
            begun.append(self._begin(replace(one, severity="note") if follows else one, parent, scene))
        many_ended = self._end_many(scene)
        return Changes(tuple(begun), tuple(changed), (*ended, *many_ended))

    def _told_of_batches(self) -> bool:
        """Whether an open verdict says of loss or gradients what bad batches would say."""
        return any((None, rule) in self.open for rule in (run_rules.LOSS_RULE, run_rules.GRADIENTS_RULE))

    def note(self, one: Finding, scene: Scene) -> Verdict:
        """Return a verdict about a single event that is over."""
        verdict = self._begin(one, None, scene)
        self._roots.pop()
        return self.open.pop((one.layer, one.rule), verdict).ended(one.since)

    def _many(self, one: Finding, scene: Scene) -> bool:
        """Return whether so many layers are beyond their bounds that a layer is no cause, unless it was the first."""
        beyond = int(scene.beyond.sum())
        if beyond < max(MANY_LEAST, MANY_SHARE * scene.count):
            return False
        others = scene.rise[scene.beyond & (np.arange(len(scene.beyond)) != one.layer)]
        return not (len(others) and one.since < others.min())

    def _many_finding(self, one: Finding, scene: Scene) -> Finding:
        beyond = np.flatnonzero(scene.beyond)
        what = f"{len(beyond)} of {scene.count} layers left their usual ranges at about the same step"
        what += ", and the learning rate had jumped" if scene.rate_jumped else ""
        evidence = {"layers": Measured(float(len(beyond)), 0.0)}
        return Finding(None, MANY_RULE, "warning", one.since, what, evidence, one.score, tuple(beyond.tolist()[:8]))

    def _above_run(self, one: Finding) -> _Root | None:
        """Return the cause of a finding about the run: the earliest verdict that began before the finding."""
        if one.rule == nonfinite.RULE:
            return None
        known = [root for root in self._roots if root.rule not in (*_ALONE, MANY_RULE)]
        not_finite = [root for root in known if root.rule == nonfinite.RULE and root.ended is None]
        earlier = [root for root in known if root.since <= one.since or root.layer is None]
        return next(iter(not_finite or sorted(earlier, key=lambda root: root.since)), None)

    def _above_layer(self, one: Finding, scene: Scene) -> _Root | None:
        """Return the cause of a finding about a layer: a verdict, or None."""
        if one.rule == FROZEN_RULE:
            return None
        near = [root for root in self._roots if root.rule not in _ALONE]
        for root in near:
            if root.rule == nonfinite.RULE and root.ended is None:
                return root
        mine = {
            verdict.id if verdict.under is None else verdict.under
            for verdict in self.open.values()
            if verdict.layer == one.layer and verdict.rule not in _ALONE
        }
        for root in near:
            if root.id in mine:
                return root
        for root in near:
            if root.layer is None and root.since <= one.since + 1:
                return root
        for root in near:
            if root.layer != one.layer and root.since <= one.since and scene.sample - root.began <= AFTERMATH:
                return root
        return None

    def _begin(self, one: Finding, parent: _Root | None, scene: Scene) -> Verdict:
        self._count += 1
        verdict = Verdict(
            id=self._count,
            layer=one.layer,
            rule=one.rule,
            severity=one.severity,
            since=one.since,
            text=self._text(one, parent, scene),
            evidence={
                name: Measured(float(value), None if usual is None else float(usual))
                for name, (value, usual) in one.evidence.items()
            },
            under=None if parent is None else parent.id,
            candidates=one.candidates,
        )
        self.open[one.layer, one.rule] = verdict
        if parent is None:
            self._roots.append(_Root(verdict.id, one.layer, one.rule, one.since, scene.sample))
        return verdict

    def _end(self, ending: Ending, scene: Scene) -> Verdict | None:
        verdict = self.open.pop((ending.layer, ending.rule), None)
        if verdict is None:
            return None
        if verdict in self.open.values():  # a verdict about several layers ends with the last layer
            if ending.layer is not None and verdict.layer is None:
                rest = [key for key, other in self.open.items() if other == verdict and key[0] is not None]
                if rest:
                    return None
                self.open.pop((None, ending.rule), None)
        for root in self._roots:
            if root.id == verdict.id:
                root.ended = scene.sample
        return verdict.ended(ending.until)

    def _end_many(self, scene: Scene) -> tuple[Verdict, ...]:
        """End the verdict about many layers when no verdict under it is open."""
        verdict = self.open.get((None, MANY_RULE))
        if verdict is None or any(other.under == verdict.id for other in self.open.values()):
            return ()
        last = self._end(Ending(None, MANY_RULE, verdict.since), scene)
        return () if last is None else (last,)

    def _name(self, layer: int | None) -> str:
        return "the run" if layer is None else self.names[layer]

    def _text(self, one: Finding, parent: _Root | None, scene: Scene) -> str:
        text = f"{self.names[one.layer]}: {one.what}" if one.layer is not None else _sentence(one.what)[:-1]
        if parent is not None:
            where = self._name(parent.layer)
            return f"{text}; it follows from verdict {parent.id}, {parent.rule} of {where} since step {parent.since:,}."
        ruled_out = [] if scene.rate_jumped or one.rule == run_rules.RATE_RULE else ["the learning rate did not jump"]
        if one.layer is not None and one.rule not in (nonfinite.RULE, FROZEN_RULE):
            others = int(scene.beyond.sum()) - bool(scene.beyond[one.layer])
            ruled_out.append(f"{scene.count - 1 - others} of {scene.count - 1} other layers are as usual")
        if one.rule in (run_rules.LOSS_RULE, run_rules.GRADIENTS_RULE, run_rules.BATCHES_RULE):
            ruled_out.append("no layer was ill before: a bad batch is the likeliest cause")
        elif not scene.loss_rises and one.rule not in (run_rules.RATE_RULE, FROZEN_RULE, nonfinite.RULE):
            ruled_out.append("the loss is as usual")
        return f"{text}, since step {one.since:,}" + (f"; {', '.join(ruled_out)}." if ruled_out else ".")

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "count": self._count,
            "open": [[layer, rule, to_json(verdict)] for (layer, rule), verdict in self.open.items()],
            "roots": [[r.id, r.layer, r.rule, r.since, r.began, r.ended] for r in self._roots],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self._count = state["count"]
        self.open = {(layer, rule): from_json(verdict) for layer, rule, verdict in state["open"]}
        self._roots = [_Root(*root) for root in state["roots"]]


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."
