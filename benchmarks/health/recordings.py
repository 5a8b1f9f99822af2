"""Recordings of trainings: what `Health` reads of the frames, as arrays, in one compressed file.

Rules can be run again on a recording in milliseconds, at any thinning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Frame, Layer, Mask, Spectrum, statistic_names

SPECTRAL = statistic_names("spectra")
MASKED = statistic_names("masks")
OLDEST = (
    "grad_norm", "momentum_norm", "update_norm", "weight_norm", "update_to_weight", "grad_abs_max", "grad_mean",
    "grad_std", "grad_skewness", "grad_kurtosis", "grad_nan", "grad_inf", "grad_zero", "alignment", "threshold",
    "outlier_fraction", "outlier_energy", "base_alignment", "orthogonality_error",
)  # fmt: skip
"""Statistics of recordings that do not name theirs."""
OLDEST_SPECTRAL = ("sigma_max", "sigma_min", "stable_rank", "effective_rank", "condition", "polar_error")
"""The same of spectra."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The frames of a training, and what is known to be wrong with it."""

    frames: tuple[Frame, ...]
    layers: tuple[Layer, ...]
    config: dict[str, Any]
    """Of `Run`: the optimizer's description under "optimizer"."""
    target: int | None
    """Position of the sick layer; None in a healthy run, and if the whole run is sick."""
    onset: int | None
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Statistics by name that the frames lack, (frames, layers)."""


def save(recording: Recording, path: Path, *, compressed: bool = True) -> None:
    """Write a recording into one file, whole or not at all. Statistics without any number are left out."""
    frames, layers = recording.frames, recording.layers
    statistics = np.full((len(frames), len(layers), len(statistic_names("statistics"))), np.nan, np.float32)
    present = np.zeros(statistics.shape[:2], bool)
    for index, frame in enumerate(frames):
        statistics[index, frame.layers] = frame.statistics
        present[index, frame.layers] = True
    filled = np.flatnonzero(np.isfinite(statistics).any((0, 1)))
    spectra = [
        (i, p, [named.get(n, np.nan) for n in SPECTRAL])
        for i, f in enumerate(frames)
        for p, (_, named) in f.spectra.items()
    ]
    masks = [(i, p, [named[n] for n in MASKED]) for i, f in enumerate(frames) for p, (_, named) in f.masks.items()]
    rows = [m.row_totals for f in frames for m, _ in f.masks.values()]
    cols = [m.col_totals for f in frames for m, _ in f.masks.values()]
    scalars = sorted({name for frame in frames for name in frame.scalars})
    meta = {
        "layers": [(layer.name, list(layer.shape), layer.algorithm, layer.position) for layer in layers],
        "config": recording.config,
        "target": recording.target,
        "onset": recording.onset,
        "scalars": scalars,
        "extra": sorted(recording.extra),
        "names": [statistic_names("statistics")[i] for i in filled],
        "spectral": SPECTRAL,
    }
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(
            file,
            meta=np.array(json.dumps(meta)),
            steps=np.array([frame.step for frame in frames]),
            statistics=statistics[..., filled],
            present=present,
            **{f"extra_{name}": values for name, values in recording.extra.items()},
            spectra_at=np.array([one[:2] for one in spectra], np.int64).reshape(-1, 2),
            spectra=np.array([one[2] for one in spectra], np.float64).reshape(-1, len(SPECTRAL)),
            masks_at=np.array([one[:2] for one in masks], np.int64).reshape(-1, 2),
            masks=np.array([one[2] for one in masks], np.float64).reshape(-1, len(MASKED)),
            rows=np.concatenate([np.empty(0, np.uint32), *rows]),
            rows_each=np.array([len(one) for one in rows], np.int64),
            cols=np.concatenate([np.empty(0, np.uint32), *cols]),
            cols_each=np.array([len(one) for one in cols], np.int64),
            logged=np.array([[name in frame.scalars for name in scalars] for frame in frames], bool),
            scalars=np.array([[frame.scalars.get(name, np.nan) for name in scalars] for frame in frames], np.float64),
        )
    partial.rename(path)


def load(path: Path) -> Recording:
    """Read a recording that `save` wrote. Singular values and maps of masks are not kept: only their statistics."""
    with np.load(path) as file:
        data = dict(file)
    meta = json.loads(str(data["meta"]))
    layers = tuple(Layer(name, tuple(shape), algorithm, at) for name, shape, algorithm, at in meta["layers"])
    empty = np.empty(0, np.float32)
    spectra: dict[int, dict[int, tuple[Spectrum, dict[str, float]]]] = {}
    for (index, position), values in zip(data["spectra_at"].tolist(), data["spectra"].tolist(), strict=True):
        named = dict(zip(meta.get("spectral", OLDEST_SPECTRAL), values, strict=True))
        spectra.setdefault(index, {})[position] = (Spectrum(empty, empty, empty), named)
    masks: dict[int, dict[int, tuple[Mask, dict[str, float]]]] = {}
    row_parts = np.split(data["rows"], np.cumsum(data["rows_each"])[:-1]) if len(data["rows_each"]) else []
    col_parts = np.split(data["cols"], np.cumsum(data["cols_each"])[:-1]) if len(data["cols_each"]) else []
    for number, ((index, position), values) in enumerate(
        zip(data["masks_at"].tolist(), data["masks"].tolist(), strict=True)
    ):
        named = dict(zip(MASKED, values, strict=True))
        rows, cols = row_parts[number], col_parts[number]
        mask = Mask(
            len(rows), len(cols), np.empty((0, 0), np.uint32), rows, cols, np.empty((0, 2), np.int64), empty
        )  # fmt: skip
        masks.setdefault(index, {})[position] = (mask, named)
    names = meta.get("names", OLDEST)
    now = statistic_names("statistics")
    statistics = np.full((*data["present"].shape, len(now)), np.nan, np.float32)
    for name in set(names) & set(now):
        statistics[..., now.index(name)] = data["statistics"][..., names.index(name)]
    for name in set(meta.get("extra", ())) & set(now):
        statistics[..., now.index(name)] = data[f"extra_{name}"][data["steps"] - 1]
    kept = data.get("logged", np.ones(data["scalars"].shape, bool))
    frames = []
    for index, step in enumerate(data["steps"].tolist()):
        positions = np.flatnonzero(data["present"][index])
        scalars = {
            name: value
            for name, value, logged in zip(meta["scalars"], data["scalars"][index].tolist(), kept[index], strict=True)
            if logged
        }
        frames.append(
            Frame(
                index, step, float(step), positions, statistics[index, positions],
                spectra=spectra.get(index, {}), masks=masks.get(index, {}), scalars=scalars,
            )
        )  # fmt: skip
    return Recording(tuple(frames), layers, meta["config"], meta["target"], meta["onset"])
