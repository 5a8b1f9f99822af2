"""Plausible layers, frames and finished runs, for the tests of all who read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from root_dash.records import (
    KINDS,
    TENSORS,
    Float32Array,
    Frame,
    Histogram,
    Kind,
    Layer,
    Mask,
    Quantiles,
    Run,
    Spectrum,
    TensorName,
    histogram_edges,
    quantile_positions,
    statistic,
    statistic_names,
)
from root_dash.store import Limits, Store

LATER = (
    *("scaled_lr", "changed_share", "severity", "severity_rule", "nonfinite_steps", "nonfinite_step"),
    *("norm_peak", "norm_peak_step", "norm_trough", "norm_trough_step", "entry_peak", "entry_peak_step"),
)
"""Statistics of every frame that the vocabulary did not have when the fixtures were written."""

LATER_SPECTRAL = ("weight_sigma_max", "weight_stable_rank", "update_row_", "update_col_")
"""How the names of spectral statistics begin that the vocabulary did not have then."""

Location = TypeVar("Location", Path, str, Path | str)
"""A SQLite file's path, or the URL of a PostgreSQL database."""

CADENCE: Mapping[Kind, int] = {
    "statistics": 1,
    "histograms": 10,
    "quantiles": 10,
    "spectra": 20,
    "masks": 20,
    "scalars": 1,
}


def make_layers(n: int = 4) -> list[Layer]:
    """`n` layers as a small transformer has them: matrices under ROOT, every fifth a vector under AdamW."""
    parts = ("attn.qkv", "attn.proj", "mlp.up", "mlp.down", "norm")
    layers = []
    for position in range(n):
        part = parts[position % len(parts)]
        shape, algorithm = ((16,), "adamw") if part == "norm" else ((16 + 8 * (position % 3), 24), "root")
        layers.append(Layer(f"blocks.{position // len(parts)}.{part}.weight", shape, algorithm, position))
    return layers


def make_frame(
    seq: int,
    step: int,
    layers: Sequence[Layer],
    rng: np.random.Generator,
    kinds: Iterable[Kind] = KINDS,
    time: float | None = None,
) -> Frame:
    """A frame of the given kinds; spectra and masks of the matrices alone."""
    held = set(kinds)
    matrices = [layer for layer in layers if layer.is_matrix]
    return Frame(
        seq=seq,
        step=step,
        time=1.7e9 + step if time is None else time,
        layers=np.array([layer.position for layer in layers] if "statistics" in held else [], np.int64),
        statistics=_statistics(layers if "statistics" in held else [], step, rng),
        histograms={layer.position: _histograms(layer, rng) for layer in layers if "histograms" in held},
        quantiles={layer.position: _quantiles(layer, rng) for layer in layers if "quantiles" in held},
        spectra={layer.position: _spectrum(layer, step, rng) for layer in matrices if "spectra" in held},
        masks={layer.position: _mask(layer, step, rng) for layer in matrices if "masks" in held},
        scalars={"loss": float(3 / (1 + step / 50) + rng.normal(0, 0.02)), "lr": 1e-3} if "scalars" in held else {},
        cost=1e-4,
    )


def record(
    path: Location,
    steps: int = 40,
    layers: Sequence[Layer] | None = None,
    *,
    uid: str = "run-1",
    name: str = "a run",
    cadence: Mapping[Kind, int] = CADENCE,
    seed: int = 0,
    start: int = 0,
    end: bool = True,
    limits: Limits | None = None,
) -> Location:
    """A run of `steps` steps in the database at `path`, by default finished; every kind at its cadence."""
    layers = make_layers() if layers is None else layers
    rng = np.random.default_rng(seed)
    intervals = {str(kind): every for kind, every in cadence.items()}
    run = Run(uid, name, 1.7e9, {"seed": seed}, intervals, {"name": "ROOT", "outlier_quantile": 0.9})
    with Store.create(path, limits) as store:
        recording = store.begin(run, layers)
        for seq, step in enumerate(range(start, start + steps)):
            kinds = [kind for kind, every in cadence.items() if step % every == 0]
            recording.append(make_frame(seq, step, layers, rng, kinds))
        if end:
            recording.end(1.7e9 + start + steps)
        recording.close()
    return path


def forget_later(frame: Frame) -> None:
    """Set what the vocabulary did not have when the fixtures were written to NaN, in place."""
    recorded = statistic_names("statistics")
    frame.statistics[:, [recorded.index(name) for name in LATER]] = np.nan
    for _, numbers in frame.spectra.values():
        cast(dict[str, float], numbers).update({name: np.nan for name in numbers if name.startswith(LATER_SPECTRAL)})


