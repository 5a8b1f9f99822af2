"""Frames to rows: what a checked frame holds, encoded as the columns of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sqlalchemy import Connection

from root_dash.records import TENSORS, Frame, IntArray, Kind, Mask, statistic_names
from root_dash.store.tables.blobs import encode, text
from root_dash.store.tables.histogram_codec import pack
from root_dash.store.write.outlier_counts import RunningCounts

Row = dict[str, Any]
Ids = Mapping[int, int]
"""The ids of the run's layers by position."""


def layer_ids(frame: Frame, ids: Ids) -> IntArray:
    """Return the ids of the layers with statistics in a frame.

    Raises:
        ValueError: the run has no layer at one of the positions.
    """
    return np.array([_layer_id(frame, ids, position) for position in frame.layers.tolist()], np.int64)


def histograms(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """Return the rows of the histograms table."""
    rows, held = [], []
    for position, by_tensor in frame.histograms.items():
        row = _key(frame, frame_id, ids, position)
        for tensor in TENSORS:
            histogram = by_tensor.get(tensor)
            row[f"{tensor}_counts"] = None
            # A count of 0 is stored as NULL, which takes no room.
            row[f"{tensor}_nan"] = None if histogram is None else histogram.nan or None
            row[f"{tensor}_inf"] = None if histogram is None else histogram.inf or None
            if histogram is not None:
                held.append((row, f"{tensor}_counts", histogram.counts))
        rows.append(row)
    # All histograms of a frame in one call, because every call costs.
    packed = pack(np.stack([counts for _, _, counts in held])) if held else []
    for (row, name, _), content in zip(held, packed, strict=True):
        row[name] = content
    return rows


def quantiles(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """Return the rows of the quantiles table."""
    rows = []
    for position, by_tensor in frame.quantiles.items():
        row = _key(frame, frame_id, ids, position)
        for tensor in TENSORS:
            quantiles = by_tensor.get(tensor)
            row[f"{tensor}_values"] = None if quantiles is None else encode(quantiles.values, "<f4")
            row[f"{tensor}_count"] = None if quantiles is None else quantiles.count
        rows.append(row)
    return rows


def spectra(frame: Frame, frame_id: int, ids: Ids) -> list[Row]:
    """Return the rows of the spectra table."""
    return [
        _key(frame, frame_id, ids, position)
        | _numbers(statistics, "spectra")
        | {name: encode(getattr(spectrum, name), "<f4") for name in ("momentum", "base", "update")}
        | {"estimated": int(spectrum.estimated)}
        for position, (spectrum, statistics) in frame.spectra.items()
    ]


def masks(frame: Frame, frame_id: int, ids: Ids, connection: Connection, counts: RunningCounts) -> list[Row]:
    """Return the rows of the masks table, each with the running counts up to the frame."""
    rows = []
    if frame.masks:
        counts.begin(connection, frame_id)
    for position, (mask, statistics) in frame.masks.items():
        row = _key(frame, frame_id, ids, position) | _numbers(statistics, "masks")
        row |= _mask_columns(mask)
        rows.append(row | counts.add(connection, row["layer_id"], mask.row_totals, mask.col_totals))
    return rows


def events(frame: Frame, frame_id: int, run_id: int) -> list[Row]:
    """Return the rows of the events table, without their ids."""
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
    """Return the rows of the scalars table."""
    # Two names may become the same text. The later value stays: the same row twice would keep the frame out for ever.
    values = {text(name): float(value) for name, value in frame.scalars.items()}
    return [
        {"run_id": run_id, "name": name, "frame_id": frame_id, "step": frame.step, "value": value}
        for name, value in values.items()
    ]


def _layer_id(frame: Frame, ids: Ids, position: int) -> int:
    try:
        return ids[position]
    except KeyError:
        raise ValueError(
            f"frame {frame.seq} names layer position {position}, but the run has {len(ids)} layers"
        ) from None


def _key(frame: Frame, frame_id: int, ids: Ids, position: int) -> Row:
    """Return the first columns of every row of a layer."""
    return {"layer_id": _layer_id(frame, ids, position), "frame_id": frame_id, "step": frame.step}


def _numbers(statistics: Mapping[str, float], kind: Kind) -> Row:
    return {name: statistics.get(name, math.nan) for name in statistic_names(kind)}


def _mask_columns(mask: Mask) -> Row:
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
