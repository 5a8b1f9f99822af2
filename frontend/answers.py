"""What the callbacks answer: read a verb of the store, draw a figure, return it.

Plain functions that take the store first, so that they can be called without an app; `callbacks.register` binds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import plotly.graph_objects as go
from dash import no_update

from root_dash.exceptions import NotRecorded
from root_dash.frontend import address
from root_dash.frontend.figures import polynomial
from root_dash.frontend.figures.errors import errors
from root_dash.frontend.figures.evolution import evolution
from root_dash.frontend.figures.histogram import histogram
from root_dash.frontend.figures.history import history
from root_dash.frontend.figures.loss_map import loss_map, mapped
from root_dash.frontend.figures.mask import mask
from root_dash.frontend.figures.polynomial import Measure
from root_dash.frontend.figures.qq import qq
from root_dash.frontend.figures.spectrum import spectrum
from root_dash.frontend.pages import layer as layer_page
from root_dash.frontend.pages import notices, overview
from root_dash.frontend.theme import theme
from root_dash.records import Grid, Kind, Layer, TensorName, statistic

if TYPE_CHECKING:
    from root_dash.store import Store

View = Mapping[str, Any]
T = TypeVar("T")


# The address


def route(
    store: Store, path: str | None, search: str | None, _retries: int | None, before: View | None
) -> tuple[Any, ...]:
    """The view of an address, and its page where that is another one than before."""
    wanted = address.parse(path, search)
    runs = store.runs()
    picks = [{"value": str(run.id), "label": run.title} for run in runs]
    if wanted.page == "newest":
        if runs:
            return ({"page": "newest", "to": address.overview(runs[0].id)}, None, picks, no_update, [], True)
        return ({"page": "empty"}, notices.empty(), [], None, [], False)
    try:
        view, layers = _view(store, wanted)
    except (NotRecorded, ValueError) as error:
        page = notices.missing(path, str(error) if wanted.run is not None else "")
        return ({"page": "missing"}, page, picks, None, [], True)
    fresh: Any = no_update
    if before is None or before.get("page") != view["page"] or view["page"] == "overview":
        fresh = overview.page(wanted.statistic) if view["page"] == "overview" else layer_page.page()
    jumps = [{"value": str(layer.id), "label": layer.name} for layer in layers]
    return (view, fresh, picks, str(view["run"]), jumps, True)


def _view(store: Store, wanted: address.Address) -> tuple[dict[str, Any], list[Layer]]:
    if wanted.run is None:
        raise NotRecorded("")
    run, layers, latest = store.run(wanted.run), store.layers(wanted.run), store.latest(wanted.run)
    return {
        "page": wanted.page,
        "run": run.id,
        "layer": wanted.layer,
        "step": wanted.step,
        "ended": run.ended_at is not None,
        "name": run.name if wanted.layer is None else layers[_place(layers, run.id, wanted.layer)].name,
        "latest": None if latest is None else {"id": latest.id, "step": latest.step, "time": latest.time},
    }, layers


def _place(layers: Sequence[Layer], run_id: int, layer_id: int) -> int:
    """Where a layer stands among its run's.

    Raises:
        NotRecorded: the run has no such layer.
    """
    for place, layer in enumerate(layers):
        if layer.id == layer_id:
            return place
    raise NotRecorded(f"run {run_id} has no layer {layer_id}")


def ended(store: Store, _quiet: Any, view: View | None) -> tuple[int | None]:
    """The id of the view's run where it has ended: the stream tells of frames, not that there will be no more."""
    run_id = (view or {}).get("run")
    return (run_id if run_id is not None and store.run(int(run_id)).ended_at is not None else None,)


# The overview


class Nonfinite:
    """Where gradients held entries that were not finite: two more grids, so not read anew for every frame."""

    PERIOD = 5.0
    KEPT = 16

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, Grid]] = {}

    def __call__(self, store: Store, run_id: int) -> Grid:
        """Counts of NaN and infinite entries of all layers, at most `PERIOD` seconds old."""
        now = time.monotonic()
        known = self._known.get(run_id)
        if known is not None and now - known[0] < self.PERIOD:
            return known[1]
        nan, inf = store.grid(run_id, "grad_nan"), store.grid(run_id, "grad_inf")
        # A frame between the two reads makes one of them longer.
        both = nan if nan.values.shape != inf.values.shape else replace(nan, values=nan.values + inf.values)
        if len(self._known) >= self.KEPT:
            self._known.clear()
        self._known[run_id] = (now, both)
        return both