def _statistics(layers: Sequence[Layer], step: int, rng: np.random.Generator) -> Float32Array:
    recorded = statistic_names("statistics")
    names = [name for name in recorded if name not in LATER] + list(LATER)
    # Later statistics are drawn apart: frames that the fixtures hold keep their values.
    drawn = [
        source.normal(0, 0.2, (len(layers), count))
        for source, count in ((rng, len(names) - len(LATER)), (np.random.default_rng(step), len(LATER)))
    ]
    levels = np.exp(np.concatenate(drawn, 1)) * (1 + np.arange(len(names)) / 10)
    for column, name in enumerate(names):
        if name in ("grad_nan", "grad_inf", "grad_zero", "nonfinite_steps"):
            levels[:, column] = 0
        elif name in ("alignment", "base_alignment", "outlier_fraction", "outlier_energy"):
            levels[:, column] = np.clip(levels[:, column] / 10, 0, 1)
        elif name == "orthogonality_error":
            levels[:, column] = 0.3 / (1 + step / 30) * levels[:, column]
            # AdamW's layers have no orthogonalized update.
            levels[[layer.algorithm != "root" for layer in layers], column] = np.nan
        elif statistic(name).judged or name == "nonfinite_step":
            levels[:, column] = np.nan  # no recorder makes it, or there was no such step
    return levels[:, [names.index(name) for name in recorded]].astype(np.float32)


def _histograms(layer: Layer, rng: np.random.Generator) -> dict[TensorName, Histogram]:
    return {
        tensor: Histogram(
            np.histogram(rng.normal(0, 0.01, layer.size), histogram_edges())[0].astype(np.uint32), nan=0, inf=0
        )
        for tensor in TENSORS
    }


def _quantiles(layer: Layer, rng: np.random.Generator) -> dict[TensorName, Quantiles]:
    scale = float(np.exp(rng.normal(0, 0.1)))
    values = (0.01 * scale * quantile_positions() ** 3 / 5).astype(np.float32)
    return {tensor: Quantiles(values, count=layer.size) for tensor in TENSORS}


def _spectrum(layer: Layer, step: int, rng: np.random.Generator) -> tuple[Spectrum, dict[str, float]]:
    m = min(layer.rows, layer.cols)
    values = np.sort(np.exp(rng.normal(0, 1, m)))[::-1].astype(np.float32)
    update = np.clip(1 + rng.normal(0, 0.3 / (1 + step / 30), m), 0, None)
    squares = values.astype(np.float64) ** 2
    shares = squares / squares.sum()
    statistics = {
        **{name: 0.5 * len(name) for name in statistic_names("spectra")},
        "sigma_max": float(values[0]),
        "sigma_min": float(values[-1]),
        "stable_rank": float(squares.sum() / squares[0]),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
        "condition": float(values[0] / values[-1]),
        "polar_error": float(np.sqrt(np.mean((update - 1) ** 2))),
    }
    return Spectrum(values, values * np.float32(0.9), np.sort(update)[::-1].astype(np.float32)), statistics


def _mask(layer: Layer, step: int, rng: np.random.Generator) -> tuple[Mask, dict[str, float]]:
    dense = rng.random((layer.rows, layer.cols)) < 0.1
    dense[3 % layer.rows] |= rng.random(layer.cols) < 0.5
    height, width = min(layer.rows, 8), min(layer.cols, 8)
    pooled = np.add.reduceat(
        np.add.reduceat(dense.astype(np.uint32), np.arange(height) * layer.rows // height, axis=0),
        np.arange(width) * layer.cols // width,
        axis=1,
    ).astype(np.uint32)
    largest = np.argwhere(dense)[:16].astype(np.int64)
    mask = Mask(
        rows=layer.rows,
        cols=layer.cols,
        pooled=pooled,
        row_totals=dense.sum(axis=1).astype(np.uint32),
        col_totals=dense.sum(axis=0).astype(np.uint32),
        largest=largest,
        largest_values=np.sort(rng.random(len(largest)))[::-1].astype(np.float32),
        packed=np.packbits(dense).tobytes(),
    )
    shares = {"outlier_row_share": 0.2, "outlier_col_share": 0.05, "mask_overlap": float("nan") if step == 0 else 0.4}
    return mask, shares


def same(a: Any, b: Any) -> bool:
    """Whether two records are equal bit for bit, in values, types and shapes."""
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)
