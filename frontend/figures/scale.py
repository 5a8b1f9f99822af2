"""The colours of the map: from the values of a statistic to places on a scale of colours, and the legend's ticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from root_dash.frontend.figures import base
from root_dash.frontend.numbers import value
from root_dash.frontend.theme import Stops
from root_dash.records import Float64Array

Bend = Callable[[Any], Any]

WIDE = 30.0
"""How many times the typical magnitude the largest may be before a linear scale hides the typical values."""
_WORST = 8.0
"""Severity from which every severity has the last colour."""
_BOUND = 0.25
"""Place of the severity 1, which is the rule's bound: below, the colour is almost the paper's."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale of colours for raw values between `ends[0]` and `ends[-1]`.

    `ends` are the values of the first colour, the paper's colour and the last colour; if the scale has one side, the
    first two are equal. `bend` maps raw values to a number along which colours change evenly, and `unbend` maps back.
    """

    ends: tuple[float, float, float]
    bend: Bend
    unbend: Bend
    ticks: tuple[tuple[float, str], ...]
    """Places on the scale, from 0 to 1, with their texts."""

    @property
    def one_sided(self) -> bool:
        """Return whether the paper's colour stands at the scale's beginning."""
        return self.ends[0] == self.ends[1]

    def stops(self, stops: Stops) -> Stops:
        """Return the colours of the scale, evenly: from 0 to 1 if the scale has one side, else from -1 to 1."""
        return tuple(stop for stop in stops if stop[0] >= 0) if self.one_sided else stops

    def away(self, values: Any) -> Float64Array:
        """Return how far values lie from the value that has the paper's colour; NaN stays NaN."""
        far: Float64Array = np.abs(self.bend(values) - self.bend(self.ends[1]))
        return far

    def colours(self, stops: Stops, count: int = 24) -> list[list[Any]]:
        """Return the scale for raw values as Plotly takes it; Plotly itself has none but linear scales."""
        low, middle, high = (self.bend(end) for end in self.ends)
        side = np.linspace(0.0 if self.one_sided else -1.0, 1.0, 2 * count + 1)
        raw = self.unbend(np.where(side < 0, middle + side * (middle - low), middle + side * (high - middle)))
        place = np.clip((raw - raw[0]) / (raw[-1] - raw[0]), 0.0, 1.0)
        place[0], place[-1] = 0.0, 1.0
        return [[float(p), base.colour(stops, s)] for p, s in zip(np.maximum.accumulate(place), side, strict=True)]


def severity_scale() -> Scale:
    """Return the scale of a severity: neutral below the bound, and the last colour from 8 times the bound."""
    texts = ("0", "1", "2", "4", f"{value(_WORST)}×")
    ticks = tuple(zip((0.0, _BOUND, 0.5, 0.75, 1.0), texts, strict=True))
    return Scale((0.0, 0.0, _WORST), _bend_severity, _unbend_severity, ticks)


def _bend_severity(values: Any) -> Any:
    values = np.asarray(values, np.float64)
    beyond = np.log(np.maximum(values, 1.0)) / np.log(_WORST)
    return np.where(values < 1.0, _BOUND * values, _BOUND + (1 - _BOUND) * beyond)


def _unbend_severity(places: Any) -> Any:
    places = np.asarray(places, np.float64)
    return np.where(places < _BOUND, places / _BOUND, _WORST ** ((places - _BOUND) / (1 - _BOUND)))


def scale_of(values: Float64Array, *, log: bool) -> Scale:
    """Return the scale of a statistic's finite values: from percentile 0.5 to 99.5, with the median in the middle.

    A logarithmic scale takes the positive values. Another scale is linear, or linear about zero and logarithmic beyond
    if a few values are far larger than most.
    """
    finite = values[np.isfinite(values)]
    if log:
        finite = finite[finite > 0]
        low, middle, high = _percentiles(finite) if len(finite) else (0.5, 1.0, 2.0)
        return log_scale(min(low, middle / 2), middle, max(high, 2 * middle))
    low, middle, high = _percentiles(finite) if len(finite) else (-1.0, 0.0, 1.0)
    least = max(0.1 * abs(middle), 1e-12)
    down = middle - least
    if len(finite) and finite.min() >= 0:
        down = max(down, 0.0)  # counts and shares have no negative ticks
    low, high = min(low, down), max(high, middle + least)
    magnitudes = np.abs(finite[finite != 0])
    typical = float(np.median(magnitudes)) if len(magnitudes) else 1.0
    if max(abs(low), abs(high)) <= WIDE * typical:
        return _scale(low, middle, high, np.asarray, np.asarray)
    return _scale(
        low, middle, high,
        lambda raw: np.sign(raw) * np.log10(1 + np.abs(raw) / typical),
        lambda at: np.sign(at) * typical * (10.0 ** np.abs(at) - 1),
    )  # fmt: skip


def log_scale(low: float, middle: float, high: float) -> Scale:
    """Return the logarithmic scale between two positive values, with the paper's colour at the middle value."""
    return _scale(low, middle, high, np.log10, lambda at: 10.0**at)


def _percentiles(values: Float64Array) -> tuple[float, float, float]:
    low, middle, high = (float(q) for q in np.percentile(values, [0.5, 50, 99.5]))
    return low, middle, high


def _scale(low: float, middle: float, high: float, bend: Bend, unbend: Bend) -> Scale:
    ticks: tuple[tuple[float, str], ...]
    if low >= middle:  # nothing lies below the middle
        ticks = ((0.0, value(middle, 2)), (1.0, value(high, 2)))
        return Scale((middle, middle, high), bend, unbend, ticks)
    ticks = ((0.0, value(low, 2)), (0.5, value(middle, 2)), (1.0, value(high, 2)))
    return Scale((low, middle, high), bend, unbend, ticks)
