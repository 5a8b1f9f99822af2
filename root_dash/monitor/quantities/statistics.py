"""The statistics of layers, on the host, of the sums over their entries that arrived from the device.

The definitions are those of `root_dash.vocabulary`. Sums come in pieces, as `root_dash.monitor.quantities.sums` took
them, and are added up here in float64. What has no energy to be relative to is 0: a constant has no skew, a zero no
angle. What is not finite has neither: NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.quantities.sums import PIECE_WIDTH
from root_dash.records import Float32Array, Float64Array, statistic_names

Arrays = Mapping[str, NDArray[Any]]
Columns = dict[str, Float64Array]
"""Statistics by name, each (L,)."""


_ROUNDING = 2.0**-21
"""Of the mean: no more is no deviation. That of a constant was 1.5e-7, which is how well float32 knows its mean."""


_quiet = np.errstate(divide="ignore", invalid="ignore")  # what is undefined is NaN, and is meant to be


@_quiet
def statistics_of(arrays: Arrays, entries: int) -> Float32Array:
    """The statistics of L layers of so many entries: (L, names), NaN where there is none.

    `arrays` are named as `measure.measure` names its tensors of kind `"statistics"`, less that prefix.
    """
    columns: Columns = gradient_columns(arrays, entries)
    if "momentum" in arrays:
        columns |= momentum_columns(arrays)
    if "threshold" in arrays:
        columns |= outlier_columns(arrays, entries)
    columns["weight_norm"] = arrays["weight_norm"].astype(np.float64)
    if "update_norm" in arrays:
        columns["update_norm"] = arrays["update_norm"].astype(np.float64)
        columns["update_to_weight"] = columns["update_norm"] * arrays["lr"] / columns["weight_norm"]
    if "orthogonality_error" in arrays:
        columns["orthogonality_error"] = arrays["orthogonality_error"].astype(np.float64)
    missing = np.full(len(columns["weight_norm"]), np.nan)
    ordered = [columns.get(name, missing) for name in statistic_names("statistics")]
    return np.stack(ordered, -1).astype(np.float32)


@_quiet
def gradient_columns(arrays: Arrays, entries: int) -> Columns:
    """The `grad_*` statistics; `"gradient.widths"` (L, pieces) says how wide pieces of several processes are."""
    sums = arrays["gradient"].astype(np.float64)
    means, seconds, thirds, fourths, zeros, maxima, minima = np.moveaxis(sums[..., :7], -1, 0)
    nans, infinities = np.moveaxis(sums[..., 7:], -1, 0) if sums.shape[-1] > 7 else np.zeros((2, *means.shape))
    unit = arrays.get("gradient.unit", np.float64(1.0))
    widths = arrays["gradient.widths"] if "gradient.widths" in arrays else piece_widths(entries, sums.shape[1])
    counts = widths - nans - infinities
    fourths = fourths**2
    count = counts.sum(-1)
    mean = (counts * means).sum(-1) / count
    # Moments about each piece's own mean become those about the row's.
    d = means - mean[:, None]
    second = (seconds + counts * d**2).sum(-1) / count
    second = np.where(second > (_ROUNDING * mean) ** 2, second, 0.0)
    third = (thirds + 3 * d * seconds + counts * d**3).sum(-1) / count
    fourth = (fourths + 4 * d * thirds + 6 * d**2 * seconds + counts * d**4).sum(-1) / count
    largest = unit * np.maximum(maxima.max(-1), -minima.min(-1))
    return {
        "grad_norm": unit * np.sqrt(count * (second + mean**2)),
        "grad_abs_max": np.where(count == 0, np.nan, largest),
        "grad_mean": unit * mean,
        "grad_std": unit * np.sqrt(second),
        "grad_skewness": _or_zero(third / second**1.5, second),
        "grad_kurtosis": _or_zero(fourth / second**2 - 3.0, second),
        "grad_nan": nans.sum(-1),
        "grad_inf": infinities.sum(-1),
        "grad_zero": zeros.sum(-1),
    }


@_quiet
def momentum_columns(arrays: Arrays) -> Columns:
    """`momentum_norm`, and the `alignment` of gradients and momenta."""
    gradients, momenta, products = np.moveaxis(arrays["momentum"].astype(np.float64), -1, 0)
    gradient, momentum = np.sqrt((gradients**2).sum(-1)), np.sqrt((momenta**2).sum(-1))
    norm = arrays["momentum.norm"].astype(np.float64) if "momentum.norm" in arrays else momentum
    cosine = products.sum(-1) / (gradient * momentum)
    return {"momentum_norm": norm, "alignment": _or_zero(cosine, gradient * norm)}


@_quiet
def outlier_columns(arrays: Arrays, entries: int) -> Columns:
    """What the threshold takes from the momentum."""
    sums, threshold = arrays["outliers"].astype(np.float64), arrays["threshold"].astype(np.float64)
    whole, base, outliers = np.moveaxis((sums[..., :3] ** 2).sum(1), -1, 0)
    product, count = sums[..., 3].sum(1), sums[..., 4].sum(1)
    return {
        "threshold": threshold,
        "outlier_fraction": np.where(np.isnan(threshold), np.nan, count / entries),
        "outlier_energy": _or_zero(outliers / whole, whole),
        "base_alignment": _or_zero((base + product) / np.sqrt(whole * base), whole),
    }


def piece_widths(entries: int, pieces: int) -> Float64Array:
    """How many entries of a row each of its pieces has: (pieces,)."""
    if pieces == 1:
        return np.array([float(entries)])
    starts = np.arange(pieces) * PIECE_WIDTH
    return np.minimum(entries - starts, PIECE_WIDTH).astype(np.float64)


def _or_zero(value: Float64Array, energy: Float64Array) -> Float64Array:
    return np.where(energy == 0, 0.0, value)
