"""Writing the pyramid: opening buckets for new rows, and folding the buckets that no new row is expected in.

Every function is called inside the transaction that adds or removes the rows, so that the pyramid and the rows always
agree. A bucket is either folded or open; the rows of an open bucket are read as they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, Table, delete, func, insert, select

from root_dash.records import KINDS, Float32Array, IntArray, Kind, statistic_names
from root_dash.store.backends.backend import backend_of
from root_dash.store.pyramid import summary as pyramid
from root_dash.store.pyramid.buckets import FOLDED, BucketRows, Buckets
from root_dash.store.pyramid.summary import Summary, Tile
from root_dash.store.tables import schema

_KEPT_BYTES = 2**25
"""Largest size in bytes of a bucket's statistics in memory."""


class Pyramid(Buckets):
    """A run's pyramid, read and written."""

    def __init__(self, connection: Connection, run_id: int, attempt_id: int | None = None) -> None:
        super().__init__(connection, run_id)
        self._attempt = attempt_id
        # The attempt's own statistics in the open buckets, by frame: folding need not read them back.
        self._kept: dict[int, dict[int, tuple[int, IntArray, Float32Array]]] = {}
        self._unknown: dict[Kind, list[str]] = {}

    def add(self, step: int, kinds: Iterable[Kind]) -> None:
        """Open the buckets of a new frame, and fold the buckets that expect no more frames."""
        folded = [kind for kind in kinds if kind in FOLDED]
        opened = self.open_buckets() if folded else {}
        for kind in folded:
            bucket = step // self.shape.width(0, self.intervals[kind])
            known = opened.get(kind, [])
            if bucket in known:
                continue
            self._open(kind, bucket)
            # The bucket before the newest stays open, too: steps may arrive a little out of order.
            for done in known[: -1 if len(known) and not self._full(kind, known[-1]) else None]:
                self.fold(kind, done)

    def keep(self, frame_id: int, step: int, layer_ids: IntArray, statistics: Float32Array) -> None:
        """Remember the statistics (layers, statistics) of a new frame."""
        kept = self._kept.setdefault(step // self.shape.width(0, self.intervals["statistics"]), {})
        kept.pop(frame_id, None)  # the id of a frame that was rolled back is given again
        if statistics.nbytes * (len(kept) + 1) <= _KEPT_BYTES:
            kept[frame_id] = step, layer_ids, statistics.copy()  # its owner may use the memory again

    def _remembered(self, bucket: int) -> BucketRows | None:
        """Return the statistics of a bucket if all of them were kept, else None."""
        kept, columns = self._kept.pop(bucket, {}), schema.frames.c
        wide = self.shape.width(0, self.intervals["statistics"])
        query = select(columns.id, columns.attempt_id).where(
            self._in_steps(bucket * wide, (bucket + 1) * wide),
            columns.kinds.bitwise_and(1 << KINDS.index("statistics")) != 0,
        )
        stored = {(row.id, row.attempt_id) for row in self.connection.execute(query)}
        if not kept or stored != {(frame, self._attempt) for frame in kept}:
            return None  # others wrote to the bucket too, or kept frames were rolled back or removed
        sizes = [len(ids) for _, ids, _ in kept.values()]
        frames = np.repeat(np.array(list(kept), np.int64), sizes)
        return BucketRows(
            frames,
            np.full_like(frames, self._attempt),
            np.repeat(np.array([step for step, _, _ in kept.values()], np.int64), sizes),
            np.searchsorted(self.layers, np.concatenate([ids for _, ids, _ in kept.values()])),
            np.concatenate([values for _, _, values in kept.values()]).T,
        )

    def finish(self) -> None:
        """Fold all open buckets."""
        for kind, buckets in self.open_buckets().items():
            for bucket in buckets:
                self.fold(kind, bucket)

    def rebuild(self, kinds: Iterable[Kind] = FOLDED) -> None:
        """Derive the pyramid anew from all rows of the run."""
        columns = schema.frames.c
        for kind in kinds:
            for table in (schema.pyramid, schema.pyramid_cells, schema.pyramid_open):
                self.connection.execute(
                    delete(table).where(table.c.run_id == self.run_id, table.c.kind == KINDS.index(kind))
                )
            wide = self.shape.width(0, self.intervals[kind])
            held = columns.kinds.bitwise_and(1 << KINDS.index(kind)) != 0
            query = select(columns.step).where(columns.run_id == self.run_id, held)
            for bucket in sorted({int(step) // wide for step in self.connection.scalars(query)}):
                self._open(kind, bucket)
                self.fold(kind, bucket)

    def _open(self, kind: Kind, bucket: int) -> None:
        row = {"run_id": self.run_id, "kind": KINDS.index(kind), "bucket": bucket}
        self.connection.execute(insert(schema.pyramid_open).values(row))
        if self._delete(kind, 0, bucket):
            self.layers = self._layers()  # another attempt at the run may have added some
            # The bucket was folded before: all buckets that cover the bucket are made anew without its rows.
            for level in range(1, self.shape.levels + 1):
                self._join(kind, level, bucket // self.shape.factor ** (level - 1))

    def _full(self, kind: Kind, bucket: int) -> bool:
        """Return whether every interval of an open bucket has a recorded step."""
        columns, wide = schema.frames.c, self.shape.width(0, self.intervals[kind])
        query = select(func.count(columns.step.distinct())).where(
            self._in_steps(bucket * wide, (bucket + 1) * wide),
            columns.kinds.bitwise_and(1 << KINDS.index(kind)) != 0,
        )
        return bool(self.connection.execute(query).scalar_one() >= wide // self.intervals[kind])

    def fold(self, kind: Kind, bucket: int) -> None:
        """Put the rows of an open bucket into the pyramid."""
        open_ = schema.pyramid_open
        self.connection.execute(
            delete(open_).where(
                open_.c.run_id == self.run_id, open_.c.kind == KINDS.index(kind), open_.c.bucket == bucket
            )
        )
        self.layers = self._layers()  # another attempt at the run may have added some
        remembered = self._remembered(bucket) if kind == "statistics" else None
        rows = self.rows(kind, bucket) if remembered is None else remembered
        if not len(rows.frames):
            return
        tile, values = pyramid.tile_of(
            rows.frames, rows.attempts, rows.steps, rows.slots, rows.values, len(self.layers)
        )
        distinct = tile.distinct
        self._insert(kind, 0, bucket, distinct, len(distinct), len(tile.frames), tile.encode())
        form = pyramid.value_format(kind)
        self._insert_cells(
            kind,
            0,
            bucket,
            [[pyramid.encode_values(value[block], form) for block in self._blocks()] for value in values],
        )
        if not statistic_names(kind):
            return
        start = bucket * self.shape.width(0, self.intervals[kind])
        counts = _presence_counts(tile)
        self._store(kind, 1, bucket, distinct, len(distinct), counts, pyramid.summarize(values, distinct, start))
        for level in range(2, self.shape.levels + 1):
            self._join(kind, level, bucket // self.shape.factor ** (level - 1))

    def _blocks(self) -> list[slice]:
        return self.shape.blocks(len(self.layers))

    def _join(self, kind: Kind, level: int, bucket: int) -> None:
        """Make a bucket of a level above 0 from the buckets below, or remove the bucket if there are none."""
        if not statistic_names(kind):
            return
        first = bucket * self.shape.factor
        parts = None  # below level 1 there is only the tile that was just opened
        if level > 1:
            parts = self.summaries(kind, level - 1, statistic_names(kind), (first, first + self.shape.factor))
        if parts is None:
            self._delete(kind, level, bucket)
            return
        below, start = (self.shape.width(at, self.intervals[kind]) for at in (level - 1, level))
        summary = pyramid.join(parts.summaries, [at * below for at in parts.buckets], bucket * start)
        ends = np.array([parts.first[0], parts.last[-1]])
        self._store(kind, level, bucket, ends, int(parts.steps.sum()), parts.counts.sum(axis=0), summary)

    def _store(
        self, kind: Kind, level: int, bucket: int, steps: IntArray, number: int, counts: IntArray, summary: Summary
    ) -> None:
        self._insert(kind, level, bucket, steps, number, 0, pyramid.encode_counts(counts))
        cells = [[summary[i, block].encode() for block in self._blocks()] for i in range(len(summary.least))]
        self._insert_cells(kind, level, bucket, cells)

    def _insert(
        self, kind: Kind, level: int, bucket: int, steps: IntArray, number: int, frames: int, content: bytes
    ) -> None:
        self._put(
            schema.pyramid,
            self._key(kind, level, bucket)
            | {
                "first_step": int(steps[0]),
                "last_step": int(steps[-1]),
                "steps": number,
                "frames": frames,
                "layers": len(self.layers),
                "content": content,
            },
        )

    def _insert_cells(self, kind: Kind, level: int, bucket: int, cells: Sequence[Sequence[bytes]]) -> None:
        key = self._key(kind, level, bucket)
        if unknown := self._unknown_statistics(kind):
            self._delete_cells(kind, level, bucket, unknown)  # they are no longer those of the bucket's frames
        rows = [
            key | {"statistic": name, "block": block, "content": content}
            for name, of_blocks in zip(statistic_names(kind), cells, strict=True)
            for block, content in enumerate(of_blocks)
        ]
        self._put(schema.pyramid_cells, *rows)

    def _put(self, table: Table, *rows: dict[str, Any]) -> None:
        """Insert rows, or replace the rows of the same keys: PostgreSQL uses the room of the old rows for the new."""
        if rows:
            into, keys = backend_of(self.connection).insert(table), table.primary_key.columns
            values = {name: column for name, column in into.excluded.items() if name not in keys}
            self.connection.execute(into.on_conflict_do_update(index_elements=list(keys), set_=values), list(rows))

    def _delete(self, kind: Kind, level: int, bucket: int) -> bool:
        """Delete a bucket, and return whether the bucket existed."""
        keys = (schema.pyramid.c[name] == value for name, value in self._key(kind, level, bucket).items())
        if not self.connection.execute(delete(schema.pyramid).where(*keys)).rowcount:
            return False
        self._delete_cells(kind, level, bucket, (*statistic_names(kind), *self._unknown_statistics(kind)))
        return True

    def _delete_cells(self, kind: Kind, level: int, bucket: int, names: Sequence[str]) -> None:
        columns = schema.pyramid_cells.c
        keys = (columns[name] == value for name, value in self._key(kind, level, bucket).items())
        # With the names the key of the table finds the rows; without them every row of the kind would be read.
        self.connection.execute(delete(schema.pyramid_cells).where(*keys, columns.statistic.in_(names)))

    def _unknown_statistics(self, kind: Kind) -> list[str]:
        """Return the statistics in the run's pyramid that only another root-dash knew."""
        if kind not in self._unknown:
            columns = schema.pyramid_cells.c
            query = select(func.min(columns.statistic)).where(
                columns.run_id == self.run_id, columns.kind == KINDS.index(kind)
            )
            found = []
            name = self.connection.scalar(query)
            while name is not None:  # from name to name: one look-up for each
                found.append(name)
                name = self.connection.scalar(query.where(columns.statistic > name))
            self._unknown[kind] = [name for name in found if name not in statistic_names(kind)]
        return self._unknown[kind]

    def _key(self, kind: Kind, level: int, bucket: int) -> dict[str, Any]:
        return {"run_id": self.run_id, "kind": KINDS.index(kind), "level": level, "bucket": bucket}


def _presence_counts(tile: Tile) -> IntArray:
    """Return at how many steps each layer was recorded."""
    counts = np.zeros(tile.presence.shape[1], np.int64)
    if len(tile.steps):
        starts = np.flatnonzero(np.append(True, np.diff(tile.steps) != 0))
        counts += np.logical_or.reduceat(tile.presence, starts, axis=0).sum(axis=0)
    return counts
