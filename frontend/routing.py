"""From an address to a view and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dash import Output, no_update

from root_dash.exceptions import NotRecorded
from root_dash.frontend import address, ids
from root_dash.frontend.pages import layer as layer_page
from root_dash.frontend.pages import notices, overview
from root_dash.frontend.panels import PANELS, Panels
from root_dash.records import Layer

if TYPE_CHECKING:
    from root_dash.store import Store

View = Mapping[str, Any]

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
    store: Store, path: str | None, search: str | None, before: View | None, panels: Panels = PANELS
) -> dict[str, Any]:
    """Return the answers of `ROUTE`: the view of an address, and the page unless the page before shows the view."""
    wanted = address.parse(path, search)
    runs = store.runs()
    answer: dict[str, Any] = {
        "page": None,
        "runs": [{"value": str(run.id), "label": run.title} for run in runs],
        "run": None,
        "layers": [],
        "settled": True,
    }
    if wanted.page == "newest":
        if runs:
            return {**answer, "view": {"page": "newest", "to": address.overview(runs[0].id)}, "run": no_update}
        return {**answer, "view": {"page": "empty"}, "page": notices.empty(), "settled": False}
    try:
        view, layers = _view(store, wanted)
    except (NotRecorded, ValueError) as error:
        page = notices.missing(path, str(error) if wanted.run is not None else "")
        return {**answer, "view": {"page": "missing"}, "page": page}
    # The page of a layer stays for the next layer; the overview's controls take their values from the address.
    stays = before is not None and before.get("page") == view["page"] == "layer"
    return {
        **answer,
        "view": view,
        "page": no_update if stays else _LAYOUTS[wanted.page](panels[wanted.page], wanted.query),
        "run": str(view["run"]),
        "layers": [{"value": str(layer.id), "label": layer.name} for layer in layers],
    }


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
        "ended": run.ended_at is not None,
        "name": name,
        "latest": None if latest is None else {"id": latest.id, "step": latest.step, "time": latest.time},
    }, layers


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
