"""How often rows, columns and entries were outliers: counted as masks are stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from root_dash.exceptions import NotRecorded, StoreError
from root_dash.records import Attempt, Frame, Layer, Run, outlying
from root_dash.store import Store
from tests.store.frames import make_frame

LAYERS = [Layer("w", (12, 20), "root", 0), Layer("v", (6, 6), "root", 1)]
SICK = (3, 7)
"""Rows of the first layer that are full of outliers at two steps of three."""


def _frame(seq: int, step: int) -> Frame:
    """Masks of both layers, of the first with two rows that are full of outliers at two steps of three."""
    rng = np.random.default_rng(step)
    frame = make_frame(seq, step, LAYERS, rng, ["masks"])
    mask, statistics = frame.masks[0]
    dense = rng.random((12, 20)) < 0.08
    dense[list(SICK)] = step % 3 != 0
    mask = dataclasses.replace(
        mask,
        row_totals=dense.sum(1).astype(np.uint32),
        col_totals=dense.sum(0).astype(np.uint32),
        packed=np.packbits(dense).tobytes(),
    )
    return dataclasses.replace(frame, masks={**frame.masks, 0: (mask, statistics)})


def _expected(steps: range) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """In how many masks each row and column holds more than twice its even share, and each entry is an outlier."""
    masks = [np.array(_frame(0, step).masks[0][0].dense(), float) for step in steps]
    rows = np.sum([mask.sum(1) / mask.sum() > 2 / 12 for mask in masks], 0)
    cols = np.sum([mask.sum(0) / mask.sum() > 2 / 20 for mask in masks], 0)
    return rows.tolist(), cols.tolist(), np.sum(masks, 0)


def _record(store: Store, steps: range) -> None:
    recording = store.begin(Run("r", "r", 0.0), LAYERS)
    for seq, step in enumerate(steps):
        recording.append(_frame(seq, step))
        recording.append(_frame(seq, step))  # again: it is stored once, and counted once
    recording.close()


def test_rows_that_were_outliers_in_more_than_half_of_the_run(place: Path | str) -> None:
    """The running counts are those of all the masks stored so far, over a resumed run too."""
    with Store.create(place) as store:
        _record(store, range(5))
        _record(store, range(5, 9))
        rows, cols, entries = _expected(range(9))
        counts = store.outlier_counts(1)
        assert (counts.recorded, counts.step) == (9, 8)
        assert counts.rows.tolist() == rows
        assert counts.cols.tolist() == cols
        assert counts.rows_beyond(0.5).tolist() == list(SICK)
        assert counts.rows_beyond(0.9).tolist() == []
        assert counts.cols_beyond(0.5).tolist() == [col for col, count in enumerate(cols) if count > 4.5]
        assert np.array_equal(store.entry_counts(1), entries)
        early = store.outlier_counts(1, step=3)
        assert (early.recorded, early.rows.tolist()) == (4, _expected(range(4))[0])
        assert store.outlier_counts(2).recorded == 9


def test_masks_of_which_only_the_map_was_kept_are_left_out_of_the_entries(place: Path | str) -> None:
    """Rows and columns are counted over all masks, entries over the exact masks only."""

    def of_map(seq: int) -> Frame:
        frame = _frame(seq, seq)
        masks = {at: (dataclasses.replace(mask, packed=b""), found) for at, (mask, found) in frame.masks.items()}
        return dataclasses.replace(frame, masks=masks)

    with Store.create(place) as store:
        recording = store.begin(Run("r", "r", 0.0), LAYERS)
        recording.append(of_map(0))
        with pytest.raises(NotRecorded, match="has no exact mask"):
            store.entry_counts(1)
        for step in range(1, 4):
            recording.append(_frame(step, step))
        recording.append(of_map(4))
        assert np.array_equal(store.entry_counts(1), _expected(range(1, 4))[2])
        assert store.outlier_counts(1).recorded == 5


def test_two_attempts_that_record_at_once_are_counted_together(place: Path | str) -> None:
    """This happens if the frames of one spool are still sent while the run goes on in another spool."""
    with Store.create(place) as store:
        both = [store.begin(Run("r", "r", 0.0), LAYERS, Attempt(uid, 0.0)) for uid in ("a" * 32, "b" * 32)]
        for step in range(8):
            both[step // 2 % 2].append(_frame(step, step))
        counts = store.outlier_counts(1)
        rows, cols, _ = _expected(range(8))
        assert (counts.recorded, counts.rows.tolist(), counts.cols.tolist()) == (8, rows, cols)


def test_a_frame_that_was_not_stored_is_not_counted(place: Path | str) -> None:
    """What fails after its masks were counted leaves the counts as they were, and counts once when it succeeds."""
    with Store.create(place) as store:
        recording = store.begin(Run("r", "r", 0.0), LAYERS)
        recording.append(_frame(0, 0))
        broken = dataclasses.replace(_frame(1, 1), layers=np.array([0]), statistics=np.zeros((1, 2), np.float32))
        with pytest.raises((ValueError, StoreError)):
            recording.append(broken)
        assert store.outlier_counts(1).recorded == 1
        recording.append(_frame(1, 1))
        assert store.outlier_counts(1).rows.tolist() == _expected(range(2))[0]


def test_without_a_mask_there_are_no_counts(place: Path | str) -> None:
    """For a layer without a recorded mask the counts raise NotRecorded."""
    with Store.create(place) as store:
        store.begin(Run("r", "r", 0.0), LAYERS).close()
        with pytest.raises(NotRecorded, match="has no mask"):
            store.outlier_counts(1)
        with pytest.raises(NotRecorded, match="has no mask"):
            store.entry_counts(1)


def test_outlying_is_twice_the_even_share() -> None:
    """Exactly twice is not more; without outliers no row is outlying; large counts do not overflow."""
    assert outlying(np.array([2, 1, 1, 0], np.uint32)).tolist() == [False] * 4
    assert outlying(np.array([3, 1, 1, 0], np.uint32)).tolist() == [True, False, False, False]
    assert not outlying(np.zeros(5, np.uint32)).any()
    assert outlying(np.array([4_000_000_000, 1, 1, 1], np.uint32)).tolist() == [True, False, False, False]
