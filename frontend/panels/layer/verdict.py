"""The strip under a layer's title: what was found in the layer, since when, and the way to the onset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dash import html

from root_dash.frontend import layout
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer import statistics
from root_dash.frontend.panels.layer.findings import found, lasting, nonfinite
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.records import Layer, Run
from root_dash.records.verdict import Verdict

EVIDENCE: Mapping[str, tuple[str, ...]] = {
    "grad_zero": ("histogram", "evolution"),
    "grad_nan": ("histogram",),
    "grad_inf": ("histogram",),
    "grad_abs_max": ("histogram", "evolution"),
    "grad_kurtosis": ("qq",),
    "orthogonality_error": ("errors",),
    "polar_error": ("errors",),
    "update_norm": ("spectrum",),
    "outlier_row_share": ("mask",),
    "outlier_col_share": ("mask",),
}
"""The panels that show what a verdict rests on, by the name of the statistic. The small curves come with their own."""
NONFINITE = "non-finite-gradient"
"""The rule of gradients that are not finite."""
WORDS: Mapping[str, str] = {NONFINITE: "gradient not finite", "learning-rate-jump": "learning rate jumped"}
"""Rules in words, if the words are not the rule's own name."""
GATHERED = "outliers gathering in"
"""The words of a verdict that names the rows and columns in which outliers gather."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The steps up to the newest at which the layer's gradient was not finite, and what the optimizer made of them."""

    since: int
    skipped: bool

    @property
    def words(self) -> str:
        """Return the words of the state: skipped since 120."""
        return f"{'skipped' if self.skipped else 'gradient not finite'} since {count(self.since)}"


def evidence(verdict: Verdict, names: Sequence[str]) -> list[str]:
    """Return the ids of the panels that hold the evidence of a verdict; `names` are the statistics of the curves."""
    panels = [panel for name in verdict.evidence for panel in EVIDENCE.get(name, ())]
    panels += [statistics.PANELS[names.index(name)].id for name in verdict.evidence if name in names]
    return list(dict.fromkeys([*panels, *(["mask"] if GATHERED in verdict.text else [])]))


def skips(run: Run, algorithm: str) -> bool:
    """Return whether the optimizer leaves out the steps of a layer whose gradient is not finite."""
    optimizers = run.optimizer.get("optimizers")
    groups = [g for one in optimizers or () if isinstance(one, dict) for g in one.get("groups") or ()]
    own = [group for group in groups if isinstance(group, dict) and group.get("algorithm", algorithm) == algorithm]
    return bool(own) and all(group.get("nonfinite") == "skip" for group in own)


def _read(selection: Selection) -> dict[str, Any]:
    store = selection.store
    layer, since = store.layer(selection.layer), lasting(nonfinite(selection), 1)
    return {
        "layer": layer,
        "verdicts": found(selection),
        "begun": store.latest(selection.run) is not None,
        "judged": store.is_judged(selection.run),
        "broken": None if since is None else Broken(since, skips(store.run(selection.run), layer.algorithm)),
    }


def _draw(
    _theme: Theme, *, layer: Layer, verdicts: Sequence[Verdict], begun: bool, judged: bool, broken: Broken | None
) -> Drawing:
    chip = [] if broken is None else [html.Span(broken.words, className="chip-broken")]
    if not verdicts:
        quiet = "No rule found anything in this layer."
        words = quiet if judged else "Recorded without diagnosis: root-dash diagnose judges the run."
        words = words if begun else "Nothing recorded yet."
        kind = "healthy" if begun and judged and broken is None else "note"
        return Drawing(html.Div([*chip, html.Span(words)], className=f"strip {kind}"))
    first, *others = verdicts
    if broken is not None and not broken.skipped and first.rule == NONFINITE:
        chip = []  # the verdict says so
    said, *ruled_out = _sentence(first, layer).split("; ")
    rest = [html.P(_begun("; ".join(ruled_out)))] if ruled_out else []
    rest += [_line(other, layer) for other in others]
    more = html.Details([html.Summary(f"{len(others)} more" if others else "details"), *rest])
    return Drawing(
        html.Div(
            [*_head(first), html.Span(said, className="strip-text"), *chip, _go(first), *([more] if rest else [])],
            className=f"strip {first.severity if first.until is None else 'note'}",
            **layout.data(evidence=" ".join(evidence(first, statistics.names_of(layer)))),
        )
    )


def _sentence(verdict: Verdict, layer: Layer) -> str:
    """Return a verdict's sentence without what the strip says already: the layer's name and the onset."""
    text = verdict.text.removeprefix(f"{layer.name}: ").replace(f", since step {verdict.since:,}", "", 1)
    return _begun(text)


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _head(verdict: Verdict) -> list[Any]:
    return [
        html.Span(
            _begun(WORDS.get(verdict.rule, verdict.rule.replace("-", " "))), className=f"strip-rule {verdict.severity}"
        ),
        html.Span(_when(verdict), className="strip-facts mono"),
    ]


def _go(verdict: Verdict) -> Any:
    return html.Button("go to onset", className="ghost onset", **layout.data(onset=str(verdict.since)))


def _line(verdict: Verdict, layer: Layer) -> Any:
    parts = [*_head(verdict), html.Span(_sentence(verdict, layer)), _go(verdict)]
    return html.P([part for one in parts for part in (one, " ")])


def _when(verdict: Verdict) -> str:
    if verdict.until is None:
        return f"since {count(verdict.since)}"
    if verdict.until == verdict.since:
        return f"at {count(verdict.since)}"
    return f"{count(verdict.since)} to {count(verdict.until)}"


PANEL = Panel("verdict", "", "", _read, _draw, kind="statistics", words=True, className="verdict-strip")
