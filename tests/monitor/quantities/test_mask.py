"""Masks: packed bits and the largest entries on the device; totals, map and overlap on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from root_dash.monitor.quantities.mask import (
    LARGEST_COUNT,
    MAP_SIZE,
    jaccard,
    largest_entries,
    mask_of,
    mask_statistics,
    packed_bits,
    worst_share,
)
from tests.monitor.quantities.measured import heavy_tailed


@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (64, 64), (100, 300), (257, 65)])
def test_a_mask_keeps_every_entry_and_its_map_every_count(rows: int, cols: int) -> None:
    """The dense mask comes back, totals are its sums, and each block of the map counts its own rows and columns."""
    dense = np.random.default_rng(rows).random((rows, cols)) < 0.1
    largest = np.arange(3, dtype=np.int64) * cols + 1
    mask = mask_of(np.packbits(dense), largest, np.ones(3, np.float32), rows, cols, step=9)
    np.testing.assert_array_equal(mask.dense(), dense)
    np.testing.assert_array_equal(mask.row_totals, dense.sum(1))
    np.testing.assert_array_equal(mask.col_totals, dense.sum(0))
    np.testing.assert_array_equal(mask.largest, [[0, 1], [1, 1], [2, 1]])
    height, width = mask.pooled.shape
    assert (height, width) == (min(rows, MAP_SIZE), min(cols, MAP_SIZE))
    for i in range(height):
        for j in range(width):
            block = dense[i * rows // height : (i + 1) * rows // height, j * cols // width : (j + 1) * cols // width]
            assert mask.pooled[i, j] == block.sum()


def test_overlap_is_the_jaccard_index() -> None:
    """The overlap agrees with Python's sets; two empty masks are the same mask."""
    first, second = (np.random.default_rng(seed).random(999) < 0.2 for seed in (1, 2))
    expected = (first & second).sum() / (first | second).sum()
    assert jaccard(np.packbits(first), np.packbits(second)) == pytest.approx(expected)
    empty = np.packbits(np.zeros(9, bool))
    assert jaccard(empty, empty) == 1.0


def test_worst_share_finds_the_row_that_holds_them() -> None:
    """One row of two hundred with half of all outliers; none at all is a share of 0."""
    totals = np.ones(200, np.uint32)
    totals[17] = 199
    assert worst_share(totals) == pytest.approx(200 / 398)  # the worst two of two hundred
    assert worst_share(np.zeros(5, np.uint32)) == 0.0


def test_the_first_mask_has_no_overlap() -> None:
    """The overlap of the first mask is not recorded, rather than 0."""
    packed = np.packbits(np.eye(16, dtype=bool))
    mask = mask_of(packed, np.zeros(1, np.int64), np.ones(1, np.float32), 16, 16, step=1)
    assert np.isnan(mask_statistics(mask, packed, None)["mask_overlap"])
    assert mask_statistics(mask, packed, packed)["mask_overlap"] == 1.0


@given(st.integers(1, 70))
def test_packed_bits_are_those_of_numpy(entries: int) -> None:
    """Any number of entries, the first in the highest bit."""
    mask = np.random.default_rng(entries).random((2, entries)) < 0.4
    np.testing.assert_array_equal(packed_bits(torch.from_numpy(mask)).numpy(), np.packbits(mask, axis=-1))


def test_largest_entries_are_the_largest() -> None:
    """Indices and signed values of the entries of greatest magnitude."""
    momentum = heavy_tailed(2, 400)
    indices, values = largest_entries(momentum)
    for row in range(2):
        expected = np.argsort(-np.abs(momentum[row].numpy()))[:LARGEST_COUNT]
        np.testing.assert_array_equal(indices[row].numpy(), expected)
        np.testing.assert_array_equal(values[row].numpy(), momentum[row].numpy()[expected])
