"""Frames to rows: what a frame holds, checked and encoded, as the columns of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
from sqlalchemy import Connection

from root_dash.records import (
    QUANTILE_COUNT,
    TENSORS,
    CountArray,
    Frame,
    Histogram,
    IntArray,
    Mask,
    Quantiles,
    histogram_edges,
    statistic_names,
)
from root_dash.store.tables.blobs import encode, text
from root_dash.store.tables.histogram_codec import pack
from root_dash.store.write.outlier_counts import Tally

Row = dict[str, Any]
Ids = Mapping[int, int]
"""The ids of the run's layers by position."""


_FURTHEST = 2**62
"""The largest step: beyond it the end of its bucket has no place in 64 bits, and nothing of the run could be read."""


def checked(frame: Frame) -> Frame:
    """The frame with its numbers as Python's own: a driver stores NumPy's as the bytes that they lie in.

    Raises:
        ValueError: one of them is none that a database has a place for.
    """
    try:
        seq, step, lost = index(frame.seq), index(frame.step), index(frame.lost)
    except TypeError:
        raise ValueError(
            f"seq, step and lost must be integers, got {frame.seq!r}, {frame.step!r} and {frame.lost!r}"
        ) from None
    if abs(step) > _FURTHEST:
        raise ValueError(f"step must be within 2^62 of 0, got {step}")
    if not math.isfinite(frame.time):
        raise ValueError(f"time must be finite, got {frame.time}")
    return replace(frame, seq=seq, step=step, lost=lost, time=float(frame.time), cost=float(frame.cost))


def key(frame: Frame, frame_id: int, ids: Ids, position: int) -> Row:
    """The columns that every row of a layer begins with.

    Raises:
        ValueError: the run has no layer at that position.
    """
    try:
        layer = ids[int(position)]
    except KeyError:
        raise ValueError(
            f"frame {frame.seq} names layer position {position}, but the run has {len(ids)} layers"
        ) from None
    return {"layer_id": layer, "frame_id": frame_id, "step": frame.step}


def measured(frame: Frame, frame_id: int, ids: Ids) -> IntArray:
    """The ids of the layers that the frame has statistics of."""
    names = statistic_names("statistics")
    if frame.statistics.shape != (len(frame.layers), len(names)):
        raise ValueError(f"statistics must have shape {(len(frame.layers), len(names))}, got {frame.statistics.shape}")
    positions = frame.layers.tolist()
    if len(set(positions)) < len(positions):
        raise ValueError(f"frame {frame.seq} must have statistics of a layer once, got one twice")
    return np.array([key(frame, frame_id, ids, position)["layer_id"] for position in positions], np.int64)


