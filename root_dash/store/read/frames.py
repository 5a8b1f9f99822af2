"""Whole frames out: the rows of a frame put together again, as the frame was appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from sqlalchemy import Connection, select

from root_dash.exceptions import NotRecorded
from root_dash.records import (
    QUANTILE_COUNT,
    TENSORS,
    Event,
    Frame,
    Histogram,
    Kind,
    Quantiles,
    Spectrum,
    TensorName,
    statistic_names,
)
from root_dash.store.read import queries
from root_dash.store.read.queries import Fields
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.tables.growth import readable
from root_dash.store.tables.histogram_codec import unpack

Places = Mapping[int, int]
"""The place of each layer in a frame, by the layer's id."""


def frame(connection: Connection, cursor: int, places: Places | None = None) -> Frame:
    """Return the frame of a cursor.

    Each record says the frame's step. A statistic without a value is NaN.

    Args:
        connection: a connection inside a transaction.
        cursor: the id of the frame.
        places: the places of the run's layers in the frame; if None, their positions.

    Raises:
        NotRecorded: there is no frame of that cursor.
    """
    row = connection.execute(select(schema.frames).where(schema.frames.c.id == cursor)).first()
    if row is None:
        raise NotRecorded(f"there is no frame {cursor}")
    kinds = queries.to_notice(row).kinds
    if places is None:
        layers = schema.layers.c
        query = select(layers.id, layers.position).where(layers.run_id == row.run_id)
        places = {found.id: found.position for found in connection.execute(query)}
    rows = {kind: _rows(connection, kind, cursor, places) if kind in kinds else [] for kind in schema.RECORDINGS}
    names = statistic_names("statistics")
    values = [found[-len(names) :] for _, found in rows["statistics"]]
    return Frame(
        seq=row.seq,
        step=row.step,
        time=row.time,
        layers=np.array([at for at, _ in rows["statistics"]], np.int64),
        statistics=np.array(values, np.float32).reshape(-1, len(names)),  # NULL becomes NaN
        histograms=_histograms(rows["histograms"]),
        quantiles={at: _quantiles(found) for at, found in rows["quantiles"]},
        spectra={at: (_spectrum(found), _named(found, "spectra")) for at, found in rows["spectra"]},
        masks={at: (queries.to_mask(found), _named(found, "masks")) for at, found in rows["masks"]},
        scalars=_scalars(connection, cursor) if "scalars" in kinds else {},
        events=_events(connection, row.run_id, cursor),
        lost=row.lost,
        cost=queries.number(row.cost),
    )


def _rows(connection: Connection, kind: Kind, cursor: int, places: Places) -> list[tuple[int, Fields]]:
    """Return the frame's rows of one kind by ascending place; the statistics are the last columns."""
    table = readable(connection, schema.RECORDINGS[kind])
    names = statistic_names(kind)
    columns = [*(column for column in table.c if column.name not in names), *(table.c[name] for name in names)]
    found = connection.execute(select(*columns).where(table.c.frame_id == cursor))
    return sorted(((places[row.layer_id], row) for row in found if row.layer_id in places), key=itemgetter(0))


def _named(row: Fields, kind: Kind) -> dict[str, float]:
    return {name: queries.number(row._mapping[name]) for name in statistic_names(kind)}


def _histograms(rows: Sequence[tuple[int, Fields]]) -> dict[int, dict[TensorName, Histogram]]:
    found: dict[int, dict[TensorName, Histogram]] = {at: {} for at, _ in rows}
    held = [(at, row, tensor) for at, row in rows for tensor in TENSORS if row._mapping[f"{tensor}_counts"] is not None]
    # All histograms of a frame in one call: the cost of unpacking is in its calls.
    counts = unpack([row._mapping[f"{tensor}_counts"] for _, row, tensor in held])
    for (at, row, tensor), of_tensor in zip(held, counts, strict=True):
        nan, inf = (int(row._mapping[f"{tensor}_{name}"] or 0) for name in ("nan", "inf"))
        found[at][tensor] = Histogram(of_tensor, nan, inf, row.step)
    return found


def _quantiles(row: Fields) -> dict[TensorName, Quantiles]:
    return {
        tensor: Quantiles(decode(values, "<f4", QUANTILE_COUNT), int(row._mapping[f"{tensor}_count"]), row.step)
        for tensor in TENSORS
        if (values := row._mapping[f"{tensor}_values"]) is not None
    }


def _spectrum(row: Fields) -> Spectrum:
    return queries.to_spectrum([row.step, *(row._mapping[name] for name in queries.SPECTRUM)])


def _scalars(connection: Connection, cursor: int) -> dict[str, float]:
    columns = schema.scalars.c
    query = select(columns.name, columns.value).where(columns.frame_id == cursor)
    return {row.name: queries.number(row.value) for row in connection.execute(query)}


def _events(connection: Connection, run_id: int, cursor: int) -> tuple[Event, ...]:
    columns = schema.events.c
    query = select(columns.kind, columns.text, columns.step, columns.time).where(
        columns.run_id == run_id, columns.frame_id == cursor
    )
    return tuple(Event(*row) for row in connection.execute(query.order_by(columns.id)))
