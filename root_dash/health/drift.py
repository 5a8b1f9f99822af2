"""The rule of slow drift: a layer's gradient norm leaves its peers so gradually that no single sample shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from root_dash.health.baseline import Baselines
from root_dash.health.findings import Ending, Finding
from root_dash.health.signals import Columns, Signal, floors_of, kinds_of
from root_dash.records import Float64Array, Layer
from root_dash.records.verdict import Measured

DRIFT_RULE = "slow-drift"
"""A note and no warning: gradients of attention that starts uniform rise thirtyfold in healthy runs, block by block."""

BLOCK = 16
"""Samples whose median is one point of the slow baseline."""

OPENING = 5
"""Blocks before drift is judged."""

FLOOR = math.log(2.5)
"""Least bound of the drift of log ‖G‖ relative to its peers."""

FEWEST_LAYERS = 4
"""Layers below which drift is not judged: there are no peers to tell it from the training's own."""

FEWEST_ALIKE = 2
"""Layers of a kind from which on a layer is compared with its kind: all queries of a model may rise thirtyfold."""

FEWEST_ENTRIES = 64
"""Entries of a matrix below which drift is not judged. Gains and biases drift by factors of ten in healthy models."""

_SIGNAL = Signal("grad_norm", lambda c, n: c["grad_norm"], FLOOR, DRIFT_RULE, DRIFT_RULE)


class Drift:
    """Baselines over blocks of samples, of each layer's log gradient norm less the median of its kind.

    A layer whose own norm has hardly moved has not drifted: its peers have.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        count = len(layers)
        self._layers = list(layers)
        self._alike = _alike(layers)
        self._large = _large(layers)
        self._baselines = Baselines(
            count, _floors(layers), np.zeros(2, np.int64), 0.85, opening=OPENING, smoothing=1, tracking=0.0
        )  # fmt: skip
        self._block = np.full((BLOCK, count), np.nan)
        self._filled = np.zeros(2, np.int64)  # samples in the block, and the step of its first one

    def judge(self, step: int, columns: Columns) -> Iterator[Finding | Ending]:
        """Yield what begins and ends, at the last sample of each block."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(columns["grad_norm"] > 0, np.log(columns["grad_norm"]), np.nan)
        logs = np.where(self._large, logs, np.nan)
        known = np.isfinite(logs)
        if known.sum() < FEWEST_LAYERS:
            return
        if self._filled[0] == 0:
            self._filled[1] = step
        self._block[self._filled[0]] = logs
        self._filled[0] += 1
        if self._filled[0] < BLOCK:
            return
        complete = np.isfinite(self._block).all(0)
        middles = np.where(complete, np.median(np.where(complete, self._block, 0.0), axis=0), np.nan)
        self._filled[0] = 0
        values = np.stack([self._relative(middles), middles], -1)
        with np.errstate(invalid="ignore"):
            moved = np.abs(values - self._baselines.usual)
            values[moved[:, 1] < 0.5 * moved[:, 0], 0] = np.nan
        judged = self._baselines.judge(int(self._filled[1]), values)
        for i in np.flatnonzero(judged.ended[:, 0]).tolist():
            yield Ending(i, DRIFT_RULE, int(self._baselines.last[i, 0]))
        for i in np.flatnonzero(judged.begun[:, 0]).tolist():
            deviation, value = float(judged.deviation[i, 0]), float(columns["grad_norm"][i])
            way = "risen" if deviation > 0 else "fallen"
            what = f"gradient norm has slowly {way} by a factor of {math.exp(abs(deviation)):.3g} against its peers"
            evidence = {"grad_norm": Measured(value, value / math.exp(deviation))}
            since = int(self._baselines.since[i, 0])
            yield Finding(i, DRIFT_RULE, "note", since, what, evidence, float(judged.score[i, 0]))

    def _relative(self, middles: Float64Array) -> Float64Array:
        """Return what each layer's block lies above the median of its kind, or of all layers if its kind is small."""
        known = np.isfinite(middles)
        relative = middles - np.median(middles[known]) if known.any() else middles
        for alike in self._alike:
            mine = alike[known[alike]]
            if len(mine) >= FEWEST_ALIKE:
                relative[mine] = middles[mine] - np.median(middles[mine])
        return relative

    def grow(self, layers: Sequence[Layer]) -> None:
        """Add layers at the end."""
        self._layers += layers
        self._alike = _alike(self._layers)
        self._baselines.grow(len(layers), _floors(layers))
        self._large = np.concatenate([self._large, _large(layers)])
        self._block = np.concatenate([self._block, np.full((BLOCK, len(layers)), np.nan)], 1)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that the future depends on, by name."""
        own: dict[str, NDArray[np.generic]] = {"block": self._block, "filled": self._filled}
        return own | {f"baselines.{name}": array for name, array in self._baselines.state().items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over the arrays that `state` returned."""
        self._block = state["block"].astype(np.float64)
        self._filled = state["filled"].astype(np.int64)
        prefix = "baselines."
        self._baselines.restore(
            {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        )


def _alike(layers: Sequence[Layer]) -> list[NDArray[np.int64]]:
    """Return the positions of each kind's layers."""
    kinds = kinds_of(layers)
    return [np.flatnonzero(kinds == kind) for kind in np.flatnonzero(np.bincount(kinds) >= FEWEST_ALIKE)]


def _large(layers: Sequence[Layer]) -> NDArray[np.bool_]:
    return np.array([layer.size >= FEWEST_ENTRIES and len(layer.shape) > 1 for layer in layers], bool)


def _floors(layers: Sequence[Layer]) -> Float64Array:
    """Return the least bounds of the relative and of the layers' own log norms, (L, 2): the latter are not judged."""
    floors = floors_of([_SIGNAL], layers)
    return np.concatenate([floors, np.full_like(floors, np.inf)], 1)