def draw_map(
    store: Store, nonfinite: Nonfinite, view: View, _cursor: Any, name: str, theme_name: str | None
) -> tuple[go.Figure, str, str]:
    """The loss over the map, the sentence on top, and the statistic's definition."""
    run_id, chosen = int(view["run"]), statistic(name)
    run, layers, grid = store.run(run_id), store.layers(run_id), store.grid(run_id, name)
    losses = [store.scalar(run_id, scalar) for scalar in store.scalar_names(run_id) if "loss" in scalar]
    broken = nonfinite(store, run_id)
    drawn = loss_map(losses, grid, chosen, theme(theme_name), nonfinite=broken)
    absent = int((~mapped(grid, broken)).sum()) if grid.values.size else 0
    thinned = any(event.kind == "cadence" for event in store.events(run_id))
    sentence = overview.summary(run, layers, thinned=thinned)
    return _keep(drawn, run_id), sentence, overview.hint(chosen, grid.shown, grid.total, absent)


# A layer's page


def layer_head(store: Store, view: View) -> tuple[Any, ...]:
    """Name, shape and neighbours of the layer; the slider over its steps, at the step that the address names."""
    run_id, layer_id = int(view["run"]), int(view["layer"])
    layers = store.layers(run_id)
    place = _place(layers, run_id, layer_id)
    steps = store.steps(layer_id, "histograms")
    if not len(steps):
        steps = store.steps(layer_id, "statistics")
    first, last = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    interval = max(1, int(np.gcd.reduce(np.diff(steps)))) if len(steps) > 1 else 1
    step = view.get("step") if len(steps) else None
    at = last if step is None else int(steps[max(0, int(np.searchsorted(steps, step, side="right")) - 1)])
    return (
        layers[place].name,
        layer_page.shape(layers[place]),
        address.overview(run_id),
        address.layer(run_id, layers[place - 1].id),
        address.layer(run_id, layers[(place + 1) % len(layers)].id),
        min(first, last - 1),  # a slider has a way to go, and the newest step is its end
        last,
        interval,
        at,
        step is None,
    )


def draw_distribution(
    store: Store, view: View, shown: View | None, tensor: TensorName, theme_name: str | None
) -> tuple[Any, ...]:
    """The histogram and the Q-Q plot of one tensor at the shown step."""
    layer_id, step, paper = int(view["layer"]), _step(shown), theme(theme_name)
    counted = _at(store, layer_id, "histograms", step, lambda at: store.histogram(layer_id, at, tensor))
    ranked = _at(store, layer_id, "quantiles", step, lambda at: store.quantiles(layer_id, at, tensor))
    at = counted.step if counted is not None else step
    numbers = _recorded(lambda: store.statistics(layer_id, at)) or {}
    mean, deviation = _moments(numbers, tensor, store.layer(layer_id).size)
    threshold = numbers.get("threshold", np.nan) if tensor == "momentum" else np.nan
    bars = histogram(counted, paper, mean=mean, deviation=deviation, threshold=threshold)
    points = qq(ranked, paper, mean=mean, deviation=deviation)
    return (
        _keep(bars, layer_id, tensor),
        layer_page.histogram_hint(counted, tensor, threshold),
        _keep(points, layer_id, tensor),
        layer_page.at_step(ranked, "red: outside the 95 % band"),
    )


def draw_evolution(
    store: Store, view: View, _cursor: Any, tensor: TensorName, theme_name: str | None
) -> tuple[go.Figure, str]:
    """One tensor's histograms over the steps."""
    recorded = _recorded(lambda: store.histograms(int(view["layer"]), tensor))
    drawn = evolution(recorded, theme(theme_name))
    return _keep(drawn, view["layer"], tensor), f"{tensor.capitalize()} over time"


