"""Signals: the judged numbers, computed from recorded statistics on scales with comparable differences."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from root_dash.health.baseline import HOLD
from root_dash.records import Float64Array, Layer
from root_dash.vocabulary import statistic_names

Columns = Mapping[str, Float64Array]
"""Recorded statistics of all layers by name, each (L,), NaN where nothing was recorded."""

ORTHOGONALIZED = ("root", "muon")
"""`Layer.algorithm` of layers whose update is an orthogonalized matrix."""

FEWEST_ENTRIES = 256
"""Fewest entries of a layer whose outlier energy is judged. A tenth of fewer entries are no distribution."""

LATER = (
    "scaled_lr", "changed_share", "nonfinite_steps", "nonfinite_step", "norm_peak", "norm_peak_step", "norm_trough",
    "norm_trough_step", "entry_peak", "entry_peak_step",
)  # fmt: skip
"""Statistics that databases of older versions lack: NaN there."""

_NUMBER = re.compile(r"\d+")
_STATISTICS = {name: column for column, name in enumerate(statistic_names("statistics"))}


@dataclass(frozen=True, slots=True)
class Signal:
    """A number per layer and sample, and the rules that judge the number."""

    statistic: str
    """Name of the recorded statistic, as quoted in verdicts."""
    value: Callable[[Columns, Float64Array], Float64Array]
    """The signal (L,), computed from the statistics and the layers' numbers of entries (L,)."""
    floor: float
    """Least bound of the deviation, in the unit of the signal."""
    up: str = ""
    """Rule for a rise; empty if a rise is no fault."""
    down: str = ""
    """Rule for a fall; empty if a fall is no fault."""
    caution: float = 1.0
    """Factor of all bounds. Statistics with heavy tails need more than 1."""
    hold: int = HOLD
    """Number of smoothed samples in a row beyond a bound that make a fault."""
    log: bool = True
    """Whether the signal is a logarithm, so that a deviation is a factor."""

    @property
    def direction(self) -> Literal[-1, 0, 1]:
        """1 if only rises count, -1 if only falls count, 0 if both count."""
        if self.up and self.down:
            return 0
        return 1 if self.up else -1


def _log(values: Float64Array) -> Float64Array:
    """Return logarithms; NaN for a value that is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def _peak(columns: Columns, sizes: Float64Array) -> Float64Array:
    """Return log(max |G| / rms G)."""
    return _log(columns["grad_abs_max"]) - _log(columns["grad_norm"]) + 0.5 * np.log(sizes)


def _outlier_energy(columns: Columns, sizes: Float64Array) -> Float64Array:
    """Return log(outlier energy + 1 %) of layers with at least `FEWEST_ENTRIES` entries."""
    return np.where(sizes >= FEWEST_ENTRIES, _log(columns["outlier_energy"] + 0.01), np.nan)


def _update(columns: Columns, sizes: Float64Array) -> Float64Array:
    """Return log ‖X‖ of layers with a gradient: without one, as of an expert without examples, momentum decays."""
    return np.where(columns["grad_norm"] > 0, _log(columns["update_norm"]), np.nan)


SIGNALS: tuple[Signal, ...] = (
    Signal("grad_norm", lambda c, n: _log(c["grad_norm"]), math.log(2.5), "gradient-explosion", "gradient-collapse"),
    Signal("grad_abs_max", _peak, math.log(1.8), "outlier-entries", caution=1.1),
    Signal("grad_kurtosis", lambda c, n: _log(c["grad_kurtosis"] + 4.0), math.log(2.5), "heavy-tails", caution=1.6),
    Signal("outlier_energy", _outlier_energy, math.log(3.0), "outlier-energy", caution=1.4),
    Signal("grad_zero", lambda c, n: _log(1.0 - c["grad_zero"] / n), math.log(1.5), down="dead-rows", hold=16),
    Signal("update_norm", _update, math.log(2.5), "update-jump", "update-collapse", 1.2),
)
"""Signals of the statistics, which nearly every frame has."""

SPARSE_SIGNALS: tuple[Signal, ...] = (
    Signal("polar_error", lambda c, n: _log(c["polar_error"]), math.log(2.5), "polar-error", caution=1.3),
    Signal("outlier_row_share", lambda c, n: c["outlier_row_share"], 0.2, "outlier-rows", caution=1.3, log=False),
    Signal("outlier_col_share", lambda c, n: c["outlier_col_share"], 0.2, "outlier-columns", caution=1.3, log=False),
)
"""Signals of spectra and masks, which few frames have."""


def rates_of(columns: Columns) -> Float64Array:
    """Return what each layer's update was multiplied by, (L,): recorded, or else update-to-weight x ‖W‖ / ‖X‖."""
    with np.errstate(divide="ignore", invalid="ignore"):
        implied = columns["update_to_weight"] * columns["weight_norm"] / columns["update_norm"]
    return np.where(np.isfinite(columns["scaled_lr"]), columns["scaled_lr"], implied)


def kinds_of(layers: Sequence[Layer]) -> NDArray[np.int64]:
    """Return each layer's kind as a number, (L,): layers of a kind have the same shape and name but for its numbers."""
    kinds = [(_NUMBER.sub("*", layer.name), layer.shape) for layer in layers]
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([places[kind] for kind in kinds], np.int64)


def columns_of(layers: np.ndarray, statistics: np.ndarray, count: int) -> dict[str, Float64Array]:
    """Return a frame's statistics by name, each (count,), NaN for layers outside of `layers`."""
    table = np.full((len(_STATISTICS), count), np.nan)
    table[:, layers] = statistics.T
    columns = {name: table[column] for name, column in _STATISTICS.items()}
    return columns | {name: np.full(count, np.nan) for name in LATER if name not in columns}


def signals_of(signals: Sequence[Signal], columns: Columns, sizes: Float64Array) -> Float64Array:
    """Return the signals of all layers as (L, S), NaN if a statistic is missing."""
    with np.errstate(invalid="ignore"):
        return np.stack([signal.value(columns, sizes) for signal in signals], -1)


def floors_of(signals: Sequence[Signal], layers: Sequence[Layer]) -> Float64Array:
    """Return the least bound of each layer and signal, (L, S): wider for layers of few entries.

    A statistic of n entries scatters with 1 / sqrt(n): at 24 entries the bound is 1.8 times as wide as at infinity.
    Gains and biases of few entries have the heaviest tails: at 8 entries their bound is 4.4 times as wide.
    """
    sizes = np.array([max(layer.size, 1) for layer in layers], np.float64)
    vectors = np.array([len(layer.shape) < 2 for layer in layers], bool)
    wider = 1.0 + 4.0 / np.sqrt(sizes) + np.where(vectors, 16.0 / sizes, 0.0)
    return np.outer(wider, [signal.floor for signal in signals])
