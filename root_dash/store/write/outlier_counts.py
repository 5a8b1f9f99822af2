"""How often each row and column of a layer was an outlier, counted over the run's masks as they are stored.

A running count goes with every mask, so that what held over the whole run is one look-up at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from root_dash.records import CountArray, OutlierCounts, outlying
from root_dash.store.backends.engine import cursors
from root_dash.store.read import queries
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode, encode

_COLUMNS = ("recorded", "row_counts", "col_counts")


@dataclass(slots=True)
class Tally:
    """The running counts of one run's layers. What a frame adds counts once the frame is stored: `keep` says so."""

    run_id: int
    attempt_id: int
    _kept: dict[int, OutlierCounts] = field(default_factory=dict)
    _open: dict[int, OutlierCounts] = field(default_factory=dict)
    _kept_frame: int = 0
    _open_frame: int = 0

    def begin(self, connection: Connection, frame_id: int) -> None:
        """Begin with the masks of a frame: where another attempt at the run has stored frames since, by the database's.

        The ids of a run's frames ascend as they are stored.
        """
        self._open_frame = frame_id
        if not self._kept:
            return
        columns = schema.frames.c
        others = select(columns.id).where(
            columns.run_id == self.run_id, cursors(connection) > self._kept_frame, columns.attempt_id != self.attempt_id
        )
        if connection.execute(others.limit(1)).first() is not None:
            self._kept.clear()

    def add(self, connection: Connection, layer_id: int, rows: CountArray, cols: CountArray) -> dict[str, Any]:
        """Count a mask of a layer, given its outliers in every row and column; the columns that go with it."""
        before = self._open.get(layer_id) or self._kept.get(layer_id) or latest(connection, layer_id)
        if before is None or before.rows.shape != rows.shape or before.cols.shape != cols.shape:
            before = OutlierCounts(0, np.zeros(rows.shape, np.uint32), np.zeros(cols.shape, np.uint32))
        after = OutlierCounts(before.recorded + 1, before.rows + outlying(rows), before.cols + outlying(cols))
        self._open[layer_id] = after
        return columns(after)

    def keep(self) -> None:
        """The frame that was counted is stored."""
        if self._open:
            self._kept_frame = self._open_frame
        self._kept |= self._open
        self._open.clear()

    def forget(self) -> None:
        """It is not."""
        self._open.clear()


def columns(counts: OutlierCounts) -> dict[str, Any]:
    """Running counts as columns of the masks table."""
    rows, cols = (encode(one, "<u4", compress=True) for one in (counts.rows, counts.cols))
    return dict(zip(_COLUMNS, (counts.recorded, rows, cols), strict=True))


def latest(connection: Connection, layer_id: int, step: int | None = None) -> OutlierCounts | None:
    """The counts that go with a layer's mask stored last, at or before the step; None where there is none."""
    table = schema.masks
    row = queries.at_step(connection, table, layer_id, step, [table.c[name] for name in ("rows", "cols", *_COLUMNS)])
    if row is None or row.row_counts is None or row.col_counts is None:
        return None
    rows, cols = (
        decode(content, "<u4", size, compressed=True)
        for content, size in ((row.row_counts, row.rows), (row.col_counts, row.cols))
    )
    return OutlierCounts(row.recorded, rows, cols, row.step)


def recount(connection: Connection) -> None:
    """Count all masks of the database anew: of one whose schema had no counts."""
    table = schema.masks
    key = [table.c.frame_id, table.c.layer_id]
    fields = [*key, table.c.rows, table.c.cols, table.c.row_totals, table.c.col_totals]
    counted: dict[int, tuple[int, NDArray[Any], NDArray[Any]]] = {}
    for row in connection.execute(select(*fields).order_by(*key)).fetchall():
        rows = outlying(decode(row.row_totals, "<u4", row.rows, compressed=True)).astype(np.uint32)
        cols = outlying(decode(row.col_totals, "<u4", row.cols, compressed=True)).astype(np.uint32)
        recorded, by_row, by_col = counted.get(row.layer_id, (0, np.uint32(0), np.uint32(0)))
        counted[row.layer_id] = (recorded + 1, rows + by_row, cols + by_col)
        counts = OutlierCounts(*counted[row.layer_id])
        where = (table.c.frame_id == row.frame_id) & (table.c.layer_id == row.layer_id)
        connection.execute(table.update().where(where).values(columns(counts)))
