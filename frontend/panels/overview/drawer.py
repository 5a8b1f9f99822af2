"""The drawer beside the map: the selected layer at the selected step, in four small panels of the layer's page."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from dash import dcc

from root_dash.frontend import address
from root_dash.frontend.findings import findings
from root_dash.frontend.numbers import count
from root_dash.frontend.panels.layer import evolution, histogram, mask, qq, spectrum, statistics
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.panels.reading import shape
from root_dash.frontend.theme import Theme
from root_dash.records import Kind, Layer
from root_dash.records.algorithms import traits_of

_NORM = statistics.PANELS[0]
_MATRIX = (histogram.PANEL, qq.PANEL, spectrum.PANEL, mask.PANEL)
_VECTOR = (histogram.PANEL, qq.PANEL, evolution.PANEL, _NORM)
"""The panels of a vector, which has neither a spectrum nor a mask."""


def selected(selection: Selection) -> Layer | None:
    """Return the selected layer; if none is selected, the first that needs a look, or the first orthogonalized one."""
    layers = selection.store.layers(selection.run)
    known = {layer.id: layer for layer in layers}
    if selection.layer in known:
        return known[selection.layer]
    sick = findings(selection.judgement.verdicts).sick
    if sick and sick[0] < len(layers):
        return layers[sick[0]]
    optimizer = selection.store.run(selection.run).optimizer
    orthogonalized = (layer for layer in layers if traits_of(optimizer, layer.algorithm).orthogonalizes is not None)
    return next(orthogonalized, layers[0] if layers else None)


def _step(selection: Selection) -> int | None:
    """Return the selected step; if none is selected, the newest of the run."""
    if selection.step is not None:
        return selection.step
    latest = selection.store.latest(selection.run)
    return None if latest is None else latest.step


def _read_head(selection: Selection) -> dict[str, Any]:
    follows = selection.step is None
    return {"run": selection.run, "layer": selected(selection), "step": _step(selection), "follows": follows}


def _draw_head(_theme: Theme, *, run: int, layer: Layer | None, step: int | None, follows: bool) -> Drawing:
    if layer is None:
        return Drawing([])
    at = "" if step is None else f"{'newest step' if follows else 'step'} {count(step)}"
    name = dcc.Link(
        layer.name, href=address.layer(run, layer.id, None if follows else step), id="drawer-name", className="mono",
        title=f"open {layer.name} (Enter)",
    )  # fmt: skip
    return Drawing([name, f" {shape(layer)}{f' · {at}' if at else ''}"])


def _read(slot: int, selection: Selection) -> dict[str, Any]:
    layer = selected(selection)
    if layer is None:
        return {"panel": None, "found": {}, "step": None}
    panel = (_MATRIX if layer.is_matrix else _VECTOR)[slot]
    values = {control.id: control.values[0] for control in panel.controls}
    found = panel.read(replace(selection, layer=layer.id, values=values))
    return {"panel": panel, "found": found, "step": _step(selection)}


def _draw(theme: Theme, *, panel: Panel | None, found: dict[str, Any], step: int | None) -> Drawing:
    if panel is None:
        return Drawing({}, title="", hint="")
    drawing = panel.draw(theme, **found)
    drawing.body.update_layout(uirevision=f"drawer-{panel.id}")
    drawing.body.update_xaxes(title=None)
    drawing.body.update_yaxes(title=None)
    title, hint = (drawing.title or panel.title), (panel.hint if drawing.hint is None else drawing.hint)
    # The drawer's head says the step; a panel says its own only if it shows another recording.
    at, _, reading = hint.partition(" · ")
    hint = reading if step is not None and at == f"step {count(step)}" else hint
    return Drawing(drawing.body, title="Gradient" if panel is histogram.PANEL else title, hint=hint)


_KINDS: tuple[Kind, ...] = ("histograms", "histograms", "spectra", "masks")

PANELS = (
    Panel(
        "drawer", "", "", _read_head, _draw_head, kind="statistics", shows="step", words=True, selected=True,
        className="drawer-head",
    ),
    *(
        Panel(
            f"drawer-{slot}", "\u00a0", "", partial(_read, slot), _draw, kind=kind, shows="step", selected=True,
            label=f"the selected layer, panel {slot + 1} of 4", className="mini",
        )
        for slot, kind in enumerate(_KINDS)
    ),
)  # fmt: skip
