"""Histograms to BLOBs and back: the eight counts of each octave are bit planes, as many as the largest count needs.

The counts of a gradient fall by half from octave to octave. So one bit width for the four bins of an octave and for
their four mirror images wastes little: 65,536 entries of Student's t take 144 bytes, while zstd takes 346.

A BLOB begins with four bytes: the form (1: widths of 4 bits, 2: widths of 8 bits), the first octave held, the number of
octaves, and the width of the group of the two outermost bins and the middle bin. Then come the widths of the octaves,
and then the planes of that group and of each octave, from the lowest bit on, one byte for each plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from root_dash.exceptions import StoreError
from root_dash.records import HISTOGRAM_BINS_PER_OCTAVE, HISTOGRAM_OCTAVES, CountArray

_OCTAVES = HISTOGRAM_OCTAVES[1] - HISTOGRAM_OCTAVES[0]
_BINS = 2 * _OCTAVES * HISTOGRAM_BINS_PER_OCTAVE + 3
_GROUPS = _OCTAVES + 1
_HEADER = 4
_UNPACKED_TOGETHER = 500  # histograms whose planes and groups stay in a core's cache


@cache
def _bins() -> NDArray[np.intp]:
    """Return the bins of each group, (_GROUPS, 8). An unused place is `_BINS`."""
    bins = np.full((_GROUPS, 8), _BINS, np.intp)
    middle = _BINS // 2
    bins[0, :3] = 0, middle, _BINS - 1
    offsets = 1 + np.arange(_OCTAVES * HISTOGRAM_BINS_PER_OCTAVE).reshape(_OCTAVES, HISTOGRAM_BINS_PER_OCTAVE)
    bins[1:, :4] = middle + offsets
    bins[1:, 4:] = middle - offsets
    return bins


@cache
def _places() -> NDArray[np.intp]:
    """Return the place of each bin in the flattened groups."""
    places = np.empty(_BINS + 1, np.intp)
    places[_bins().ravel()] = np.arange(_GROUPS * 8)
    return places[:_BINS]


def _transpose(groups: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transpose each 8 x 8 matrix of bits, (n, 8) bytes: eight bytes become their eight planes, and back."""
    words = np.ascontiguousarray(groups).view("<u8")[..., 0]
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        moved = (words ^ (words >> np.uint64(shift))) & np.uint64(mask)
        words = words ^ moved ^ (moved << np.uint64(shift))
    return words[..., None].view(np.uint8)


def pack(counts: CountArray) -> list[bytes]:
    """Return the BLOB of each row of counts, (n, 515)."""
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
    """Return the counts of each BLOB, (n, 515).

    Raises:
        StoreError: a BLOB is not a histogram.
    """
    if not all(isinstance(blob, bytes) and len(blob) >= _HEADER for blob in blobs):
        raise _damaged()
    counts = np.empty((len(blobs), _BINS), np.uint32)
    for start in range(0, len(blobs), _UNPACKED_TOGETHER):
        _unpack(blobs[start : start + _UNPACKED_TOGETHER], counts[start : start + _UNPACKED_TOGETHER])
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
    # The widest groups come first, so that the groups with a plane are a slice.
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
    # Without a mode NumPy buffers the output.
    groups.reshape(len(blobs), _GROUPS * 8).take(_places(), axis=1, out=counts, mode="clip")


def _damaged() -> StoreError:
    return StoreError("an array in the database is damaged: it is not a histogram")
