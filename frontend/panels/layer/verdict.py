"""The strip under a layer's title: what was found in the layer, since when, and the way to the onset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dash import html

from root_dash.frontend import layout
from root_dash.frontend.findings import capital, rule_words, said, when
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
_QUIET: Mapping[str, str] = {
    "stored": "No rule found anything in this layer.",
    "replayed": "No rule found anything in this layer.",
    "pending": "Recorded without diagnosis: the server judges the run now.",
    "failed": "Recorded without diagnosis, and the server could not judge the run.",
    "unjudged": "Recorded without diagnosis: root-dash diagnose judges the run.",
}
"""What the strip says if no verdict is known, by how far the run is judged."""
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
        "progress": selection.judgement.progress,
        "broken": None if since is None else Broken(since, skips(store.run(selection.run), layer.algorithm)),
    }


def _draw(
    _theme: Theme, *, layer: Layer, verdicts: Sequence[Verdict], begun: bool, progress: str, broken: Broken | None
) -> Drawing:
    chip = [] if broken is None else [html.Span(broken.words, className="chip-broken")]
    if not verdicts:
        words = _QUIET[progress] if begun else "Nothing recorded yet."
        kind = "healthy" if begun and progress in ("stored", "replayed") and broken is None else "note"
        return Drawing(html.Div([*chip, html.Span(words)], className=f"strip {kind}"))
    first, *others = verdicts
    if broken is not None and not broken.skipped and first.rule == NONFINITE:
        chip = []  # the verdict says so
    main, *ruled_out = said(first, layer.name).split("; ")
    rest = [html.P(capital("; ".join(ruled_out)))] if ruled_out else []
    rest += [_line(other, layer) for other in others]
    more = html.Details([html.Summary(f"{len(others)} more" if others else "details"), *rest])
    return Drawing(
        html.Div(
            [*_head(first), html.Span(main, className="strip-text"), *chip, _go(first), *([more] if rest else [])],
            className=f"strip {first.severity if first.until is None else 'note'}",
            **layout.data(evidence=" ".join(evidence(first, statistics.names_of(layer)))),
        )
    )


def _head(verdict: Verdict) -> list[Any]:
    return [
        html.Span(capital(rule_words(verdict.rule)), className=f"strip-rule {verdict.severity}"),
        html.Span(when(verdict), className="strip-facts mono"),
    ]


def _go(verdict: Verdict) -> Any:
    return html.Button("go to onset", className="ghost onset", **layout.data(onset=str(verdict.since)))


def _line(verdict: Verdict, layer: Layer) -> Any:
    parts = [*_head(verdict), html.Span(said(verdict, layer.name)), _go(verdict)]
    return html.P([part for one in parts for part in (one, " ")])


PANEL = Panel("verdict", "", "", _read, _draw, kind="statistics", words=True, className="verdict-strip")
