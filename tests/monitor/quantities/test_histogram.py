"""Histograms against NumPy in float64, over ordinary, extreme and broken tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings

from root_dash.monitor.quantities.histogram import histogram_counts
from root_dash.records import histogram_edges
from tests.monitor.quantities.measured import ENTRIES


@given(ENTRIES)
@settings(max_examples=200)
def test_histogram_counts_every_entry_in_its_bin(entries: np.ndarray) -> None:
    """Counts equal NumPy's over the same edges, and with the NaNs and infinities sum to the tensor's size."""
    counts, nan, inf = (t.numpy() for t in histogram_counts(torch.from_numpy(entries)))
    edges = histogram_edges()
    for row, values in enumerate(entries.astype(np.float64)):
        finite = values[np.isfinite(values)]
        # Bins mirror each other about zero: closed below on the right side, closed above on the left.
        positive = np.histogram(finite[finite >= edges[258]], edges[258:])[0]
        negative = np.histogram(-finite[finite <= -edges[258]], edges[258:])[0][::-1]
        middle = len(finite) - positive.sum() - negative.sum()
        np.testing.assert_array_equal(counts[row], [*negative, middle, *positive])
        assert counts[row].sum() + nan[row] + inf[row] == len(values)
        assert (nan[row], inf[row]) == (np.isnan(values).sum(), np.isinf(values).sum())
