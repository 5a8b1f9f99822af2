"""Views of the pyramid: histories, grids, and the frames with a layer's recordings."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Float64Array, IntArray, Kind
from root_dash.store.limits import PyramidShape
from root_dash.store.pyramid import downsampling
from root_dash.store.pyramid import summary as pyramid
from root_dash.store.pyramid.buckets import BucketRows, Buckets
from root_dash.store.pyramid.summary import Summary, Tile


@dataclass(frozen=True, slots=True)
class Cells:
    """The columns of a grid: their first and last steps, the values by slot, and how many steps were recorded."""

    starts: IntArray
    ends: IntArray
    values: Float64Array
    total: int


def recorded(source: Buckets, kind: Kind, layer_id: int) -> tuple[IntArray, IntArray]:
    """Return the steps, ascending and each once, of a layer's recordings of a kind, and the frames that count."""
    folded = Tile.joined([tile for _, tile in source.tiles(kind)], source.slot(layer_id))
    found = [folded.of_layer(0)]
    for bucket in source.open_buckets().get(kind, []):
        rows = _newest(source.rows(kind, bucket, (), layer_id))
        found.append((rows.steps, rows.frames))
    return _ascending(*_joined(found))


def holds(source: Buckets, kind: Kind, layer_id: int) -> bool:
    """Return whether a kind was recorded for a layer at all."""
    slot = source.slot(layer_id)
    for bucket in source.open_buckets().get(kind, []):
        if len(source.rows(kind, bucket, (), layer_id).steps):
            return True
    for bucket in source.buckets(kind, descending=True):
        for _, tile in source.tiles(kind, bucket, bucket):  # there are none if an index is damaged
            if slot < tile.presence.shape[1] and tile.presence[:, slot].any():
                return True
    return False


