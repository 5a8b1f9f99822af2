"""The strip under a layer's title: what was found in the layer, since when, and the way to the onset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dash import html

from root_dash.frontend import layout
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer import statistics
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import recorded
from root_dash.frontend.theme import Theme
from root_dash.records import History, Layer, Run
from root_dash.records.verdict import SEVERITIES, Verdict

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


def of_layer(verdicts: Sequence[Verdict], place: int) -> list[Verdict]:
    """Return the verdicts on a layer, or for which the layer is a candidate: what lasts and is worst comes first."""
    own = [verdict for verdict in verdicts if verdict.layer == place or place in verdict.candidates]
    return sorted(
        own, key=lambda one: (one.under is not None, one.until is not None, -SEVERITIES.index(one.severity), one.since)
    )


def evidence(verdict: Verdict, names: Sequence[str]) -> list[str]:
    """Return the ids of the panels that hold the evidence of a verdict; `names` are the statistics of the curves."""
    panels = [panel for name in verdict.evidence for panel in EVIDENCE.get(name, ())]
    panels += [statistics.PANELS[names.index(name)].id for name in verdict.evidence if name in names]
    return list(dict.fromkeys([*panels, *(["mask"] if GATHERED in verdict.text else [])]))


def broken_since(nan: History | None, inf: History | None, *, skipped: bool) -> Broken | None:
    """Return since when every recorded gradient has had entries that are not finite; None if the newest has none."""
    if nan is None or inf is None or nan.values.shape != inf.values.shape or not len(nan.steps):
        return None
    finite = np.flatnonzero(~(nan.values + inf.values > 0))
    first = int(finite[-1]) + 1 if len(finite) else 0
    return Broken(int(nan.steps[first]), skipped) if first < len(nan.steps) else None


def skips(run: Run, algorithm: str) -> bool:
    """Return whether the optimizer leaves out the steps of a layer whose gradient is not finite."""
    optimizers = run.optimizer.get("optimizers")
    groups = [g for one in optimizers or () if isinstance(one, dict) for g in one.get("groups") or ()]
    own = [group for group in groups if isinstance(group, dict) and group.get("algorithm", algorithm) == algorithm]
    return bool(own) and all(group.get("nonfinite") == "skip" for group in own)


def _read(selection: Selection) -> dict[str, Any]:
    store, run = selection.store, selection.store.run(selection.run)
    layers = store.layers(selection.run)
    place = next(place for place, layer in enumerate(layers) if layer.id == selection.layer)
    nan, inf = (recorded(store.history, selection.layer, name) for name in ("grad_nan", "grad_inf"))
    return {
        "layer": layers[place],
        "verdicts": of_layer(store.verdicts(selection.run), place),
        "judged": store.is_judged(selection.run),
        "broken": broken_since(nan, inf, skipped=skips(run, layers[place].algorithm)),
    }


def _draw(_theme: Theme, *, layer: Layer, verdicts: Sequence[Verdict], judged: bool, broken: Broken | None) -> Drawing:
    chip = [] if broken is None else [html.Span(broken.words, className="chip-broken")]
    if not verdicts:
        quiet = "Nothing found: the layer is within its own range."
        words = quiet if judged else "Recorded without diagnosis: root-dash diagnose judges the run."
        kind = "healthy" if judged and broken is None else "note"
        return Drawing(html.Div([*chip, html.Span(words)], className=f"strip {kind}"))
    first, *others = verdicts
    more = [html.Details([html.Summary(f"{len(others)} more"), *(_line(other, layer) for other in others)])]
    return Drawing(
        html.Div(
            [*_parts(first, layer), *chip, *(more if others else [])],
            className=f"strip {first.severity if first.until is None else 'note'}",
            **layout.data(evidence=" ".join(evidence(first, statistics.names_of(layer)))),
        )
    )


def _parts(verdict: Verdict, layer: Layer) -> list[Any]:
    text = verdict.text.removeprefix(f"{layer.name}: ")
    return [
        html.Span(verdict.rule.replace("-", " ").capitalize(), className=f"strip-rule {verdict.severity}"),
        html.Span(_when(verdict), className="strip-facts mono"),
        html.Span(text[:1].upper() + text[1:], className="strip-text"),
        html.Button("go to onset", className="ghost onset", **layout.data(onset=str(verdict.since))),
    ]


def _line(verdict: Verdict, layer: Layer) -> Any:
    return html.P([part for part in _parts(verdict, layer) for part in (part, " ")])


def _when(verdict: Verdict) -> str:
    if verdict.until is None:
        return f"since {count(verdict.since)}"
    if verdict.until == verdict.since:
        return f"at {count(verdict.since)}"
    return f"{count(verdict.since)} to {count(verdict.until)}"


PANEL = Panel("verdict", "", "", _read, _draw, kind="statistics", words=True, className="verdict-strip")
