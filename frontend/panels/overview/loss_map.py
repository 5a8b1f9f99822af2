"""The loss over the map of layers, with the choice of the statistic that the map shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from root_dash.frontend.figures.loss_map import loss_map, mapped
from root_dash.frontend.numbers import count, plural
from root_dash.frontend.panels.controls import picker
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.records import STATISTICS, Grid, History, Statistic, statistic

if TYPE_CHECKING:
    from root_dash.store import Store

_GROUPS = {"statistics": "every frame", "spectra": "with spectra", "masks": "with masks"}

STATISTIC = picker(
    "stat", "statistic", in_url=True, rescales=False,
    groups={text: {s.name: s.label for s in STATISTICS if s.kind == kind} for kind, text in _GROUPS.items()},
)  # fmt: skip


class Nonfinite:
    """A cache of how many gradient entries were not finite: two more grids, which are not read for every frame."""

    PERIOD = 5.0
    """Seconds for which a grid is kept."""
    KEPT = 16
    """Runs of a store whose grids are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: WeakKeyDictionary[Store, dict[int, tuple[float, Grid]]] = WeakKeyDictionary()

    def __call__(self, store: Store, run_id: int) -> Grid:
        """Return the counts of NaN and infinite entries of all layers, at most `PERIOD` seconds old."""
        known, now = self._known.setdefault(store, {}), self._clock()
        before = known.get(run_id)
        if before is not None and now - before[0] < self.PERIOD:
            return before[1]
        nan, inf = store.grid(run_id, "grad_nan"), store.grid(run_id, "grad_inf")
        # If a frame comes between the two reads, one grid is longer than the other.
        both = nan if nan.values.shape != inf.values.shape else replace(nan, values=nan.values + inf.values)
        if len(known) >= self.KEPT:
            known.clear()
        known[run_id] = (now, both)
        return both


_nonfinite = Nonfinite()


def hint(shown: Statistic, grid: Grid, absent: int = 0) -> str:
    """Return the statistic's definition, how many layers have no value, and the steps of a column if it has several."""
    packed = ""
    if grid.total > grid.shown > 0:
        packed = f" · about {count(round(grid.total / grid.shown))} steps a column, its extreme"
    without = f" · {plural(absent, 'layer has', 'layers have')} no such statistic" if absent else ""
    return shown.definition + without + packed


def _read(selection: Selection) -> dict[str, Any]:
    store, run_id, name = selection.store, selection.run, selection.values[STATISTIC.id]
    return {
        "shown": statistic(name),
        "losses": [store.scalar(run_id, scalar) for scalar in store.scalar_names(run_id) if "loss" in scalar],
        "grid": store.grid(run_id, name),
        "nonfinite": _nonfinite(store, run_id),
    }


def _draw(theme: Theme, *, shown: Statistic, losses: Sequence[History], grid: Grid, nonfinite: Grid) -> Drawing:
    figure = loss_map(losses, grid, shown, theme, nonfinite=nonfinite)
    absent = int((~mapped(grid, nonfinite)).sum()) if grid.values.size else 0
    return Drawing(figure, hint=hint(shown, grid, absent))


PANEL = Panel(
    "map", "Layers over steps", "", _read, _draw,
    controls=(STATISTIC,), className="map-card", click="openCell",
    label="loss, and a map of layers over steps",
    note="click a cell for its layer; drag to zoom, double-click to undo",
)  # fmt: skip
