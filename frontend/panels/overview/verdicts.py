"""The first thing on the page: which layers need a look, since when and why, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dash import dcc, html

from root_dash.frontend import address
from root_dash.frontend.findings import Finding, Findings, findings, headline, rule_words, said, when
from root_dash.frontend.judgement import Judgement
from root_dash.frontend.layout import data
from root_dash.frontend.numbers import count, plural
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.health.baseline import OPENING
from root_dash.records import Layer, Run
from root_dash.records.verdict import Verdict

_UNJUDGED: Mapping[str, tuple[str, str]] = {
    "pending": ("This run is being judged", "the server judges it now"),
    "failed": ("This run could not be judged", "the server's log says why"),
    "unjudged": ("This run is not judged yet", "root-dash diagnose --run {run} judges it"),
}
"""The headline of a run whose frames are not all judged, and what is done about it, by how far it is judged."""
SHOWN, FOLDED, BELOW = 5, 100, 20
"""Findings that are not folded, findings in a fold, and verdicts that are listed below a finding, at most."""


@dataclass(frozen=True, slots=True)
class _Context:
    run: Run
    layers: Sequence[Layer]


def _read(selection: Selection) -> dict[str, Any]:
    store, run_id = selection.store, selection.run
    return {
        "run": store.run(run_id),
        "layers": store.layers(run_id),
        "judged": selection.judgement,
    }


def _draw(_theme: Theme, *, run: Run, layers: Sequence[Layer], judged: Judgement) -> Drawing:
    context, found = _Context(run, layers), findings(judged.verdicts)
    title, hint = words(run, len(layers), found, judged.progress)
    quiet = "healthy" if judged.whole else ""
    first, rest = found.now[:SHOWN], found.now[SHOWN:]
    body = html.Section(
        className=f"card verdicts {found.worst or quiet or 'unjudged'}",
        children=[
            html.Div([html.H1(title), html.Span(hint, className="hint")], className="card-head"),
            *(_row(finding, context) for finding in first),
            *_folded(f"{count(len(rest))} more", rest, context),
            *_folded(plural(len(found.earlier), "earlier finding"), found.earlier, context, opened=not found.now),
            *_folded(plural(len(found.notes), "note"), found.notes, context),
        ],
        # For the title and the icon of the tab.
        **data(sick=str(len(found.now)), worst=found.worst or quiet),
    )
    return Drawing(body)


def words(run: Run, layers: int, found: Findings, progress: str = "stored") -> tuple[str, str]:
    """Return the headline and the hint beside the headline."""
    if not run.frames:
        return ("Nothing was recorded", "the run has ended") if run.ended_at else ("Nothing recorded yet", "")
    steps = plural(run.last_step or 0, "step")
    if progress in _UNJUDGED and not found.now:
        title, how = _UNJUDGED[progress]
        return title, f"recorded without diagnosis · {how.format(run=run.id)} · {steps}"
    if not found.now and not found.earlier and layers and run.frames < OPENING:
        known = f"a layer's own range is learned from {OPENING} frames, {count(run.frames)} are there"
        return f"Nothing is wrong with {plural(layers, 'layer')} so far", known
    healthy = max(layers - len(found.sick) - found.following, 0)
    parts = [f"{plural(found.following, 'layer')} ill after it"] if found.following else []
    parts += [f"{count(healthy)} healthy"] if found.now else []
    parts += ["more may be found: the run is being judged"] if progress == "pending" else []
    return headline(found, layers), " · ".join([*parts, steps])


def _folded(text: str, found: Sequence[Finding], context: _Context, *, opened: bool = False) -> list[Any]:
    if not found:
        return []
    rows = [_row(finding, context) for finding in found[:FOLDED]]
    if len(found) > FOLDED:
        left = f"and {count(len(found) - FOLDED)} more: root-dash diagnose --run {context.run.id} lists them"
        rows.append(html.P(left, className="second"))
    return [html.Details([html.Summary(text), *rows], open=opened, className="more")]


def _row(finding: Finding, context: _Context) -> Any:
    verdict, below = finding.verdict, finding.below
    severity = verdict.severity if finding.lasts else "past"
    inside: list[Any] = [
        html.Div([*_names(verdict, context), html.Span(when(verdict), className="second")], className="verdict-head"),
        html.P(_said(verdict, context)),
        *_candidates(verdict, context),
    ]
    if below:
        lines = [_line(one, context) for one in below[:BELOW]]
        if len(below) > BELOW:
            lines.append(html.Li(f"and {count(len(below) - BELOW)} more", className="second"))
        summary = html.Summary(
            f"{plural(len(below), 'finding')} that {'follow' if len(below) > 1 else 'follows'} from it"
        )
        inside.append(html.Details([summary, html.Ul(lines)], className="below"))
    why = _why(verdict, context)
    return html.Article([html.Div(inside, className="verdict-words"), *why], className=f"verdict {severity}")


def _names(verdict: Verdict, context: _Context) -> list[Any]:
    """Return the layer's name, which links to the layer at the onset, and the rule in words."""
    layer = _layer(verdict.layer, context)
    name: Any = html.Span("whole run", className="verdict-layer")
    if layer is not None:
        name = dcc.Link(layer.name, href=_onset(verdict, layer, context), className="mono verdict-layer")
    return [name, html.Span(rule_words(verdict.rule), className="rule")]


def _why(verdict: Verdict, context: _Context) -> list[Any]:
    layer = _layer(verdict.layer, context)
    if layer is None:
        return []
    href = _onset(verdict, layer, context)
    return [dcc.Link("why", href=href, className="why", title=f"{layer.name} at step {count(verdict.since)}")]


def _line(verdict: Verdict, context: _Context) -> Any:
    text = html.Span(_said(verdict, context), className="second")
    return html.Li([*_names(verdict, context), html.Span(when(verdict), className="second"), text])


def _candidates(verdict: Verdict, context: _Context) -> list[Any]:
    layers = [layer for place in verdict.candidates if (layer := _layer(place, context)) is not None]
    if len(layers) < 2:
        return []
    links: list[Any] = []
    for layer in layers[:BELOW]:
        links += [dcc.Link(layer.name, href=_onset(verdict, layer, context), className="mono"), " "]
    return [html.P(["One of ", *links, *([f"and {len(layers) - BELOW} more"] if len(layers) > BELOW else [])])]


def _layer(place: int | None, context: _Context) -> Layer | None:
    return context.layers[place] if place is not None and place < len(context.layers) else None


def _onset(verdict: Verdict, layer: Layer, context: _Context) -> str:
    return address.layer(context.run.id, layer.id, verdict.since)


def _said(verdict: Verdict, context: _Context) -> str:
    layer = _layer(verdict.layer, context)
    return said(verdict, None if layer is None else layer.name)


PANEL = Panel("verdicts", "", "", _read, _draw, words=True, className="verdicts-box")
