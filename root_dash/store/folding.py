"""The pyramid in the database: opening buckets for new rows, and folding those that are done with.

Every function is called inside the transaction that adds or removes the rows, so that the pyramid and the rows are
never at odds: a bucket is either folded, or open, and then its rows are read as they were recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, select

from root_dash.records import KINDS, Float32Array, IntArray, Kind, statistic_names
from root_dash.store import pyramid, schema
from root_dash.store.pyramid import Summary, Tile, Values

FOLDED: tuple[Kind, ...] = tuple(schema.RECORDINGS)
"""The kinds that have a pyramid; of those without statistics it holds only which frames hold them."""


_KEPT_BYTES = 2**25
"""What is kept of one bucket's statistics, at most."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind in a range of steps; `values` has a row per statistic."""

    frames: IntArray
    attempts: IntArray
    steps: IntArray
    slots: IntArray
    values: Values


class Pyramid:
    """One run's pyramid, read or written over one connection.

    A layer's slot is the place of its id among the run's: layers that are added later come after it.
    """

    def __init__(self, connection: Connection, run_id: int, attempt_id: int | None = None) -> None:
        self.connection = connection
        self.run_id = run_id
        self._attempt = attempt_id
        # Of the open buckets the attempt's own statistics by frame, so that folding need not read them back.
        self._kept: dict[int, dict[int, tuple[int, IntArray, Float32Array]]] = {}
        row = connection.execute(select(schema.runs.c.cadence).where(schema.runs.c.id == run_id)).first()
        cadence = None if row is None else _mapping(row[0])
        self.intervals: dict[Kind, int] = {kind: pyramid.interval_of(kind, cadence) for kind in FOLDED}
        self.layers = self._layers()

    def _layers(self) -> IntArray:
        columns = schema.layers.c
        query = select(columns.id).where(columns.run_id == self.run_id).order_by(columns.id)
        return np.array(list(self.connection.scalars(query)), np.int64)

    def slot(self, layer_id: int) -> int:
        """The layer's slot."""
        return int(np.searchsorted(self.layers, layer_id))

    # Writing

    def add(self, step: int, kinds: Iterable[Kind]) -> None:
        """Open the buckets of a frame that was just stored, and fold those that no frame is expected in any more."""
        opened = self.open_buckets()
        for kind in kinds:
            if kind not in FOLDED:
                continue
            bucket = step // pyramid.width(0, self.intervals[kind])
            known = opened.get(kind, [])
            if bucket in known:
                continue
            self._open(kind, bucket)
            # One stays open beside the newest: steps may arrive a little out of order.
            for done in known[: -1 if len(known) and not self._full(kind, known[-1]) else None]:
                self.fold(kind, done)

    def keep(self, frame_id: int, step: int, layer_ids: IntArray, statistics: Float32Array) -> None:
        """Remember the statistics of a frame that was just stored: layers x statistics."""
        kept = self._kept.setdefault(step // pyramid.width(0, self.intervals["statistics"]), {})
        if statistics.nbytes * (len(kept) + 1) <= _KEPT_BYTES:
            kept[frame_id] = step, layer_ids, statistics.copy()  # its owner may use the memory again

    def _remembered(self, bucket: int) -> Rows | None:
        """The statistics of a bucket where all of it was kept."""
        kept, columns = self._kept.pop(bucket, {}), schema.frames.c
        wide = pyramid.width(0, self.intervals["statistics"])
        query = select(columns.id, columns.attempt_id).where(
            self._in_steps(bucket * wide, (bucket + 1) * wide),
            columns.kinds.bitwise_and(1 << KINDS.index("statistics")) != 0,
        )
        stored = {(row.id, row.attempt_id) for row in self.connection.execute(query)}
        if not kept or stored != {(frame, self._attempt) for frame in kept}:
            return None  # others wrote to it too, or what was kept was rolled back or removed
        sizes = [len(ids) for _, ids, _ in kept.values()]
        frames = np.repeat(np.array(list(kept), np.int64), sizes)
        return Rows(
            frames,
            np.full_like(frames, self._attempt),
            np.repeat(np.array([step for step, _, _ in kept.values()], np.int64), sizes),
            np.searchsorted(self.layers, np.concatenate([ids for _, ids, _ in kept.values()])),
            np.concatenate([values for _, _, values in kept.values()]).T,
        )

    def finish(self) -> None:
        """Fold all that is open."""
        for kind, buckets in self.open_buckets().items():
            for bucket in buckets:
                self.fold(kind, bucket)

    def rebuild(self, kinds: Iterable[Kind] = FOLDED) -> None:
        """Derive the pyramid anew from all rows that there are."""
        columns = schema.frames.c
        for kind in kinds:
            for table in (schema.pyramid, schema.pyramid_cells, schema.pyramid_open):
                self.connection.execute(
                    delete(table).where(table.c.run_id == self.run_id, table.c.kind == KINDS.index(kind))
                )
            wide = pyramid.width(0, self.intervals[kind])
            held = columns.kinds.bitwise_and(1 << KINDS.index(kind)) != 0
            query = select(columns.step).where(columns.run_id == self.run_id, held)
            for bucket in sorted({int(step) // wide for step in self.connection.scalars(query)}):
                self._open(kind, bucket)
                self.fold(kind, bucket)

    def open_buckets(self) -> dict[Kind, list[int]]:
        """The buckets of level 0 whose rows are not in the pyramid, ascending."""
        columns = schema.pyramid_open.c
        query = select(columns.kind, columns.bucket).where(columns.run_id == self.run_id)
        found: dict[Kind, list[int]] = {}
        for kind, bucket in self.connection.execute(query.order_by(columns.kind, columns.bucket)):
            found.setdefault(KINDS[kind], []).append(bucket)
        return found

    def _open(self, kind: Kind, bucket: int) -> None:
        row = {"run_id": self.run_id, "kind": KINDS.index(kind), "bucket": bucket}
        self.connection.execute(insert(schema.pyramid_open).values(row))
        if self._delete(kind, 0, bucket):
            # It was folded before, and what it was is in all that cover it: they are made anew without it.
            for level in range(1, pyramid.LEVELS + 1):
                self._join(kind, level, bucket // pyramid.FACTOR ** (level - 1))

    def _full(self, kind: Kind, bucket: int) -> bool:
        """Whether a step of each interval of an open bucket was recorded."""
        columns, wide = schema.frames.c, pyramid.width(0, self.intervals[kind])
        query = select(func.count(columns.step.distinct())).where(
            self._in_steps(bucket * wide, (bucket + 1) * wide),
            columns.kinds.bitwise_and(1 << KINDS.index(kind)) != 0,
        )
        return bool(self.connection.execute(query).scalar_one() >= wide // self.intervals[kind])

    def _in_steps(self, start: int, end: int) -> ColumnElement[bool]:
        columns = schema.frames.c
        return (columns.run_id == self.run_id) & (columns.step >= start) & (columns.step < end)

    def fold(self, kind: Kind, bucket: int) -> None:
        """Put the rows of an open bucket into the pyramid."""
        open_ = schema.pyramid_open
        self.connection.execute(
            delete(open_).where(
                open_.c.run_id == self.run_id, open_.c.kind == KINDS.index(kind), open_.c.bucket == bucket
            )
        )
        self.layers = self._layers()  # another attempt of the run may have added some
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
        start = bucket * pyramid.width(0, self.intervals[kind])
        counts = presence_counts(tile)
        self._store(kind, 1, bucket, distinct, len(distinct), counts, pyramid.summarize(values, distinct, start))
        for level in range(2, pyramid.LEVELS + 1):
            self._join(kind, level, bucket // pyramid.FACTOR ** (level - 1))

    def _blocks(self) -> list[slice]:
        return pyramid.blocks(len(self.layers))

    def _join(self, kind: Kind, level: int, bucket: int) -> None:
        """Make a bucket of a level above 0 from those below it; from none, remove it."""
        if not statistic_names(kind):
            return
        self._delete(kind, level, bucket)
        if level == 1:
            return  # its only part is the tile that was just opened
        first = bucket * pyramid.FACTOR
        parts = self.summaries(kind, level - 1, statistic_names(kind), (first, first + pyramid.FACTOR))
        if parts is None:
            return
        below, start = (pyramid.width(at, self.intervals[kind]) for at in (level - 1, level))
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
        self.connection.execute(
            insert(schema.pyramid),
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
        rows = [
            key | {"statistic": name, "block": block, "content": content}
            for name, of_blocks in zip(statistic_names(kind), cells, strict=True)
            for block, content in enumerate(of_blocks)
        ]
        if rows:
            self.connection.execute(insert(schema.pyramid_cells), rows)

    def _delete(self, kind: Kind, level: int, bucket: int) -> bool:
        """Whether there was such a bucket."""
        found = 0
        for table in (schema.pyramid, schema.pyramid_cells):
            keys = (table.c[name] == value for name, value in self._key(kind, level, bucket).items())
            condition = delete(table).where(*keys)
            if table is schema.pyramid_cells:
                condition = condition.where(table.c.statistic.in_(statistic_names(kind)))
            found += self.connection.execute(condition).rowcount
        return found > 0

    def _key(self, kind: Kind, level: int, bucket: int) -> dict[str, Any]:
        return {"run_id": self.run_id, "kind": KINDS.index(kind), "level": level, "bucket": bucket}

    # Reading

    def rows(self, kind: Kind, bucket: int, names: tuple[str, ...] | None = None, layer: int | None = None) -> Rows:
        """The rows of a bucket of level 0 as they were recorded, with the named statistics, or all."""
        table, frames = schema.RECORDINGS[kind], schema.frames.c
        wide = pyramid.width(0, self.intervals[kind])
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
        found = cursor.fetchall()  # the driver's own tuples: a Row of each would take longer than reading it
        columns = list(zip(*found, strict=True)) or [()] * (4 + len(names))
        form = np.dtype(pyramid.value_format(kind)).newbyteorder("=")
        keys = [np.array(column, np.int64) for column in columns[:4]]
        values = np.array(columns[4:], np.float64).astype(form).reshape(len(names), len(found))
        return Rows(keys[0], keys[1], keys[2], np.searchsorted(self.layers, keys[3]), values)

    def tiles(self, kind: Kind, first: int | None = None, last: int | None = None) -> list[tuple[int, Tile]]:
        """The folded buckets of level 0 in that range, by ascending bucket."""
        columns = schema.pyramid.c
        query = self._of_level(select(columns.bucket, columns.content, columns.frames, columns.layers), kind, 0)
        if first is not None:
            query = query.where(columns.bucket >= first)
        if last is not None:
            query = query.where(columns.bucket <= last)
        return [
            (bucket, Tile.decode(content, frames, layers))
            for bucket, content, frames, layers in self.connection.execute(query.order_by(columns.bucket))
        ]

    def numbers(self, kind: Kind) -> dict[int, int]:
        """How many buckets each level has."""
        columns = schema.pyramid.c
        query = select(columns.level, func.count()).where(
            columns.run_id == self.run_id, columns.kind == KINDS.index(kind)
        )
        return {level: number for level, number in self.connection.execute(query.group_by(columns.level))}

    def buckets(self, kind: Kind, *, descending: bool = False) -> Iterator[int]:
        """The folded buckets of level 0, a few look-ups at a time."""
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
        """The BLOBs of a statistic's values, by bucket of level 0 and block."""
        columns = schema.pyramid_cells.c
        query = self._of_level(select(columns.bucket, columns.block, columns.content), kind, 0, schema.pyramid_cells)
        if block is not None:
            query = query.where(columns.block == block)
        if bucket is not None:
            query = query.where(columns.bucket == bucket)
        found: dict[int, dict[int, bytes]] = {}
        for at, number, content in self.connection.execute(query.where(columns.statistic == name)):
            found.setdefault(at, {})[number] = content
        return found

    def summaries(
        self,
        kind: Kind,
        level: int,
        names: Sequence[str],
        within: tuple[int, int] | None = None,
        block: int | None = None,
    ) -> Parts | None:
        """The buckets of a level above 0, by ascending bucket, with the named statistics; None where there is none.

        With a block, of that block's layers alone.
        """
        columns, cells = schema.pyramid.c, schema.pyramid_cells.c
        query = self._of_level(
            select(
                columns.bucket,
                columns.first_step,
                columns.last_step,
                columns.steps,
                columns.layers,
                columns.content,
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
        shown = pyramid.blocks(total) if block is None else [pyramid.blocks(total)[block]]
        left, form = shown[0].start, pyramid.value_format(kind)
        merged = pyramid.blank((len(found), len(names), shown[-1].stop - left), form)
        counts = np.zeros((len(found), total), np.int64)
        # All of one shape at once: layers may have come later, and then the BLOBs of before hold fewer.
        alike: dict[int, list[int]] = {}
        for i, row in enumerate(found):
            alike.setdefault(row.layers, []).append(i)
        for layers, rows in alike.items():
            counts[rows, :layers] = pyramid.decode_counts([found[i].content for i in rows], layers)
        blobs: dict[tuple[str, int, int], list[tuple[int, bytes]]] = {}
        for bucket, name, number, blob in self.connection.execute(content):
            i = place[bucket]
            blobs.setdefault((name, number, found[i].layers), []).append((i, blob))
        for (name, number, layers), held in blobs.items():
            span = pyramid.blocks(layers)[number]
            part = Summary.decode([blob for _, blob in held], span.stop - span.start, form)
            at = ([i for i, _ in held], names.index(name), slice(span.start - left, span.stop - left))
            pyramid.put(merged, at, part)
        return Parts(
            [row.bucket for row in found],
            np.array([row.first_step for row in found], np.int64),
            np.array([row.last_step for row in found], np.int64),
            np.array([row.steps for row in found], np.int64),
            counts,
            merged,
        )

    def _of_level(self, query: Select[Any], kind: Kind, level: int, table: Any = schema.pyramid) -> Select[Any]:
        return query.where(table.c.run_id == self.run_id, table.c.kind == KINDS.index(kind), table.c.level == level)


@dataclass(frozen=True, slots=True)
class Parts:
    """Buckets of one level: their numbers, first and last steps, distinct steps; buckets x slots, and summaries.

    `counts` says at how many steps each slot was recorded; `summaries` are buckets x statistics x slots.
    """

    buckets: list[int]
    first: IntArray
    last: IntArray
    steps: IntArray
    counts: IntArray
    summaries: Summary


def presence_counts(tile: Tile) -> IntArray:
    """At how many steps each layer was recorded."""
    counts = np.zeros(tile.presence.shape[1], np.int64)
    if len(tile.steps):
        starts = np.flatnonzero(np.append(True, np.diff(tile.steps) != 0))
        counts += np.logical_or.reduceat(tile.presence, starts, axis=0).sum(axis=0)
    return counts


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
