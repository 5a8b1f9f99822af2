"""The check of a frame, before the frame is stored and when a frame arrives over the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.records import (
    QUANTILE_COUNT,
    Frame,
    Histogram,
    Kind,
    Mask,
    Quantiles,
    Spectrum,
    histogram_edges,
    statistic_names,
)

_LARGEST_STEP = 2**62
"""The largest magnitude of a step. The end of a larger step's bucket does not fit 64 bits, and no recording of the run
could be read."""


def checked(frame: Frame) -> Frame:
    """Return a frame with Python's own numbers and with arrays of the types that records declare.

    A database driver would store the bytes of NumPy's integers instead of their values.

    Raises:
        ValueError: a number does not fit the database, or the arrays of the frame do not fit each other.
    """
    try:
        seq, step, lost = index(frame.seq), index(frame.step), index(frame.lost)
    except TypeError:
        raise ValueError(
            f"seq, step and lost must be integers, got {frame.seq!r}, {frame.step!r} and {frame.lost!r}"
        ) from None
    if abs(step) > _LARGEST_STEP:
        raise ValueError(f"step must be within 2^62 of 0, got {step}")
    if not math.isfinite(frame.time):
        raise ValueError(f"time must be finite, got {frame.time}")
    layers = _as("layers", frame.layers, np.int64)
    if len(layers) > 1 and (np.diff(layers) <= 0).any():
        raise ValueError("the positions in layers must ascend, each once")
    statistics = _as("statistics", frame.statistics, np.float32)
    if statistics.shape != (shape := (len(layers), len(statistic_names("statistics")))):
        raise ValueError(f"statistics must have shape {shape}, got {statistics.shape}")
    return replace(
        frame,
        seq=seq,
        step=step,
        time=float(frame.time),
        layers=layers,
        statistics=statistics,
        histograms={int(at): {t: _histogram(h) for t, h in held.items()} for at, held in frame.histograms.items()},
        quantiles={int(at): {t: _quantiles(q) for t, q in held.items()} for at, held in frame.quantiles.items()},
        spectra={int(at): (_spectrum(one), _named(found, "spectra")) for at, (one, found) in frame.spectra.items()},
        masks={int(at): (_mask(one), _named(found, "masks")) for at, (one, found) in frame.masks.items()},
        lost=lost,
        cost=float(frame.cost),
    )


def _as(name: str, array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    try:
        return array.astype(dtype, casting="same_kind", copy=False)
    except TypeError:
        raise ValueError(f"{name} must be an array of {np.dtype(dtype)}, got {array.dtype}") from None


def _histogram(histogram: Histogram) -> Histogram:
    edges = histogram_edges()
    if histogram.edges is not edges and not np.array_equal(histogram.edges, edges):
        raise ValueError("a histogram must have the edges of histogram_edges(), got others")
    if histogram.counts.shape != (len(edges) - 1,):
        raise ValueError(f"a histogram must have {len(edges) - 1} counts, got shape {histogram.counts.shape}")
    if histogram.counts.dtype == np.uint32 and type(histogram.nan) is type(histogram.inf) is int:
        return histogram  # a recorder's histogram: a copy of each would take longer than the check
    counts = _as("the counts of a histogram", histogram.counts, np.uint32)
    return replace(histogram, counts=counts, nan=int(histogram.nan), inf=int(histogram.inf))


def _quantiles(quantiles: Quantiles) -> Quantiles:
    if quantiles.values.shape != (QUANTILE_COUNT,):
        raise ValueError(f"quantiles must have {QUANTILE_COUNT} values, got shape {quantiles.values.shape}")
    if quantiles.values.dtype == np.float32 and type(quantiles.count) is int:
        return quantiles
    return replace(quantiles, values=_as("quantiles", quantiles.values, np.float32), count=int(quantiles.count))


def _spectrum(spectrum: Spectrum) -> Spectrum:
    return replace(
        spectrum,
        momentum=_as("a spectrum", spectrum.momentum, np.float32),
        base=_as("a spectrum", spectrum.base, np.float32),
        update=_as("a spectrum", spectrum.update, np.float32),
    )


def _mask(mask: Mask) -> Mask:
    if mask.row_totals.shape != (mask.rows,) or mask.col_totals.shape != (mask.cols,):
        got = f"{mask.row_totals.shape} and {mask.col_totals.shape}"
        raise ValueError(f"a mask of {mask.rows} x {mask.cols} must have as many row and column totals, got {got}")
    if mask.pooled.ndim != 2:
        raise ValueError(f"the map of a mask must have two dimensions, got {mask.pooled.ndim}")
    if mask.largest.shape != (len(mask.largest_values), 2):
        raise ValueError(f"a mask's largest entries must be {len(mask.largest_values)} pairs, got {mask.largest.shape}")
    if mask.largest.size and not 0 <= mask.largest.min() <= mask.largest.max() < 2**32:
        raise ValueError("a mask's largest entries must be its rows and columns, got one outside 0 to 2^32")
    if mask.packed and len(mask.packed) != -(-mask.rows * mask.cols // 8):
        raise ValueError(
            f"a packed mask of {mask.rows} x {mask.cols} must have one bit for each entry, got {len(mask.packed)} bytes"
        )
    return replace(
        mask,
        pooled=_as("the map of a mask", mask.pooled, np.uint32),
        row_totals=_as("a mask's totals", mask.row_totals, np.uint32),
        col_totals=_as("a mask's totals", mask.col_totals, np.uint32),
        largest=_as("a mask's largest entries", mask.largest, np.int64),
        largest_values=_as("a mask's largest values", mask.largest_values, np.float32),
    )


def _named(statistics: Mapping[str, float], kind: Kind) -> dict[str, float]:
    if unknown := statistics.keys() - set(statistic_names(kind)):
        raise ValueError(f"there is no such statistic: {', '.join(sorted(unknown))}")
    return {name: float(value) for name, value in statistics.items()}
