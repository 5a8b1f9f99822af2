"""What the buckets of the pyramid hold, as arrays and as BLOBs: pure functions.

The pyramid is derived from a run's rows. A view then costs the same at any length of a run.

A bucket of level 0 is a range of 64 intervals of a kind (64 steps for a kind that is recorded at every step). It holds
every value of each statistic, side by side. A bucket of level 1 covers the same range; for each layer and statistic it
holds the extremes, the steps of the extremes, and the mean. Each further level joins eight buckets of the level below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from root_dash.exceptions import StoreError
from root_dash.records import IntArray, Kind
from root_dash.store.pyramid.downsampling import newest
from root_dash.store.tables.blobs import ArrayFormat, decompress, encode

_MAX_INTERVAL = 2**16  # a step within the widest bucket fits 32 bits then
_VALUES_UNPACKED_TOGETHER = 2**20  # some megabytes
_VALUE_LIMIT = 2**27  # values in a BLOB: a damaged size must not ask for more memory than the machine has

Values = NDArray[np.floating[Any]]
Presence = NDArray[np.bool_]


def interval_of(kind: Kind, cadence: Any) -> int:
    """Return the steps between two recordings of a kind: what the run's cadence says, or 1."""
    every = cadence.get(kind) if isinstance(cadence, dict) else None
    return int(min(max(every, 1), _MAX_INTERVAL)) if isinstance(every, int | float) and every == every else 1


def value_format(kind: Kind) -> ArrayFormat:
    """Return the format of a kind's statistics. The statistics of every step are computed in float32."""
    return "<f4" if kind == "statistics" else "<f8"


