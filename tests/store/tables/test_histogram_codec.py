"""Histograms as bit planes: every count comes back, in few bytes, and nothing that is not one is believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.exceptions import StoreError
from root_dash.records import CountArray, histogram_edges
from root_dash.store.tables.blobs import encode
from root_dash.store.tables.histogram_codec import pack, unpack

BINS = len(histogram_edges()) - 1


def _sampled(seed: int, entries: int = 65_536) -> CountArray:
    sample = np.random.default_rng(seed).standard_t(4, entries) * 1e-3
    return np.histogram(sample, histogram_edges())[0].astype(np.uint32)


def _scattered(seed: int, held: float) -> CountArray:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2**32, BINS, dtype=np.uint32) >> rng.integers(0, 32, BINS).astype(np.uint32)
    return np.where(rng.random(BINS) < held, counts, 0).astype(np.uint32)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1)), max_size=12))
def test_counts_come_back(seeds: list[tuple[int, float]]) -> None:
    """Any counts of 32 bits, in any bins, come back exactly, in their order."""
    counts = np.array([_scattered(*seed) for seed in seeds], np.uint32).reshape(-1, BINS)
    found = unpack(pack(counts))
    assert found.dtype == np.uint32
    assert np.array_equal(found, counts)


def test_empty_and_full_histograms_come_back() -> None:
    """No entry at all, the outermost bins alone, and every bin at its limit."""
    counts = np.zeros((4, BINS), np.uint32)
    counts[1, [0, -1]] = 7
    counts[2] = 2**32 - 1
    counts[3, BINS // 2] = 1
    assert np.array_equal(unpack(pack(counts)), counts)


def test_many_histograms_come_back() -> None:
    """More of them than are unpacked at once, each as it is alone."""
    few = np.array([_sampled(seed, 200 * seed) for seed in range(9)])
    blobs = pack(few)
    assert np.array_equal(unpack(blobs * 130), np.tile(few, (130, 1)))
    assert [unpack([blob])[0].tolist() for blob in blobs] == few.tolist()


def test_a_gradients_histogram_is_small() -> None:
    """A layer of 256 x 256 with a heavy tail takes less than half of what zstd makes of it."""
    counts = np.array([_sampled(seed) for seed in range(8)])
    packed = sum(map(len, pack(counts)))
    assert packed < sum(len(encode(row, "<u4", compress=True)) for row in counts) / 2
    assert packed < 150 * len(counts)


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_junk_is_refused(junk: bytes, place: int, value: int) -> None:
    """Random bytes, and one byte of a histogram changed, are refused or read as counts: nothing else is raised."""
    blob = bytearray(pack(_sampled(1)[None])[0])
    blob[place % len(blob)] = value
    for content in (junk, bytes(blob), bytes(blob[: place % len(blob)])):
        try:
            counts = unpack([content])
        except StoreError:
            continue
        assert counts.shape == (1, BINS)


@pytest.mark.parametrize(
    "content", [b"", b"\1\0", b"\1\0\1\0\1", b"\3\0\0\0", b"\2\60\60\0", b"\2\0\1\0\41" + b"x" * 33]
)
def test_a_histogram_that_contradicts_itself_is_refused(content: bytes) -> None:
    """Too short, of another form, beyond the last octave, and wider than 32 bits."""
    with pytest.raises(StoreError, match="damaged"):
        unpack([content])