def history(source: Buckets, kind: Kind, layer_id: int, name: str) -> tuple[IntArray, Float64Array]:
    """Return the steps, ascending and each once, and the values of a statistic of a layer."""
    slot = source.slot(layer_id)
    contents = source.values(kind, name, slot // source.shape.block)
    found = [_folded(source, kind, slot, source.tiles(kind), contents)]
    for bucket in source.open_buckets().get(kind, []):
        rows = _newest(source.rows(kind, bucket, (name,), layer_id))
        found.append((rows.steps, rows.values[0].astype(np.float64)))
    return _ascending(*_joined(found))


def thinned(
    source: Buckets, kind: Kind, layer_id: int, name: str, max_points: int
) -> tuple[IntArray, Float64Array, int]:
    """Return at most `max_points` points of a history, and the number of all.

    The extremes of the history and of its parts are among the points.
    """
    numbers = source.numbers(kind)
    if numbers.get(0, 0) <= source.shape.fine_buckets or max_points < 8:
        steps, values = history(source, kind, layer_id, name)
        kept = downsampling.decimate(values, max_points)
        return steps[kept], values[kept], len(steps)
    slot, groups = source.slot(layer_id), (max_points - 2) // 2
    block, interval = slot // source.shape.block, source.intervals[kind]
    level = _level(source.shape, numbers, groups)
    parts = source.summaries(kind, level, (name,), block=block)
    assert parts is not None
    wide, at = source.shape.width(level, interval), slot - block * source.shape.block
    summaries = _MergedLevel(source.shape, parts.buckets, parts.summaries[:, 0, at : at + 1], level, interval)
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
    """Return a statistic of all slots in at most `buckets` columns.

    Raises:
        ValueError: `buckets` is less than 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    numbers = source.numbers(kind)
    opened = [(bucket, source.rows(kind, bucket, (name,))) for bucket in source.open_buckets().get(kind, [])]
    if numbers.get(0, 0) <= buckets:
        return _fine(source, kind, name, buckets, opened)
    level, interval = _level(source.shape, numbers, buckets), source.intervals[kind]
    parts = source.summaries(kind, level, (name,), counted=False)
    assert parts is not None
    summaries = _MergedLevel(source.shape, parts.buckets, parts.summaries[:, 0], level, interval)
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


def _fine(source: Buckets, kind: Kind, name: str, buckets: int, opened: list[tuple[int, BucketRows]]) -> Cells:
    """Return the grid from every value: each column has the same whole number of recorded steps."""
    height, form = len(source.layers), pyramid.value_format(kind)
    contents = source.values(kind, name)
    found: list[tuple[IntArray, Float64Array]] = []
    for bucket, tile in source.tiles(kind):
        distinct, spans = tile.distinct, source.shape.blocks(tile.presence.shape[1])
        values = np.full((height, len(distinct)), np.nan)
        for block, span in enumerate(spans):
            content = contents.get(bucket, {}).get(block)
            if content is not None:  # None: the statistic was unknown when the bucket was folded
                values[span] = pyramid.decode_values(content, len(distinct), span.stop - span.start, form)
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
    """Return where each column of `width` steps begins, and its value of largest magnitude.

    If two values have the same magnitude, the positive value counts.
    """
    starts = np.arange(0, values.shape[1], width)
    if width == 1:
        return starts, values
    missing = np.isnan(values)
    high = np.maximum.reduceat(np.where(missing, -np.inf, values), starts, axis=1)
    low = np.minimum.reduceat(np.where(missing, np.inf, values), starts, axis=1)
    worst = np.where(high >= -low, high, low)
    return starts, np.where(np.logical_and.reduceat(missing, starts, axis=1), np.nan, worst)


def _level(shape: PyramidShape, numbers: dict[int, int], points: int) -> int:
    """Return the lowest level above 0 with few enough buckets for the number of points, or the highest level."""
    most = shape.buckets_per_point * points
    return next((level for level in range(1, shape.levels) if numbers.get(level, 0) <= most), shape.levels)


class _MergedLevel:
    """Summaries (buckets, slots) of a level, into which the rows of the open buckets are merged."""

    def __init__(self, shape: PyramidShape, buckets: list[int], summaries: Summary, level: int, interval: int) -> None:
        self._place = {bucket: i for i, bucket in enumerate(buckets)}
        self._folded = summaries
        self._recent: dict[int, Summary] = {}
        self._covered: int = shape.factor ** (level - 1)
        self._wide = shape.width(level, interval)

    def merge(self, bucket: int, values: pyramid.Values, steps: IntArray) -> int:
        """Merge the values (slots, steps) of an open bucket of level 0; return the number of the covering bucket."""
        at = bucket // self._covered
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
        """Return the buckets, ascending, and their summaries."""
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
    """Return the places of the least and the largest value in each of at most `groups` groups of neighbours."""
    count = len(merged.least)
    bounds = np.arange(min(groups, count) + 1) * count // max(min(groups, count), 1)
    missing = np.isnan(merged.least)
    low, high = np.where(missing, np.inf, merged.least), np.where(missing, -np.inf, merged.greatest)
    spans = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    lows = np.array([a + int(np.lexsort((missing[a:b], low[a:b]))[0]) for a, b in spans], np.int64)
    highs = np.array([a + int(np.lexsort((missing[a:b], -high[a:b]))[0]) for a, b in spans], np.int64)
    return lows, highs


def _folded(
    source: Buckets, kind: Kind, slot: int, tiles: Sequence[tuple[int, Tile]], contents: dict[int, dict[int, bytes]]
) -> tuple[IntArray, Float64Array]:
    """Return the steps and values of a layer in folded buckets, which ascend.

    In a bucket that was folded before a statistic was known, the statistic is NaN.
    """
    block, form = slot // source.shape.block, pyramid.value_format(kind)
    held = [(tile, contents.get(bucket, {}).get(block)) for bucket, tile in tiles if slot < tile.presence.shape[1]]
    found = {at: np.full(len(tile.distinct), np.nan) for at, (tile, content) in enumerate(held) if content is None}
    known = [(at, tile, content) for at, (tile, content) in enumerate(held) if content is not None]
    spans = [source.shape.blocks(tile.presence.shape[1])[block] for _, tile, _ in known]
    sizes = [(len(tile.distinct), span.stop - span.start) for (_, tile, _), span in zip(known, spans, strict=True)]
    for (steps, layers), places in pyramid.by_size(sizes):
        of_block = [known[at][2] for at in places]
        rows = pyramid.decode_rows(of_block, steps, layers, slot - block * source.shape.block, form)
        found |= zip((known[at][0] for at in places), rows, strict=True)
    joined = Tile.joined([tile for tile, _ in held], slot)
    at = np.searchsorted(joined.distinct, joined.of_layer(0)[0])
    values = np.concatenate([np.empty(0), *(found[place] for place in range(len(held)))])
    return joined.of_layer(0)[0], values[at]


def _ends(source: Buckets, kind: Kind, layer_id: int, name: str) -> list[tuple[int, float]]:
    """Return the first and the last point of a layer's history."""
    slot, opened, found = source.slot(layer_id), source.open_buckets().get(kind, []), []
    for place in (0, -1):
        folded = source.buckets(kind, descending=place == -1)
        pending = sorted(opened, reverse=place == -1)
        for bucket in heapq.merge(folded, pending, reverse=place == -1):
            if bucket in opened:
                rows = _newest(source.rows(kind, bucket, (name,), layer_id))
                steps, values = rows.steps, rows.values[0].astype(np.float64)
            else:
                contents = source.values(kind, name, slot // source.shape.block, bucket)
                steps, values = _folded(source, kind, slot, source.tiles(kind, bucket, bucket), contents)
            if len(steps):
                found.append((int(steps[place]), float(values[place])))
                break
    return found


def _newest(rows: BucketRows) -> BucketRows:
    kept = downsampling.newest(rows.slots, rows.steps, rows.attempts, rows.frames)
    return BucketRows(rows.frames[kept], rows.attempts[kept], rows.steps[kept], rows.slots[kept], rows.values[:, kept])


def _joined(parts: Sequence[tuple[IntArray, NDArray[Any]]]) -> tuple[IntArray, NDArray[Any]]:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _ascending(steps: IntArray, values: NDArray[Any]) -> tuple[IntArray, NDArray[Any]]:
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]
