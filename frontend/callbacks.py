"""What happens when the address, the cursor, a control or the theme changes: which answer goes to which component."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dash import ClientsideFunction, Dash, Input, Output, State

from root_dash.frontend import answers, ids
from root_dash.frontend.pages import layer

if TYPE_CHECKING:
    from root_dash.store import Store


def register(app: Dash, store: Store) -> None:
    """Bind every callback to the app."""
    _register_clientside(app)
    view, light = Input(ids.VIEW, "data"), Input(ids.THEME, "data")

    def serve(function: Callable[..., Any], outputs: list[Any], *inputs: Any) -> None:
        # In a thread: the loop that answers has streams to feed meanwhile.
        async def answer(*values: Any) -> Any:
            return await asyncio.to_thread(_call, function, store, *values)

        answer.__name__ = function.__name__
        app.callback(outputs, *inputs)(answer)

    serve(
        answers.route,
        [
            Output(ids.VIEW, "data"),
            Output(ids.PAGE, "children"),
            Output(ids.RUN_PICKER, "data"),
            Output(ids.RUN_PICKER, "value"),
            Output(ids.LAYER_PICKER, "data"),
            Output(ids.RETRY, "disabled"),
        ],
        Input(ids.URL, "pathname"),
        Input(ids.URL, "search"),
        Input(ids.RETRY, "n_intervals"),
        State(ids.VIEW, "data"),
    )
    serve(answers.ended, [Output(ids.ENDED, "data")], Input(ids.QUIET, "data"), State(ids.VIEW, "data"))
    nonfinite = answers.Nonfinite()

    def draw_map(store: Store, *values: Any) -> Any:
        return answers.draw_map(store, nonfinite, *values)

    serve(
        draw_map,
        [Output(ids.MAP, "figure"), Output(ids.SUMMARY, "children"), Output(ids.STAT_HINT, "children")],
        view,
        Input(ids.CURSOR, "data"),
        Input(ids.STAT_PICKER, "value"),
        light,
    )
    serve(
        answers.layer_head,
        [
            Output(ids.LAYER_TITLE, "children"),
            Output(ids.LAYER_SHAPE, "children"),
            Output(ids.BACK, "href"),
            Output(ids.PREVIOUS_LAYER, "href"),
            Output(ids.NEXT_LAYER, "href"),
            Output(ids.STEP_SLIDER, "min"),
            Output(ids.STEP_SLIDER, "max"),
            Output(ids.STEP_SLIDER, "step"),
            Output(ids.STEP_SLIDER, "value"),
            Output(ids.FOLLOW, "checked"),
        ],
        view,
    )
    serve(
        answers.draw_distribution,
        [
            Output(ids.HISTOGRAM, "figure"),
            Output(ids.HISTOGRAM_HINT, "children"),
            Output(ids.QQ, "figure"),
            Output(ids.QQ_HINT, "children"),
        ],
        view,
        Input(ids.shown("histograms"), "data"),
        Input(ids.TENSOR, "value"),
        light,
    )
    serve(
        answers.draw_evolution,
        [Output(ids.EVOLUTION, "figure"), Output(ids.EVOLUTION_TITLE, "children")],
        view,
        Input(ids.cursor_of("histograms"), "data"),
        Input(ids.TENSOR, "value"),
        light,
    )
    serve(
        answers.draw_spectrum,
        [Output(ids.SPECTRUM, "figure"), Output(ids.SPECTRUM_HINT, "children")],
        view,
        Input(ids.shown("spectra"), "data"),
        light,
    )
    serve(
        answers.draw_errors,
        [Output(ids.ERRORS, "figure"), Output(ids.ERRORS_HINT, "children")],
        view,
        Input(ids.cursor_of("spectra"), "data"),
        Input(ids.MEASURE, "value"),
        light,
    )
    serve(
        answers.draw_mask,
        [Output(ids.MASK, "figure"), Output(ids.MASK_HINT, "children")],
        view,
        Input(ids.shown("masks"), "data"),
        light,
    )
    slots = range(ids.STATISTIC_SLOTS)
    serve(
        answers.draw_statistics,
        [
            *(Output(ids.statistic(slot), "figure") for slot in slots),
            *(Output(ids.statistic_title(slot), "children") for slot in slots),
        ],
        view,
        Input(ids.cursor_of("statistics"), "data"),
        Input(ids.shown("histograms"), "data"),
        light,
    )


def _call(function: Callable[..., Any], *values: Any) -> Any:
    """What a function returns; a StopIteration cannot leave a thread, and the request would wait for ever."""
    try:
        return function(*values)
    except StopIteration as error:
        raise RuntimeError(f"{getattr(function, '__name__', function)} ran out of values") from error


def _register_clientside(app: Any) -> None:
    """What `assets/view.js` answers without the server."""

    def bind(name: str, outputs: list[Any], *inputs: Any, initially: bool = True) -> None:
        app.clientside_callback(
            ClientsideFunction("rootdash", name), *outputs, *inputs, prevent_initial_call=not initially
        )

    view, slider, follow = State(ids.VIEW, "data"), Input(ids.STEP_SLIDER, "value"), Input(ids.FOLLOW, "checked")
    most = State(ids.STEP_SLIDER, "max")
    bind(
        "theme",
        [Output(ids.THEME, "data"), Output(ids.PROVIDER, "forceColorScheme")],
        Input(ids.THEME_TOGGLE, "n_clicks"),
    )
    bind("arrive", [], Input(ids.VIEW, "data"))
    bind("ended", [], Input(ids.ENDED, "data"), initially=False)
    bind("pickRun", [], Input(ids.RUN_PICKER, "value"), view, initially=False)
    bind("pickLayer", [Output(ids.LAYER_PICKER, "value")], Input(ids.LAYER_PICKER, "value"), view, initially=False)
    bind("openCell", [], Input(ids.MAP, "clickData"), State(ids.MAP, "figure"), view, initially=False)
    bind("statistic", [], Input(ids.STAT_PICKER, "value"), initially=False)
    bind(
        "advance",
        [Output(ids.STEP_SLIDER, "max", allow_duplicate=True), Output(ids.STEP_SLIDER, "value", allow_duplicate=True)],
        Input(ids.cursor_of("histograms"), "data"),
        State(ids.FOLLOW, "checked"),
        initially=False,
    )
    bind(
        "letGo",
        [Output(ids.FOLLOW, "checked", allow_duplicate=True)],
        slider,
        most,
        State(ids.FOLLOW, "checked"),
        initially=False,
    )
    bind(
        "catchUp",
        [Output(ids.STEP_SLIDER, "value", allow_duplicate=True)],
        follow,
        most,
        State(ids.STEP_SLIDER, "value"),
        initially=False,
    )
    bind(
        "nudge",
        [Output(ids.STEP_SLIDER, "value", allow_duplicate=True)],
        Input(ids.EARLIER, "n_clicks"),
        Input(ids.LATER, "n_clicks"),
        State(ids.STEP_SLIDER, "value"),
        State(ids.STEP_SLIDER, "min"),
        most,
        State(ids.STEP_SLIDER, "step"),
        initially=False,
    )
    for kind in layer.STEP_KINDS:
        bind(
            "shown",
            [Output(ids.shown(kind), "data")],
            Input(ids.cursor_of(kind), "data"),
            slider,
            follow,
            State(ids.shown(kind), "data"),
        )
    bind("step", [Output(ids.STEP_LABEL, "children")], slider, follow)