@dataclass(frozen=True, slots=True)
class Tile:
    """The rows of a bucket of level 0: frame `frames[i]`, at `steps[i]`, has the layers of `presence[i]`.

    The order is by step, then by attempt, then by frame. If a step and layer have several rows, the last row counts.
    """

    frames: IntArray
    steps: IntArray
    presence: Presence

    @property
    def distinct(self) -> IntArray:
        """The steps, each once."""
        return self.steps[np.append(np.diff(self.steps) != 0, True)] if len(self.steps) else self.steps

    def of_layer(self, slot: int) -> tuple[IntArray, IntArray]:
        """Return the steps, each once, and the frames of a layer's rows that count."""
        held = self.presence[:, slot] if slot < self.presence.shape[1] else np.zeros(len(self.steps), np.bool_)
        steps, frames = self.steps[held], self.frames[held]
        last = np.append(np.diff(steps) != 0, True)[: len(steps)]
        return steps[last], frames[last]

    def encode(self) -> bytes:
        """Return the tile as a BLOB."""
        bits = np.packbits(self.presence).tobytes()
        return encode(_shuffled(self.frames) + _shuffled(self.steps) + bits, "|u1", compress=True)

    @classmethod
    def decode(cls, contents: Sequence[bytes], frames: int, layers: int) -> list[Self]:
        """Return the encoded tiles, each with the given numbers of frames and layers."""
        _within(frames, layers)
        plain = _unpacked(contents, 16 * frames + -(-frames * layers // 8), frames, layers)
        bits = np.unpackbits(plain[:, 16 * frames :], axis=1, count=frames * layers).view(np.bool_)
        return [
            cls(*tile)
            for tile in zip(
                _unshuffled(plain[:, : 8 * frames], np.dtype("<i8")),
                _unshuffled(plain[:, 8 * frames : 16 * frames], np.dtype("<i8")),
                bits.reshape(len(contents), frames, layers),
                strict=True,
            )
        ]

    @classmethod
    def joined(cls, tiles: Sequence[Self], slot: int) -> Self:
        """Join tiles of ascending buckets into a tile of a single layer, whose slot is 0."""
        held = [
            tile.presence[:, slot] if slot < tile.presence.shape[1] else np.zeros(len(tile.steps), np.bool_)
            for tile in tiles
        ]
        return cls(
            np.concatenate([np.empty(0, np.int64), *(tile.frames for tile in tiles)]),
            np.concatenate([np.empty(0, np.int64), *(tile.steps for tile in tiles)]),
            np.concatenate([np.empty(0, np.bool_), *held])[:, None],
        )


def tile_of(
    frames: IntArray, attempts: IntArray, steps: IntArray, slots: IntArray, values: Values, layers: int
) -> tuple[Tile, Values]:
    """Return the tile of rows in any order, and the values as an array (statistics, layers, distinct steps).

    The argument `values` has a row for each statistic. A value without a row is NaN.
    """
    known, place = np.unique(frames, return_index=True)
    order = np.lexsort((known, attempts[place], steps[place]))
    ordered, at = known[order], steps[place][order]
    presence = np.zeros((len(known), layers), np.bool_)
    rank = np.empty(len(known), np.int64)
    rank[order] = np.arange(len(known))
    presence[rank[np.searchsorted(known, frames)], slots] = True
    tile = Tile(ordered, at, presence)
    counted = newest(slots, steps, attempts, frames)
    content = np.full((len(values), layers, len(tile.distinct)), np.nan, values.dtype)
    content[:, slots[counted], np.searchsorted(tile.distinct, steps[counted])] = values[:, counted]
    return tile, content


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary of the values of any number of cells: arrays of equal shape.

    The extremes are taken over all values that are not NaN; the earliest of equal values counts; an extreme is NaN if
    there is no such value. The mean is the mean of the `finite` values. `least_at` and `greatest_at` count steps from
    the start of the bucket.
    """

    least: Values
    greatest: Values
    mean: Values
    least_at: NDArray[np.uint32]
    greatest_at: NDArray[np.uint32]
    finite: NDArray[np.uint32]

    def __getitem__(self, key: Any) -> Summary:
        return Summary(*(getattr(self, field.name)[key] for field in fields(self)))

    @property
    def worst(self) -> Values:
        """The value of largest magnitude; of two values of equal magnitude the positive value."""
        return np.where(self.greatest >= -self.least, self.greatest, self.least)

    def encode(self) -> bytes:
        """Return the summary of a statistic as a BLOB, with the bytes by significance, which compress better."""
        arrays = (_stored(getattr(self, field.name)) for field in fields(self))
        return encode(b"".join(map(_shuffled, arrays)), "|u1", compress=True)

    @classmethod
    def decode(cls, contents: Sequence[bytes], layers: int, form: ArrayFormat) -> Summary:
        """Return the encoded summaries, each of so many layers: arrays (contents, layers)."""
        kinds = [np.dtype(form)] * 3 + [np.dtype("<u4")] * 3
        sizes = [layers * kind.itemsize for kind in kinds]
        plain = _unpacked(contents, sum(sizes), layers)
        parts = np.split(plain, np.cumsum(sizes)[:-1], axis=1)
        return cls(*map(_unshuffled, parts, kinds))


def summarize(values: Values, steps: IntArray, start: int) -> Summary:
    """Summarize the last axis of values, recorded at `steps`, for a bucket from `start`."""
    offsets = (steps - start).astype(np.uint32)
    missing, finite = np.isnan(values), np.isfinite(values)
    lowest, highest = np.where(missing, np.inf, values), np.where(missing, -np.inf, values)
    # An extreme may be the infinity that fills the gaps. No value is beyond it, and the first value that is not missing
    # is the extreme.
    at_least = np.where(missing, 2, lowest != lowest.min(axis=-1, keepdims=True)).argmin(axis=-1)
    at_greatest = np.where(missing, 2, highest != highest.max(axis=-1, keepdims=True)).argmin(axis=-1)
    number = finite.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        mean = np.where(finite, values, 0).sum(axis=-1, dtype=np.float64) / np.where(number, number, np.nan)
    take = np.take_along_axis
    return Summary(
        take(values, at_least[..., None], -1)[..., 0],
        take(values, at_greatest[..., None], -1)[..., 0],
        mean.astype(values.dtype),
        offsets[at_least],
        offsets[at_greatest],
        number.astype(np.uint32),
    )


def join(parts: Summary, starts: Sequence[int], start: int) -> Summary:
    """Join the summaries along the first axis, of parts that begin at ascending `starts`, for a bucket from `start`."""
    shifts = np.array(starts, np.int64).reshape(-1, *[1] * (parts.least.ndim - 1)) - start
    least, greatest, finite = parts.least, parts.greatest, parts.finite.astype(np.int64)
    missing = np.isnan(least)
    low = np.where(missing, 2, least != np.where(missing, np.inf, least).min(axis=0)).argmin(axis=0)[None]
    high = np.where(missing, 2, greatest != np.where(missing, -np.inf, greatest).max(axis=0)).argmin(axis=0)[None]
    number = finite.sum(axis=0)
    weighted = np.where(finite > 0, parts.mean.astype(np.float64), 0) * finite
    mean = weighted.sum(axis=0) / np.where(number, number, np.nan)

    def chosen(array: NDArray[Any], place: NDArray[np.intp]) -> NDArray[Any]:
        of_part: NDArray[Any] = np.take_along_axis(array, place, 0)[0]
        return of_part

    return Summary(
        chosen(least, low),
        chosen(greatest, high),
        mean.astype(least.dtype),
        chosen(parts.least_at + shifts, low).astype(np.uint32),
        chosen(parts.greatest_at + shifts, high).astype(np.uint32),
        number.astype(np.uint32),
    )


def blank(shape: tuple[int, ...], form: ArrayFormat) -> Summary:
    """Return summaries of no values at all."""
    kind = np.dtype(form).newbyteorder("=")
    numbers = [np.full(shape, np.nan, kind) for _ in range(3)]
    return Summary(*numbers, *(np.zeros(shape, np.uint32) for _ in range(3)))


def put(into: Summary, key: Any, part: Summary) -> None:
    """Set some cells of a summary to the cells of another summary."""
    for field in fields(part):
        getattr(into, field.name)[key] = getattr(part, field.name)


def encode_values(values: Values, form: ArrayFormat) -> bytes:
    """Return the values (layers, steps) of a statistic as a BLOB."""
    return encode(_shuffled(np.ascontiguousarray(values.astype(form))), "|u1", compress=True)


def decode_values(content: bytes, steps: int, layers: int, form: ArrayFormat) -> Values:
    """Return the encoded values (layers, steps)."""
    plain = _unpacked([content], steps * layers * np.dtype(form).itemsize, steps, layers)
    return _unshuffled(plain, np.dtype(form)).reshape(layers, steps)


def decode_rows(contents: Sequence[bytes], steps: int, layers: int, row: int, form: ArrayFormat) -> Values:
    """Return a row of the encoded values (layers, steps) of each content: an array (contents, steps)."""
    kind = np.dtype(form)
    plain = _unpacked(contents, steps * layers * kind.itemsize, steps, layers)
    of_layer = plain.reshape(len(contents), kind.itemsize, layers, steps)[:, :, row]
    return _unshuffled(of_layer.reshape(len(contents), -1), kind)


def encode_counts(counts: IntArray) -> bytes:
    """Return the number of recorded steps of each layer in a bucket as a BLOB."""
    return encode(_shuffled(counts), "|u1", compress=True)


def decode_counts(contents: Sequence[bytes], layers: int) -> IntArray:
    """Return the encoded counts, each of so many layers: an array (contents, layers)."""
    return _unshuffled(_unpacked(contents, 8 * layers, layers), np.dtype("<i8"))


def by_size(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yield the places of equal sizes, as many as are unpacked together: the cost of unpacking is in the calls."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    for size, places in groups.items():
        many = max(1, _VALUES_UNPACKED_TOGETHER // max(1, size[0] * size[1]))
        yield from ((size, places[start : start + many]) for start in range(0, len(places), many))


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))


def _shuffled(array: NDArray[Any]) -> bytes:
    item = array.dtype.itemsize
    return _stored(array).view(np.uint8).reshape(-1, item).T.tobytes()


def _unshuffled(content: NDArray[np.uint8], item: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers of each row of bytes, or of the only row."""
    many = content.reshape(*content.shape[:-1], item.itemsize, -1)
    plain: NDArray[Any] = np.ascontiguousarray(np.moveaxis(many, -2, -1)).view(item)[..., 0]
    return plain.astype(item.newbyteorder("="))


def _unpacked(contents: Sequence[bytes], size: int, *sizes: int) -> NDArray[np.uint8]:
    """Return a row of `size` bytes from each content."""
    _within(len(contents), *sizes)
    plain = b"".join(decompress(content, size) for content in contents)
    return np.frombuffer(plain, np.uint8).reshape(len(contents), size)


def _within(*sizes: int) -> None:
    if min(sizes) < 0 or int(np.prod([max(size, 1) for size in sizes], dtype=object)) > _VALUE_LIMIT:
        raise StoreError(f"the pyramid in the database is damaged: {' x '.join(map(str, sizes))} values")