def histograms(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """The rows of the histograms table."""
    rows, held = [], []
    for position, by_tensor in frame.histograms.items():
        row = key(frame, frame_id, ids, position)
        for tensor in TENSORS:
            histogram = by_tensor.get(tensor)
            row[f"{tensor}_counts"] = None
            # None of them is NULL, which takes no room.
            row[f"{tensor}_nan"] = None if histogram is None else int(histogram.nan) or None
            row[f"{tensor}_inf"] = None if histogram is None else int(histogram.inf) or None
            if histogram is not None:
                held.append((row, f"{tensor}_counts", _counts(histogram)))
        rows.append(row)
    # All of a frame at once: the cost of packing is in its calls.
    packed = pack(np.stack([counts for _, _, counts in held])) if held else []
    for (row, name, _), content in zip(held, packed, strict=True):
        row[name] = content
    return rows


def quantiles(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """The rows of the quantiles table."""
    rows = []
    for position, by_tensor in frame.quantiles.items():
        row = key(frame, frame_id, ids, position)
        for tensor in TENSORS:
            quantiles = by_tensor.get(tensor)
            row[f"{tensor}_values"] = None if quantiles is None else _values(quantiles)
            row[f"{tensor}_count"] = None if quantiles is None else int(quantiles.count)
        rows.append(row)
    return rows


def spectra(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """The rows of the spectra table."""
    return [
        key(frame, frame_id, ids, position)
        | _named(statistics, statistic_names("spectra"))
        | {name: encode(getattr(spectrum, name), "<f4") for name in ("momentum", "base", "update")}
        | {"estimated": int(spectrum.estimated)}
        for position, (spectrum, statistics) in frame.spectra.items()
    ]


def masks(frame: Frame, frame_id: int, ids: Ids, connection: Connection, tally: Tally) -> list[Row]:
    """The rows of the masks table, each with the running counts up to it."""
    rows = []
    if frame.masks:
        tally.begin(connection, frame_id)
    for position, (mask, statistics) in frame.masks.items():
        row = key(frame, frame_id, ids, position) | _named(statistics, statistic_names("masks"))
        row |= _mask_columns(mask)
        rows.append(row | tally.add(connection, row["layer_id"], mask.row_totals, mask.col_totals))
    return rows


def events(frame: Frame, frame_id: int, run_id: int) -> list[Row]:
    """The rows of the events table, without their ids."""
    return [
        {
            "run_id": run_id,
            "step": event.step,
            "time": event.time,
            "kind": text(event.kind),
            "text": text(event.text),
            "frame_id": frame_id,
        }
        for event in frame.events
    ]


def scalars(frame: Frame, frame_id: int, run_id: int) -> list[Row]:
    """The rows of the scalars table."""
    return [
        {
            "run_id": run_id,
            "name": name,
            "frame_id": frame_id,
            "step": frame.step,
            "value": float(value),
        }
        # Two names may be one as text: the later value stays, where a row twice would keep the frame out for ever.
        for name, value in {text(name): value for name, value in frame.scalars.items()}.items()
    ]


def _counts(histogram: Histogram) -> CountArray:
    edges = histogram_edges()
    if histogram.edges is not edges and not np.array_equal(histogram.edges, edges):
        raise ValueError("a histogram must lie on the run's edges, got others")
    if histogram.counts.shape != (len(edges) - 1,):
        raise ValueError(f"a histogram must have {len(edges) - 1} counts, got shape {histogram.counts.shape}")
    return histogram.counts.astype(np.uint32, casting="same_kind", copy=False)


def _values(quantiles: Quantiles) -> bytes:
    if quantiles.values.shape != (QUANTILE_COUNT,):
        raise ValueError(f"quantiles must have {QUANTILE_COUNT} values, got shape {quantiles.values.shape}")
    return encode(quantiles.values, "<f4")


def _mask_columns(mask: Mask) -> Row:
    if mask.row_totals.shape != (mask.rows,) or mask.col_totals.shape != (mask.cols,) or mask.pooled.ndim != 2:
        raise ValueError(f"a mask of {mask.rows} x {mask.cols} must have as many totals and a two-dimensional map")
    if mask.largest.shape != (len(mask.largest_values), 2):
        raise ValueError(f"a mask's largest entries must be {len(mask.largest_values)} pairs, got {mask.largest.shape}")
    if mask.packed and len(mask.packed) != -(-mask.rows * mask.cols // 8):
        raise ValueError(
            f"a packed mask of {mask.rows} x {mask.cols} must be one bit an entry, got {len(mask.packed)} bytes"
        )
    if mask.largest.size and not 0 <= mask.largest.min() <= mask.largest.max() < 2**32:
        raise ValueError("a mask's largest entries must be rows and columns of it")
    return {
        "rows": mask.rows,
        "cols": mask.cols,
        "pooled_rows": mask.pooled.shape[0],
        "pooled_cols": mask.pooled.shape[1],
        "pooled": encode(mask.pooled, "<u4", compress=True),
        "row_totals": encode(mask.row_totals, "<u4", compress=True),
        "col_totals": encode(mask.col_totals, "<u4", compress=True),
        "largest": encode(mask.largest.astype(np.uint32), "<u4"),
        "largest_values": encode(mask.largest_values, "<f4"),
        "packed": encode(mask.packed, "|u1", compress=True) if mask.packed else b"",
    }


def _named(statistics: Mapping[str, float], names: tuple[str, ...]) -> Row:
    unknown = statistics.keys() - set(names)
    if unknown:
        raise ValueError(f"there is no such statistic: {', '.join(sorted(unknown))}")
    return {name: float(statistics.get(name, math.nan)) for name in names}
