"""How often each row and column of a layer was an outlier, counted over the run's masks as they are stored.

A running count is stored with every mask. So the counts of a whole run are a single look-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from root_dash.records import CountArray, OutlierCounts, outlying
from root_dash.store.backends.backend import backend_of
from root_dash.store.read import queries
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode, encode

_COLUMNS = ("recorded", "row_counts", "col_counts")


@dataclass(slots=True)
class RunningCounts:
    """The running counts of a run's layers. The masks of a frame count once the frame is stored: call `keep` then."""

    run_id: int
    attempt_id: int
    _kept: dict[int, OutlierCounts] = field(default_factory=dict)
    _open: dict[int, OutlierCounts] = field(default_factory=dict)
    _kept_frame: int = 0
    _open_frame: int = 0

    def begin(self, connection: Connection, frame_id: int) -> None:
        """Begin with the masks of a frame.

        If another attempt at the run has stored frames since, the counts are read from the database again. The ids of a
        run's frames ascend in the order of storing.
        """
        self._open_frame = frame_id
        if not self._kept:
            return
        columns, ids = schema.frames.c, backend_of(connection).frame_ids()
        others = select(columns.id).where(
            columns.run_id == self.run_id, ids > self._kept_frame, columns.attempt_id != self.attempt_id
        )
        if connection.execute(others.limit(1)).first() is not None:
            self._kept.clear()

    def add(self, connection: Connection, layer_id: int, rows: CountArray, cols: CountArray) -> dict[str, Any]:
        """Count a mask of a layer, given its outliers in every row and column; return the columns to store with it."""
        before = self._open.get(layer_id) or self._kept.get(layer_id) or latest(connection, layer_id)
        if before is None or before.rows.shape != rows.shape or before.cols.shape != cols.shape:
            before = OutlierCounts(0, np.zeros(rows.shape, np.uint32), np.zeros(cols.shape, np.uint32))
        after = OutlierCounts(before.recorded + 1, before.rows + outlying(rows), before.cols + outlying(cols))
        self._open[layer_id] = after
        counts = (encode(one, "<u4", compress=True) for one in (after.rows, after.cols))
        return dict(zip(_COLUMNS, (after.recorded, *counts), strict=True))

    def keep(self) -> None:
        """Keep the counts of a frame whose transaction was committed."""
        if self._open:
            self._kept_frame = self._open_frame
        self._kept |= self._open
        self._open.clear()

    def discard(self) -> None:
        """Discard the counts of a frame whose transaction was rolled back."""
        self._open.clear()


def latest(connection: Connection, layer_id: int, step: int | None = None) -> OutlierCounts | None:
    """Return the counts of a layer's last stored mask, at or before the step; None if there is no such mask."""
    row = queries.at_step(connection, "masks", layer_id, step, ["rows", "cols", *_COLUMNS])
    if row is None:
        return None
    rows, cols = (
        decode(content, "<u4", size, compressed=True)
        for content, size in ((row.row_counts, row.rows), (row.col_counts, row.cols))
    )
    return OutlierCounts(row.recorded, rows, cols, row.step)
