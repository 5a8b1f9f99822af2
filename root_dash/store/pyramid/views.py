"""What the verbs read from the pyramid: histories, grids, and which frames hold a layer's recordings."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Float64Array, IntArray, Kind
from root_dash.store.pyramid import downsampling
from root_dash.store.pyramid import summary as pyramid
from root_dash.store.pyramid.buckets import Buckets, Rows
from root_dash.store.pyramid.summary import Summary, Tile

_TILES = 512
"""Buckets of level 0 that a thinned history is read from: beyond, the level above is as good and quicker."""

_PARTS = 4
"""Buckets of a level that are read for each point of a view, at most: a view then has at least half of its points."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A grid's columns: their first and last steps, the values by slot, and how many steps were recorded."""

    starts: IntArray
    ends: IntArray
    values: Float64Array
    total: int


def recorded(source: Buckets, kind: Kind, layer_id: int) -> tuple[IntArray, IntArray]:
    """The steps, ascending and each once, at which the kind was recorded for the layer, and the frames that count."""
    folded = Tile.joined([tile for _, tile in source.tiles(kind)], source.slot(layer_id))
    found = [folded.of_layer(0)]
    for bucket in source.open_buckets().get(kind, []):
        rows = _newest(source.rows(kind, bucket, (), layer_id))
        found.append((rows.steps, rows.frames))
    return _ascending(*_joined(found))


def holds(source: Buckets, kind: Kind, layer_id: int) -> bool:
    """Whether the kind was recorded for the layer at all."""
    slot = source.slot(layer_id)
    for bucket in source.open_buckets().get(kind, []):
        if len(source.rows(kind, bucket, (), layer_id).steps):
            return True
    for bucket in source.buckets(kind, descending=True):
        for _, tile in source.tiles(kind, bucket, bucket):  # none where an index is damaged
            if slot < tile.presence.shape[1] and tile.presence[:, slot].any():
                return True
    return False


