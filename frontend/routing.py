"""From an address to a view and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from dash import Output, html, no_update

from root_dash.exceptions import NotRecorded
from root_dash.frontend import address, ids
from root_dash.frontend.pages import layer as layer_page
from root_dash.frontend.pages import notices, overview
from root_dash.frontend.panels import PANELS, Panels
from root_dash.frontend.panels.panel import Panel
from root_dash.frontend.runs import Runs
from root_dash.records import Layer

if TYPE_CHECKING:
    from root_dash.store import Store

View = Mapping[str, Any]

LIKE = "like"
"""The name in the query that asks a run for its layer of the same name as another run's."""

_LAYOUTS = {"overview": overview.page, "layer": layer_page.page}

ROUTE = {
    "view": Output(ids.VIEW, "data"),
    "page": Output(ids.PAGE, "children"),
    "runs": Output(ids.RUN_PICKER, "data"),
    "run": Output(ids.RUN_PICKER, "value"),
    "layers": Output(ids.LAYER_PICKER, "data"),
    "settled": Output(ids.RETRY, "disabled"),
}
"""The outputs that `route` fills, by name."""


def route(
    store: Store,
    path: str | None,
    search: str | None,
    before: View | None,
    panels: Panels = PANELS,
    listed: Runs | None = None,
) -> dict[str, Any]:
    """Return the answers of `ROUTE`: the view of an address, and the page unless the page before shows the view."""
    wanted = address.parse(path, search)
    runs = store.runs()
    answer: dict[str, Any] = {
        "page": None,
        "runs": (listed or Runs(store)).options(runs),
        "run": None,
        "layers": [],
        "settled": True,
    }
    if wanted.page == "newest" and not runs:
        return {**answer, "view": {"page": "empty"}, "page": notices.empty(), "settled": False}
    if to := _elsewhere(store, wanted, search):
        there = route(store, *to.partition("?")[::2], before, panels, listed)
        # The browser goes on to this address. Until then the panels have a whole view.
        return {**there, "view": {**there["view"], "to": to}}
    try:
        view, layers = _view(store, wanted)
    except (NotRecorded, ValueError) as error:
        why = notices.missing(path, str(error) if wanted.run is not None else "")
        return {**answer, "view": {"page": "missing"}, "page": why}
    # The page of a layer stays for the next layer; the overview's controls take their values from the address.
    page: Any = no_update
    if view["ended"] and view["latest"] is None:
        view, page = {**view, "page": "bare"}, notices.bare()
    elif before is None or not before.get("page") == view["page"] == "layer":
        of_page = panels[wanted.page]
        page = [*_unknown(of_page, wanted.query), _LAYOUTS[wanted.page](of_page, wanted.query)]
    return {
        **answer,
        "view": view,
        "page": page,
        "run": str(view["run"]),
        "layers": [{"value": str(layer.id), "label": layer.name} for layer in layers],
    }


def _unknown(panels: Sequence[Panel], query: Mapping[str, str]) -> list[Any]:
    """Return a line for each value in the query that a control of the page does not have."""
    controls = {control.id: control for panel in panels for control in panel.controls if control.in_url}
    asked = [(control, query[control.id]) for control in controls.values() if control.id in query]
    return [
        html.P(
            f"The address asks for {control.id} “{wanted[:80]}”, which is unknown. It shows {control.values[0]}.",
            className="remark", role="status",
        )
        for control, wanted in asked
        if control.values and wanted not in control.values
    ]  # fmt: skip


def _elsewhere(store: Store, wanted: address.Address, search: str | None) -> str:
    """Return the address that an address stands for: the newest run's, or a layer's like another; empty for others."""
    if wanted.page == "newest":
        return address.overview(store.runs()[0].id)
    if wanted.page != "overview" or wanted.run is None or LIKE not in wanted.query:
        return ""
    query = urlencode([pair for pair in parse_qsl((search or "").removeprefix("?")) if pair[0] != LIKE])
    to = address.overview(wanted.run)
    try:
        name = store.layer(int(wanted.query[LIKE])).name
        to = next(address.layer(wanted.run, layer.id) for layer in store.layers(wanted.run) if layer.name == name)
    except (NotRecorded, ValueError, StopIteration):
        pass  # the run has no such layer
    return f"{to}?{query}" if query else to


def _view(store: Store, wanted: address.Address) -> tuple[dict[str, Any], Sequence[Layer]]:
    if wanted.run is None:
        raise NotRecorded("")
    run, layers, latest = store.run(wanted.run), store.layers(wanted.run), store.latest(wanted.run)
    name = run.name
    if wanted.layer is not None:
        name = layers[layer_page.position(layers, run.id, wanted.layer)].name
    return {
        "page": wanted.page,
        "run": run.id,
        "layer": wanted.layer,
        "step": wanted.step,
        "chosen": _chosen(layers, wanted),
        "ended": run.ended_at is not None,
        "name": name,
        "latest": None if latest is None else {"id": latest.id, "step": latest.step, "time": latest.time},
    }, layers


def _chosen(layers: Sequence[Layer], wanted: address.Address) -> int | None:
    """Return the id of the layer that an overview's address selects, if the run has the layer."""
    named = wanted.query.get(address.SELECTED, "")
    return next((layer.id for layer in layers if str(layer.id) == named), None)


def leads_somewhere(store: Store, path: str) -> bool:
    """Return whether there is a page at a path: the start page, or the page of a run or layer in the store."""
    wanted = address.parse(path)
    if wanted.page == "newest":
        return True
    try:
        _view(store, wanted)
    except (NotRecorded, ValueError):
        return False
    return True


def ended(store: Store, view: View | None) -> int | None:
    """Return the id of the view's run if the run has ended, which the stream does not tell."""
    run_id = (view or {}).get("run")
    return run_id if run_id is not None and store.run(int(run_id)).ended_at is not None else None
