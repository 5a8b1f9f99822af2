"""The pyramid in the database: a run's buckets, folded and open, read over a connection."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select

from root_dash.records import KINDS, IntArray, Kind, statistic_names
from root_dash.store.backends.backend import backend_of
from root_dash.store.pyramid import summary
from root_dash.store.pyramid.summary import Summary, Tile, Values
from root_dash.store.tables import schema
from root_dash.store.tables.growth import readable

FOLDED: tuple[Kind, ...] = tuple(schema.RECORDINGS)
"""The kinds with a pyramid. The pyramid of a kind without statistics holds only which frames hold the kind."""


@dataclass(frozen=True, slots=True)
class BucketRows:
    """The rows of a kind in a range of steps. `values` has a row for each statistic."""

    frames: IntArray
    attempts: IntArray
    steps: IntArray
    slots: IntArray
    values: Values


@dataclass(frozen=True, slots=True)
class LevelBuckets:
    """Buckets of a level: their numbers, first steps, last steps, and numbers of distinct steps.

    `counts`, (buckets, slots), says at how many steps each slot was recorded. The arrays of `summaries` are (buckets,
    statistics, slots).
    """

    buckets: list[int]
    first: IntArray
    last: IntArray
    steps: IntArray
    counts: IntArray
    summaries: Summary


# Made once, since every frame asks this query: to make the query took longer than to answer it.
_OPEN = (
    select(schema.pyramid_open.c.kind, schema.pyramid_open.c.bucket)
    .where(schema.pyramid_open.c.run_id == bindparam("run"))
    .order_by(schema.pyramid_open.c.kind, schema.pyramid_open.c.bucket)
)


class Buckets:
    """A run's pyramid.

    A layer's slot is the place of its id among the ids of the run's layers, which ascend.
    """

    def __init__(self, connection: Connection, run_id: int) -> None:
        self.connection = connection
        self.run_id = run_id
        self.shape = backend_of(connection).limits.pyramid
        row = connection.execute(select(schema.runs.c.cadence).where(schema.runs.c.id == run_id)).first()
        cadence = None if row is None else _mapping(row[0])
        self.intervals: dict[Kind, int] = {kind: summary.interval_of(kind, cadence) for kind in FOLDED}
        self.layers = self._layers()

    def _layers(self) -> IntArray:
        columns = schema.layers.c
        query = select(columns.id).where(columns.run_id == self.run_id).order_by(columns.id)
        return np.array(list(self.connection.scalars(query)), np.int64)

    def slot(self, layer_id: int) -> int:
        """Return the slot of a layer."""
        return int(np.searchsorted(self.layers, layer_id))

    def open_buckets(self) -> dict[Kind, list[int]]:
        """Return the buckets of level 0 whose rows are not in the pyramid yet, ascending."""
        found: dict[Kind, list[int]] = {}
        for kind, bucket in self.connection.execute(_OPEN, {"run": self.run_id}):
            found.setdefault(KINDS[kind], []).append(bucket)
        return found

    def rows(
        self, kind: Kind, bucket: int, names: tuple[str, ...] | None = None, layer: int | None = None
    ) -> BucketRows:
        """Return the rows of a bucket of level 0 as they were recorded, with the named statistics, or all."""
        table, frames = readable(self.connection, schema.RECORDINGS[kind]), schema.frames.c
        wide = self.shape.width(0, self.intervals[kind])
        names = statistic_names(kind) if names is None else names
        query = (
            select(frames.id, frames.attempt_id, frames.step, table.c.layer_id, *(table.c[name] for name in names))
            .select_from(schema.frames.join(table, table.c.frame_id == frames.id))
            .where(self._in_steps(bucket * wide, (bucket + 1) * wide))
            .where(frames.kinds.bitwise_and(1 << KINDS.index(kind)) != 0)
        )
        if layer is not None:
            query = query.where(table.c.layer_id == layer)
        cursor = self.connection.execute(query).cursor
        assert cursor is not None
        found = cursor.fetchall()  # the driver's own tuples: a Row for each would take longer to make than to read
        columns = list(zip(*found, strict=True)) or [()] * (4 + len(names))
        form = np.dtype(summary.value_format(kind)).newbyteorder("=")
        keys = [np.array(column, np.int64) for column in columns[:4]]
        values = np.array(columns[4:], np.float64).astype(form).reshape(len(names), len(found))
        return BucketRows(keys[0], keys[1], keys[2], np.searchsorted(self.layers, keys[3]), values)

    def tiles(self, kind: Kind, first: int | None = None, last: int | None = None) -> list[tuple[int, Tile]]:
        """Return the folded buckets of level 0 in a range, by ascending bucket."""
        columns = schema.pyramid.c
        query = self._of_level(select(columns.bucket, columns.content, columns.frames, columns.layers), kind, 0)
        if first is not None:
            query = query.where(columns.bucket >= first)
        if last is not None:
            query = query.where(columns.bucket <= last)
        rows = self.connection.execute(query.order_by(columns.bucket)).all()
        found: dict[int, Tile] = {}
        for (frames, layers), places in summary.by_size([(row.frames, row.layers) for row in rows]):
            tiles = Tile.decode([rows[place].content for place in places], frames, layers)
            found |= {rows[place].bucket: tile for place, tile in zip(places, tiles, strict=True)}
        return [(row.bucket, found[row.bucket]) for row in rows]

    def numbers(self, kind: Kind) -> dict[int, int]:
        """Return how many buckets each level has."""
        columns = schema.pyramid.c
        query = select(columns.level, func.count()).where(
            columns.run_id == self.run_id, columns.kind == KINDS.index(kind)
        )
        return {level: number for level, number in self.connection.execute(query.group_by(columns.level))}

    def buckets(self, kind: Kind, *, descending: bool = False) -> Iterator[int]:
        """Yield the folded buckets of level 0, a few look-ups at a time."""
        column = schema.pyramid.c.bucket
        query = self._of_level(select(column), kind, 0).order_by(column.desc() if descending else column).limit(8)
        page = list(self.connection.scalars(query))
        while page:
            yield from page
            beyond = column < page[-1] if descending else column > page[-1]
            page = list(self.connection.scalars(query.where(beyond)))

    def values(
        self, kind: Kind, name: str, block: int | None = None, bucket: int | None = None
    ) -> dict[int, dict[int, bytes]]:
        """Return the BLOBs of a statistic's values, by bucket of level 0 and block."""
        columns = schema.pyramid_cells.c
        query = self._of_level(select(columns.bucket, columns.block, columns.content), kind, 0, schema.pyramid_cells)
        if block is not None:
            query = query.where(columns.block == block)
        if bucket is not None:
            query = query.where(columns.bucket == bucket)
        found: dict[int, dict[int, bytes]] = {}
        for at, number, content in self.connection.execute(query.where(columns.statistic == name)).all():
            found.setdefault(at, {})[number] = content
        return found

    def summaries(
        self,
        kind: Kind,
        level: int,
        names: Sequence[str],
        within: tuple[int, int] | None = None,
        block: int | None = None,
        counted: bool = True,
    ) -> LevelBuckets | None:
        """Return the buckets of a level above 0 by ascending bucket; None if there is no bucket.

        In a bucket that was folded before a statistic was known, the statistic is NaN.

        Args:
            kind: the kind of recording.
            level: the level.
            names: the statistics whose summaries are read.
            within: the first bucket, and the bucket after the last.
            block: the block of layers to read; if None, all blocks.
            counted: whether the counts are read; otherwise they are 0.
        """
        columns, cells = schema.pyramid.c, schema.pyramid_cells.c
        query = self._of_level(
            select(
                columns.bucket,
                columns.first_step,
                columns.last_step,
                columns.steps,
                columns.layers,
                *([columns.content] if counted else []),
            ),
            kind,
            level,
        ).order_by(columns.bucket)
        content = self._of_level(
            select(cells.bucket, cells.statistic, cells.block, cells.content), kind, level, schema.pyramid_cells
        ).where(cells.statistic.in_(names))
        if within is not None:
            query = query.where(columns.bucket >= within[0], columns.bucket < within[1])
            content = content.where(cells.bucket >= within[0], cells.bucket < within[1])
        if block is not None:
            content = content.where(cells.block == block)
        found = list(self.connection.execute(query))
        if not found:
            return None
        place = {row.bucket: i for i, row in enumerate(found)}
        total = len(self.layers)
        shown = self.shape.blocks(total) if block is None else [self.shape.blocks(total)[block]]
        left, form = shown[0].start, summary.value_format(kind)
        merged = summary.blank((len(found), len(names), shown[-1].stop - left), form)
        counts = np.zeros((len(found), total), np.int64)
        # All BLOBs of equal shape in one call. If layers came later, earlier BLOBs hold fewer layers.
        alike: dict[int, list[int]] = {}
        for i, row in enumerate(found):
            alike.setdefault(row.layers, []).append(i)
        for layers, rows in alike.items() if counted else ():
            counts[rows, :layers] = summary.decode_counts([found[i].content for i in rows], layers)
        blobs: dict[tuple[str, int, int], list[tuple[int, bytes]]] = {}
        for bucket, name, number, blob in self.connection.execute(content).all():
            i = place[bucket]
            blobs.setdefault((name, number, found[i].layers), []).append((i, blob))
        for (name, number, layers), held in blobs.items():
            span = self.shape.blocks(layers)[number]
            part = Summary.decode([blob for _, blob in held], span.stop - span.start, form)
            at = ([i for i, _ in held], names.index(name), slice(span.start - left, span.stop - left))
            summary.put(merged, at, part)
        return LevelBuckets(
            [row.bucket for row in found],
            np.array([row.first_step for row in found], np.int64),
            np.array([row.last_step for row in found], np.int64),
            np.array([row.steps for row in found], np.int64),
            counts,
            merged,
        )

    def _of_level(self, query: Select[Any], kind: Kind, level: int, table: Any = schema.pyramid) -> Select[Any]:
        return query.where(table.c.run_id == self.run_id, table.c.kind == KINDS.index(kind), table.c.level == level)

    def _in_steps(self, start: int, end: int) -> ColumnElement[bool]:
        columns = schema.frames.c
        return (columns.run_id == self.run_id) & (columns.step >= start) & (columns.step < end)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
