"""Histograms to BLOBs and back: each octave's eight counts as bit planes, as many as its largest count needs.

A gradient's counts fall by half from octave to octave, so that a bit width shared by the four bins of an octave and by
the four that mirror them wastes little: 65,536 entries of Student's t take 144 bytes, where zstd takes 346.

The layout: one byte each of form (1: widths of 4 bits, 2: of 8), the first octave held, the number of octaves, and the
width of the group of the two outermost bins and the middle one; then the octaves' widths; then the planes of that group
and of each octave, from the lowest bit on, a byte a plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from root_dash.exceptions import StoreError
from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, CountArray
from root_dash.store.tables.blobs import decode

_OCTAVES = HISTOGRAM_OCTAVES[1] - HISTOGRAM_OCTAVES[0]
_BINS = 2 * _OCTAVES * HISTOGRAM_BINS_PER_OCTAVE + 3
_GROUPS = _OCTAVES + 1
_HEADER = 4
_AT_ONCE = 500  # histograms whose planes and groups stay in a core's cache
_ZSTD = 0x28  # the first byte of a zstd frame: what schema 1 stored


@cache
def _bins() -> NDArray[np.intp]:
    """The bins of each group, `_GROUPS` x 8; `_BINS` where a place is unused."""
    bins = np.full((_GROUPS, 8), _BINS, np.intp)
    middle = _BINS // 2
    bins[0, :3] = 0, middle, _BINS - 1
    offsets = 1 + np.arange(_OCTAVES * HISTOGRAM_BINS_PER_OCTAVE).reshape(_OCTAVES, HISTOGRAM_BINS_PER_OCTAVE)
    bins[1:, :4] = middle + offsets
    bins[1:, 4:] = middle - offsets
    return bins


@cache
def _places() -> NDArray[np.intp]:
    """Where each bin stands in the flattened groups."""
    places = np.empty(_BINS + 1, np.intp)
    places[_bins().ravel()] = np.arange(_GROUPS * 8)
    return places[:_BINS]


def _transpose(groups: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each 8 x 8 matrix of bits turned over: of eight bytes the eight planes, and back. `n` x 8 both ways."""
    words = np.ascontiguousarray(groups).view("<u8")[..., 0]
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        moved = (words ^ (words >> np.uint64(shift))) & np.uint64(mask)
        words = words ^ moved ^ (moved << np.uint64(shift))
    return words[..., None].view(np.uint8)


def pack(counts: CountArray) -> list[bytes]:
    """The BLOB of each row of `n` x 515 counts."""
    if not len(counts):
        return []
    padded = np.zeros((len(counts), _BINS + 1), "<u4")
    padded[:, :_BINS] = counts
    grouped = padded.take(_bins(), axis=1)
    widths = np.frexp(grouped.max(axis=2).astype(np.float64))[1]  # the bit length of an integer
    depth = max(1, int(widths.max()))
    parts = grouped.view(np.uint8).reshape(*grouped.shape, 4)
    planes = np.concatenate([_transpose(parts[..., part]) for part in range(-(-depth // 8))], axis=2)[:, :, :depth]
    content = planes[np.arange(depth) < widths[:, :, None]].tobytes()
    ends = np.cumsum(widths.sum(axis=1)).tolist()
    full = widths[:, 1:] > 0
    firsts = full.argmax(axis=1).tolist()
    numbers = np.where(full.any(axis=1), _OCTAVES - full[:, ::-1].argmax(axis=1) - firsts, 0).tolist()
    blobs, start = [], 0
    for own, first, number, end in zip(widths.tolist(), firsts, numbers, ends, strict=True):
        held = own[1 + first : 1 + first + number]
        form = 1 if max(held, default=0) < 16 else 2
        if form == 1:
            held.append(0)
            held = [low | high << 4 for low, high in zip(held[:-1:2], held[1::2], strict=False)]
        blobs.append(bytes((form, first, number, own[0], *held)) + content[start:end])
        start = end
    return blobs


def unpack(blobs: Sequence[bytes]) -> CountArray:
    """The counts of each BLOB, `n` x 515.

    Raises:
        StoreError: one of them is no histogram.
    """
    if not all(isinstance(blob, bytes) and len(blob) >= _HEADER for blob in blobs):
        raise _damaged()
    if any(blob[0] == _ZSTD for blob in blobs):
        return np.stack(
            [decode(blob, "<u4", _BINS, compressed=True) if blob[0] == _ZSTD else unpack([blob])[0] for blob in blobs]
        )
    counts = np.empty((len(blobs), _BINS), np.uint32)
    for start in range(0, len(blobs), _AT_ONCE):
        _unpack(blobs[start : start + _AT_ONCE], counts[start : start + _AT_ONCE])
    return counts


def _unpack(blobs: Sequence[bytes], counts: CountArray) -> None:
    content = np.frombuffer(b"".join(blobs), np.uint8)
    sizes = np.fromiter(map(len, blobs), np.int64, len(blobs))
    starts = np.cumsum(sizes) - sizes
    form, first, number = (content[starts + place].astype(np.int64) for place in range(3))
    heads = _HEADER + np.where(form == 1, (number + 1) // 2, number)
    if not (np.isin(form, (1, 2)) & (first + number <= _OCTAVES) & (heads <= sizes)).all():
        raise _damaged()
    widths = np.zeros((len(blobs), _GROUPS), np.int64)
    widths[:, 0] = content[starts + 3]
    rows = np.repeat(np.arange(len(blobs)), number)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number)
    narrow = form[rows] == 1
    found = content[starts[rows] + _HEADER + np.where(narrow, place // 2, place)]
    widths[rows, 1 + first[rows] + place] = np.where(narrow, found >> 4 * (place % 2) & 15, found)
    if (widths > 32).any() or (heads + widths.sum(axis=1) != sizes).any():
        raise _damaged()
    begins = (starts + heads)[:, None] + np.cumsum(widths, axis=1) - widths
    # The widest first, so that the groups that have a plane are a slice.
    order = np.argsort((32 - widths).astype(np.uint8).ravel(), kind="stable")  # a radix sort
    order = order[: np.count_nonzero(widths)]
    wide, begin = widths.ravel()[order], begins.ravel()[order]
    groups = np.zeros((widths.size, 8), np.uint32)
    depth = int(wide[0]) if len(wide) else 0
    planes = np.zeros((len(order), -(-depth // 8), 8), np.uint8)
    for plane, many in enumerate(np.searchsorted(-wide, -np.arange(depth)).tolist()):
        planes[:many, plane // 8, plane % 8] = content[begin[:many] + plane]
    parts, values = _transpose(planes), np.zeros((len(order), 8, 4), np.uint8)
    for part in range(parts.shape[1]):
        values[:, :, part] = parts[:, part]
    groups[order] = values.view("<u4")[..., 0]
    groups.reshape(len(blobs), _GROUPS * 8).take(_places(), axis=1, out=counts, mode="clip")  # else it is buffered


def _damaged() -> StoreError:
    return StoreError("an array in the database is damaged: it is no histogram")