def history(source: Buckets, kind: Kind, layer_id: int, name: str) -> tuple[IntArray, Float64Array]:
    """Steps, ascending and each once, and values of a statistic of one layer."""
    slot = source.slot(layer_id)
    contents = source.values(kind, name, slot // pyramid.BLOCK)
    found = [_folded(kind, slot, source.tiles(kind), contents)]
    for bucket in source.open_buckets().get(kind, []):
        rows = _newest(source.rows(kind, bucket, (name,), layer_id))
        found.append((rows.steps, rows.values[0].astype(np.float64)))
    return _ascending(*_joined(found))


def thinned(
    source: Buckets, kind: Kind, layer_id: int, name: str, max_points: int
) -> tuple[IntArray, Float64Array, int]:
    """At most `max_points` points of a history, the extremes of it all and of its parts among them, and their total."""
    numbers = source.numbers(kind)
    if numbers.get(0, 0) <= _TILES or max_points < 8:
        steps, values = history(source, kind, layer_id, name)
        kept = downsampling.decimate(values, max_points)
        return steps[kept], values[kept], len(steps)
    slot, groups = source.slot(layer_id), (max_points - 2) // 2
    block, interval = slot // pyramid.BLOCK, source.intervals[kind]
    level = _level(numbers, groups)
    parts = source.summaries(kind, level, (name,), block=block)
    assert parts is not None
    wide, at = pyramid.width(level, interval), slot - block * pyramid.BLOCK
    summaries = _Buckets(parts.buckets, parts.summaries[:, 0, at : at + 1], level, interval)
    total = int(parts.counts[:, slot].sum())
    for bucket in source.open_buckets().get(kind, []):
        rows = _newest(source.rows(kind, bucket, (name,), layer_id))
        if len(rows.steps):
            total += len(rows.steps)
            summaries.merge(bucket, rows.values, rows.steps)
    buckets, merged = summaries.joined()
    merged = merged[:, 0]
    low, high = _extremes(merged, groups)
    begins = np.array(buckets, np.int64) * wide
    points = dict(_ends(source, kind, layer_id, name))
    for places, found, offsets in ((low, merged.least, merged.least_at), (high, merged.greatest, merged.greatest_at)):
        for place in places[~np.isnan(found[places])].tolist():
            points[int(begins[place] + offsets[place])] = float(found[place])
    chosen = sorted(points)
    return np.array(chosen, np.int64), np.array([points[step] for step in chosen]), total


def grid(source: Buckets, kind: Kind, name: str, buckets: int) -> Cells:
    """A statistic of all slots in at most `buckets` columns.

    Raises:
        ValueError: `buckets` is less than 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    numbers = source.numbers(kind)
    opened = [(bucket, source.rows(kind, bucket, (name,))) for bucket in source.open_buckets().get(kind, [])]
    if numbers.get(0, 0) <= buckets:
        return _fine(source, kind, name, buckets, opened)
    level, interval = _level(numbers, buckets), source.intervals[kind]
    parts = source.summaries(kind, level, (name,), counted=False)
    assert parts is not None
    summaries = _Buckets(parts.buckets, parts.summaries[:, 0], level, interval)
    spans = {b: (f, t) for b, f, t in zip(parts.buckets, parts.first.tolist(), parts.last.tolist(), strict=True)}
    total = int(parts.steps.sum())
    for bucket, rows in opened:
        if not len(rows.steps):
            continue
        _, recent = pyramid.tile_of(rows.frames, rows.attempts, rows.steps, rows.slots, rows.values, len(source.layers))
        distinct = np.unique(rows.steps)
        total += len(distinct)
        at = summaries.merge(bucket, recent[0], distinct)
        first, last = spans.get(at, (int(distinct[0]), int(distinct[-1])))
        spans[at] = (min(first, int(distinct[0])), max(last, int(distinct[-1])))
    order, merged = summaries.joined()
    worst = merged.worst.astype(np.float64).T
    firsts, lasts = (np.array([spans[bucket][i] for bucket in order], np.int64) for i in (0, 1))
    starts, values = _columns(worst, -(-len(order) // buckets))
    ends = np.append(starts[1:], len(order)) - 1
    return Cells(firsts[starts], lasts[ends], values, total)


def _fine(source: Buckets, kind: Kind, name: str, buckets: int, opened: list[tuple[int, Rows]]) -> Cells:
    """The grid from every value: columns of the same whole number of recorded steps."""
    height, form = len(source.layers), pyramid.value_format(kind)
    contents = source.values(kind, name)
    found: list[tuple[IntArray, Float64Array]] = []
    for bucket, tile in source.tiles(kind):
        distinct, spans = tile.distinct, pyramid.blocks(tile.presence.shape[1])
        values = np.full((height, len(distinct)), np.nan)
        for block, span in enumerate(spans):
            values[span] = pyramid.decode_values(contents[bucket][block], len(distinct), span.stop - span.start, form)
        found.append((distinct, values))
    for _, rows in opened:
        if len(rows.steps):
            tile, all_ = pyramid.tile_of(rows.frames, rows.attempts, rows.steps, rows.slots, rows.values, height)
            found.append((tile.distinct, all_[0].astype(np.float64)))
    if not found:
        return Cells(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((height, 0)), 0)
    found.sort(key=lambda part: int(part[0][0]))
    steps = np.concatenate([part[0] for part in found])
    starts, values = _columns(np.concatenate([part[1] for part in found], axis=1), -(-len(steps) // buckets))
    ends = np.append(starts[1:], len(steps)) - 1
    return Cells(steps[starts], steps[ends], values, len(steps))


def _columns(values: Float64Array, width: int) -> tuple[IntArray, Float64Array]:
    """Where each column of so many begins, and of each the value of largest magnitude, of equals the positive one."""
    starts = np.arange(0, values.shape[1], width)
    if width == 1:
        return starts, values
    missing = np.isnan(values)
    high = np.maximum.reduceat(np.where(missing, -np.inf, values), starts, axis=1)
    low = np.minimum.reduceat(np.where(missing, np.inf, values), starts, axis=1)
    worst = np.where(high >= -low, high, low)
    return starts, np.where(np.logical_and.reduceat(missing, starts, axis=1), np.nan, worst)


def _level(numbers: dict[int, int], points: int) -> int:
    """The lowest level above 0 with few enough buckets for so many points, or the highest."""
    return next(
        (level for level in range(1, pyramid.LEVELS) if numbers.get(level, 0) <= _PARTS * points), pyramid.LEVELS
    )


class _Buckets:
    """Summaries of one level, buckets x slots, into which the open buckets' rows are taken."""

    def __init__(self, buckets: list[int], summaries: Summary, level: int, interval: int) -> None:
        self._place = {bucket: i for i, bucket in enumerate(buckets)}
        self._folded = summaries
        self._recent: dict[int, Summary] = {}
        self._level = level
        self._wide = pyramid.width(level, interval)

    def merge(self, bucket: int, values: pyramid.Values, steps: IntArray) -> int:
        """Take in slots x steps of an open bucket of level 0; the number of the bucket that covers it."""
        at = bucket // int(pyramid.FACTOR ** (self._level - 1))
        part = pyramid.summarize(values, steps, at * self._wide)
        known = self._recent.get(at)
        if known is None and at in self._place:
            known = self._folded[self._place[at]]
        if known is not None:
            both = Summary(*(np.stack(pair) for pair in zip(_arrays(known), _arrays(part), strict=True)))
            part = pyramid.join(both, [at * self._wide] * 2, at * self._wide)
        self._recent[at] = part
        return at

    def joined(self) -> tuple[list[int], Summary]:
        """The buckets, ascending, and their summaries."""
        kept = [bucket for bucket in self._place if bucket not in self._recent]
        folded = self._folded[[self._place[bucket] for bucket in kept]]
        recent = (np.stack(column) for column in zip(*map(_arrays, self._recent.values()), strict=True))
        parts = [folded, Summary(*recent)] if self._recent else [folded]
        both = Summary(*(np.concatenate(column) for column in zip(*map(_arrays, parts), strict=True)))
        buckets = kept + list(self._recent)
        order = np.argsort(np.array(buckets, np.int64)).tolist()
        return [buckets[i] for i in order], both[order]


def _arrays(summary: Summary) -> list[NDArray[Any]]:
    return [getattr(summary, name) for name in Summary.__slots__]


def _extremes(merged: Summary, groups: int) -> tuple[IntArray, IntArray]:
    """Where the least and the largest of each of at most so many groups of neighbours are."""
    count = len(merged.least)
    bounds = np.arange(min(groups, count) + 1) * count // max(min(groups, count), 1)
    missing = np.isnan(merged.least)
    low, high = np.where(missing, np.inf, merged.least), np.where(missing, -np.inf, merged.greatest)
    spans = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    lows = np.array([a + int(np.lexsort((missing[a:b], low[a:b]))[0]) for a, b in spans], np.int64)
    highs = np.array([a + int(np.lexsort((missing[a:b], -high[a:b]))[0]) for a, b in spans], np.int64)
    return lows, highs


def _folded(
    kind: Kind, slot: int, tiles: Sequence[tuple[int, Tile]], contents: dict[int, dict[int, bytes]]
) -> tuple[IntArray, Float64Array]:
    """Steps and values of one layer in folded buckets, which ascend."""
    block, form = slot // pyramid.BLOCK, pyramid.value_format(kind)
    held = [
        (tile, contents[bucket][block])
        for bucket, tile in tiles
        if slot < tile.presence.shape[1] and block in contents.get(bucket, {})
    ]
    found: dict[int, pyramid.Values] = {}
    spans = [pyramid.blocks(tile.presence.shape[1])[block] for tile, _ in held]
    sizes = [(len(tile.distinct), span.stop - span.start) for (tile, _), span in zip(held, spans, strict=True)]
    for (steps, layers), places in pyramid.alike(sizes):
        rows = pyramid.decode_rows([held[at][1] for at in places], steps, layers, slot - block * pyramid.BLOCK, form)
        found |= zip(places, rows, strict=True)
    joined = Tile.joined([tile for tile, _ in held], slot)
    at = np.searchsorted(joined.distinct, joined.of_layer(0)[0])
    values = np.concatenate([np.empty(0), *(found[place] for place in range(len(held)))])
    return joined.of_layer(0)[0], values[at]


def _ends(source: Buckets, kind: Kind, layer_id: int, name: str) -> list[tuple[int, float]]:
    """The first and the last point of the layer's history."""
    slot, opened, found = source.slot(layer_id), source.open_buckets().get(kind, []), []
    for place in (0, -1):
        folded = source.buckets(kind, descending=place == -1)
        pending = sorted(opened, reverse=place == -1)
        for bucket in heapq.merge(folded, pending, reverse=place == -1):
            if bucket in opened:
                rows = _newest(source.rows(kind, bucket, (name,), layer_id))
                steps, values = rows.steps, rows.values[0].astype(np.float64)
            else:
                contents = source.values(kind, name, slot // pyramid.BLOCK, bucket)
                steps, values = _folded(kind, slot, source.tiles(kind, bucket, bucket), contents)
            if len(steps):
                found.append((int(steps[place]), float(values[place])))
                break
    return found


def _newest(rows: Rows) -> Rows:
    kept = downsampling.newest(rows.slots, rows.steps, rows.attempts, rows.frames)
    return Rows(rows.frames[kept], rows.attempts[kept], rows.steps[kept], rows.slots[kept], rows.values[:, kept])


def _joined(parts: Sequence[tuple[IntArray, NDArray[Any]]]) -> tuple[IntArray, NDArray[Any]]:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _ascending(steps: IntArray, values: NDArray[Any]) -> tuple[IntArray, NDArray[Any]]:
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]