def draw_spectrum(store: Store, view: View, shown: View | None, theme_name: str | None) -> tuple[go.Figure, str]:
    """The singular values at the shown step."""
    layer = store.layer(int(view["layer"]))
    recorded = _at(store, layer.id, "spectra", _step(shown), lambda at: store.spectrum(layer.id, at))
    sentence = "" if layer.is_matrix else layer_page.NO_SPECTRUM
    drawn = spectrum(recorded, theme(theme_name), algorithm=layer.algorithm, sentence=sentence)
    hint = "estimated · dashed 1 is perfect" if recorded is not None and recorded.estimated else "dashed 1 is perfect"
    return _keep(drawn, layer.id), layer_page.at_step(recorded, hint)


def draw_errors(
    store: Store, view: View, _cursor: Any, measure: Measure, theme_name: str | None
) -> tuple[go.Figure, str]:
    """The orthogonality or polar error as recorded, beside Muon's and the paper's coefficients on the same spectra."""
    layer = store.layer(int(view["layer"]))
    spectra = _recorded(lambda: store.spectra(layer.id)) or []
    muon, paper = polynomial.errors_of(spectra, measure, layer)
    own = _recorded(lambda: store.history(layer.id, measure, 400))
    sentence = "" if layer.is_matrix else layer_page.NO_SPECTRUM
    drawn = errors(
        own, muon, paper, theme(theme_name),
        algorithm=layer.algorithm, sentence=sentence,
    )  # fmt: skip
    lines = "other coefficients on the same spectra"
    if spectra and drawn.data and (own is None or not np.isfinite(own.values).any()):
        lines = f"no finite error of its own · {lines}"
    return _keep(drawn, layer.id, measure), lines


def draw_mask(store: Store, view: View, shown: View | None, theme_name: str | None) -> tuple[go.Figure, str]:
    """Where the outliers sit at the shown step."""
    layer = store.layer(int(view["layer"]))
    recorded = _at(store, layer.id, "masks", _step(shown), lambda at: store.mask(layer.id, at))
    sentence = "" if layer.is_matrix else layer_page.NO_MASK
    hint = layer_page.at_step(recorded, "share of |M| > ε; bars: rows, columns")
    return _keep(mask(recorded, theme(theme_name), sentence=sentence), layer.id), hint


def draw_statistics(
    store: Store, view: View, _cursor: Any, shown: View | None, theme_name: str | None
) -> tuple[Any, ...]:
    """Six statistics over the steps, and their names with the value at the shown step."""
    layer, paper, step = store.layer(int(view["layer"])), theme(theme_name), _step(shown)
    chosen = layer_page.small(layer)
    curves = [_recorded(partial(store.history, layer.id, s.name, 400)) for s in chosen]
    pairs = list(zip(chosen, curves, strict=True))
    drawn = (_keep(history(curve, s, paper), layer.id) for s, curve in pairs)
    return (*drawn, *(layer_page.statistic_title(s, curve, step) for s, curve in pairs))


def _step(shown: View | None) -> int | None:
    step = (shown or {}).get("step")
    return None if step is None else int(step)


def _recorded(read: Callable[[], T]) -> T | None:
    """What a verb reads, or None where nothing of it was recorded."""
    try:
        return read()
    except NotRecorded:
        return None


def _at(store: Store, layer_id: int, kind: Kind, step: int | None, read: Callable[[int | None], T]) -> T | None:
    """The recording at or before a step or, where a kind began later than that, its first; None where there is none."""
    found = _recorded(lambda: read(step))
    if found is None and step is not None and len(steps := store.steps(layer_id, kind)):
        found = _recorded(lambda: read(int(steps[0])))
    return found


def _moments(numbers: Mapping[str, float], tensor: TensorName, size: int) -> tuple[float, float]:
    """Mean and deviation of the tensor's entries; the momentum's from its norm, about zero."""
    if tensor == "gradient":
        return numbers.get("grad_mean", np.nan), numbers.get("grad_std", np.nan)
    return 0.0, numbers.get("momentum_norm", np.nan) / max(size, 1) ** 0.5


def _keep(figure: go.Figure, *what: Any) -> go.Figure:
    """Tie a figure's zoom to what it shows: it survives an update, but not a change of layer."""
    figure.layout.uirevision = " ".join(map(str, (figure.layout.uirevision, *what)))
    return figure
