"""The callbacks: which answer goes to which component when the address, a cursor, a control or the theme changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State

from root_dash.frontend import bookkeeping, ids, routing
from root_dash.frontend.judgement import JudgeAnew, Judgement, judgement
from root_dash.frontend.once import Once
from root_dash.frontend.pages import layer, overview
from root_dash.frontend.panels import PANELS, Panels
from root_dash.frontend.panels.layer import verdict
from root_dash.frontend.panels.panel import Panel, Selection, kinds_at_step
from root_dash.frontend.runs import AGAIN, Runs
from root_dash.frontend.theme import theme

if TYPE_CHECKING:
    from root_dash.store import Store

View = routing.View


def register(app: Dash, store: Store, panels: Panels = PANELS, replay: JudgeAnew | None = None) -> None:
    """Bind every callback of the shell, the pages and the panels to the app."""

    runs = Runs(store, replay)

    def route(path: str | None, search: str | None, before: View | None, retries: int | None) -> dict[str, Any]:
        return routing.route(store, path, search, before, panels, runs)

    def ended(quiet: Any, view: View | None) -> int | None:
        return routing.ended(store, view)

    view, once = Input(ids.VIEW, "data"), Once()
    _serve(
        app, route, routing.ROUTE,
        path=Input(ids.URL, "pathname"), search=Input(ids.URL, "search"),
        retries=Input(ids.RETRY, "n_intervals"), before=State(ids.VIEW, "data"),
    )  # fmt: skip
    _serve(app, ended, Output(ids.ENDED, "data"), quiet=Input(ids.QUIET, "data"), view=State(ids.VIEW, "data"))
    _serve(
        app, runs.again, AGAIN, initially=False, tick=Input(ids.RUNS, "n_intervals"), view=State(ids.VIEW, "data"),
        before=State(ids.RUN_PICKER, "data"), judged=State(ids.JUDGED, "data"),
    )  # fmt: skip
    _serve(app, partial(layer.head, store, panels["layer"]), layer.HEAD, view=view)
    _serve(app, partial(overview.scalars, store), overview.SCALARS, view=view)
    # Spectra are the rarest kind: the header is not worth a request for every frame.
    cursor = Input(ids.cursor("spectra"), "data")
    _serve(app, partial(bookkeeping.header, store), bookkeeping.HEADER, view=view, cursor=cursor)
    for page in panels.values():
        for panel in page:
            _serve(app, partial(_answer, store, replay, once, panel), _outputs(panel), **_inputs(panel))
    _register_clientside(app, panels)


def _outputs(panel: Panel) -> dict[str, Output]:
    outputs = {"body": Output(panel.id, "children" if panel.words else "figure")}
    if panel.title:
        outputs |= {"title": Output(panel.title_id, "children"), "hint": Output(panel.hint_id, "children")}
    return outputs


def _inputs(panel: Panel) -> dict[str, Any]:
    inputs: dict[str, Any] = {"view": Input(ids.VIEW, "data"), "theme_name": Input(ids.THEME, "data")}
    if panel.shows != "step":
        inputs |= {"cursor": Input(ids.cursor(panel.kind), "data"), "judged": Input(ids.JUDGED, "data")}
    if panel.shows != "history" and panel.kind is not None:
        store = ids.selected(panel.kind) if panel.selected else ids.shown(panel.kind)
        inputs["shown"] = Input(store, "data")
    if panel.controls:
        inputs["values"] = {control.id: Input(control.id, "value") for control in panel.controls}
    return inputs


def _answer(
    store: Store,
    replay: JudgeAnew | None,
    once: Once,
    panel: Panel,
    *,
    view: View,
    theme_name: str | None,
    cursor: Any = None,
    judged: Any = None,
    shown: View | None = None,
    values: View | None = None,
) -> dict[str, Any]:
    """Return what a panel draws of the view, at the shown step, with its controls' values.

    `shown` names a layer if the panel shows the layer that is selected on a page of all layers. All viewers of one
    figure get the same answer, until the run has changed.
    """
    step, layer_id = (shown or {}).get("step"), (shown or {}).get("layer") or view.get("layer")
    paper, run = theme(theme_name), store.run(int(view["run"]))
    state = (run.uid, run.frames, run.lost, run.last_step, run.last_time, run.ended_at)
    found: Judgement = once(state, partial(judgement, store, run.id))
    if not found.whole:
        found = judgement(store, run.id, replay)
    selection = Selection(
        store,
        run=run.id,
        layer=int(layer_id or 0),
        step=None if step is None else int(step),
        values=dict(values or {}),
        judge=lambda *_: found,
    )
    controls = json.dumps(selection.values, sort_keys=True)  # a value may be a list
    what = (panel.id, selection.run, selection.layer, selection.step, controls, found.revision)

    def make() -> dict[str, Any]:
        answer = panel.answer(selection, paper)
        if isinstance(answer["body"], go.Figure):
            answer["body"] = answer["body"].to_plotly_json()  # here too, and not for each viewer
        return answer

    answer: dict[str, Any] = once((what, paper.name, state), make)
    return answer


def _serve(app: Dash, function: Callable[..., Any], outputs: Any, initially: bool = True, **inputs: Any) -> None:
    """Bind a function that takes its inputs and answers its outputs by name."""

    # The function runs in a thread, because the event loop also feeds the streams.
    async def answer(**values: Any) -> Any:
        return await asyncio.to_thread(_call, function, **values)

    app.callback(output=outputs, inputs=inputs, prevent_initial_call=not initially)(answer)


def _call(function: Callable[..., Any], **values: Any) -> Any:
    """Return what a function returns; a StopIteration cannot leave a thread, and the request would wait for ever."""
    try:
        return function(**values)
    except StopIteration as error:
        raise RuntimeError(f"{getattr(function, '__name__', function)} ran out of values") from error


def _register_clientside(app: Any, panels: Panels) -> None:
    """Bind what `assets/view.js`, `assets/overview.js` and `assets/layer.js` answer without the server."""

    def bind(name: str, outputs: list[Any], *inputs: Any, initially: bool = False, of: str = "rootdash") -> None:
        app.clientside_callback(ClientsideFunction(of, name), *outputs, *inputs, prevent_initial_call=not initially)

    def also(component: str, name: str) -> Output:
        return Output(component, name, allow_duplicate=True)

    slider, follow, view = ids.STEP_SLIDER, ids.FOLLOW, State(ids.VIEW, "data")
    value, most = Input(slider, "value"), State(slider, "max")
    outputs = [Output(ids.THEME, "data"), Output(ids.PROVIDER, "forceColorScheme")]
    bind("theme", outputs, Input(ids.THEME_TOGGLE, "n_clicks"), initially=True)
    bind("arrive", [], Input(ids.VIEW, "data"), initially=True)
    bind("ended", [], Input(ids.ENDED, "data"))
    bind("pickRun", [], Input(ids.RUN_PICKER, "value"), view)
    bind("pickLayer", [Output(ids.LAYER_PICKER, "value")], Input(ids.LAYER_PICKER, "value"), view)
    every = [panel for page in panels.values() for panel in page]
    for panel in every:
        if panel.click:
            bind(panel.click, [], Input(panel.id, "clickData"), State(panel.id, "figure"), view, of="overview")
    for control_id in dict.fromkeys(c.id for panel in every for c in panel.controls if c.in_url):
        bind("keep", [], Input(control_id, "value"))
    bind("gone", [], Input(ids.GONE, "data"))
    for kind in layer.walked(panels["layer"]):
        grown = [also(slider, "max"), also(slider, "value")]
        bind("advance", grown, Input(ids.cursor(kind), "data"), State(follow, "checked"), of="layer")
    for kind in kinds_at_step(panels["layer"]):
        store = ids.shown(kind)
        bind(
            "shown",
            [Output(store, "data")],
            Input(ids.cursor(kind), "data"),
            value,
            Input(follow, "checked"),
            State(store, "data"),
            initially=True,
            of="layer",
        )
    placed = [Output(slider, "value"), Output(follow, "checked")]
    bind("known", placed, Input(ids.STEPS, "data"), most, initially=True, of="layer")
    bind("snap", [also(slider, "value")], value, of="layer")
    bind("letGo", [also(follow, "checked")], value, most, State(follow, "checked"), of="layer")
    bind("catchUp", [also(slider, "value")], Input(follow, "checked"), most, State(slider, "value"), of="layer")
    bind("step", [Output(ids.STEP_LABEL, "children")], value, Input(follow, "checked"), initially=True, of="layer")
    bind("evidence", [], Input(verdict.PANEL.id, "children"), initially=True, of="layer")
    chosen = Input(ids.SELECTED, "data")
    bind("select", [Output(ids.SELECTED, "data")], Input(ids.VIEW, "data"), initially=True, of="overview")
    bind("mark", [], chosen, of="overview")
    # Callbacks without outputs must differ in their inputs: "keep" has the value alone.
    bind("statistic", [], Input("stat", "value"), Input("stat", "data"), of="overview")
    bind("severity", [], Input("verdicts", "children"), view, of="overview")
    for kind in kinds_at_step(panels["overview"], selected=True):
        store = ids.selected(kind)
        cursor = Input(ids.cursor(kind), "data")
        bind("selected", [Output(store, "data")], cursor, chosen, State(store, "data"), initially=True, of="overview")
