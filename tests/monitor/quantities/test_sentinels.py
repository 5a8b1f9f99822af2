"""Sentinels of shards: merged step by step, then the extremes are taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.quantities.quantity import HostBatch, ShardPart
from root_dash.monitor.quantities.sentinels import NONE, SENTINELS, merge, on_host
from root_dash.monitor.ranks.merge import merged, with_earlier


def part(steps: list[int], gradients: np.ndarray) -> ShardPart:
    """What a process read of its shards (L, K, n) at K steps."""
    rows = gradients.shape[0]
    arrays = {
        "steps": np.tile(steps, (rows, 1)),
        "norm": np.linalg.norm(gradients, axis=2),
        "entry": np.abs(gradients).max(2),
    }
    return ShardPart(arrays, gradients.shape[2])


def test_merged_shards_have_the_sentinels_of_the_whole() -> None:
    """The largest norm of the whole is at none of the parts' own peaks."""
    gradients = np.random.default_rng(0).normal(size=(3, 40, 30))
    gradients[1, 7, 3] = math.nan
    steps = list(range(11, 51))
    parts = [part(steps, gradients[:, :, cut]) for cut in (slice(0, 5), slice(5, 6), slice(6, 30))]
    expected = part(steps, gradients)
    found, whole = (on_host(HostBatch(a, (0, 1, 2), (5, 6), 50)) for a in (merge(parts), expected.arrays))
    for name, values in whole.statistics.items():
        np.testing.assert_allclose(found.statistics[name], values, rtol=1e-12)
    assert found.statistics["nonfinite_step"][1] == 18
    assert set(found.statistics) == set(SENTINELS.statistics)


def test_a_step_that_a_part_lacks_is_left_out() -> None:
    """A process had no gradient, or its message was lost: the sum over the others says nothing."""
    ones = np.ones((1, 3, 2))
    ones[0, 1] = 5.0
    found = on_host(HostBatch(merge([part([1, 2, 3], ones), part([1, 3], ones[:, ::2])]), (0,), (2, 2), 3)).statistics
    assert (found["norm_peak"].tolist(), found["norm_peak_step"].tolist()) == ([2.0], [1.0])


def test_a_layer_that_was_never_finite_has_no_extremes() -> None:
    """It has the number of such steps, and the first."""
    found = on_host(HostBatch(part([4, 5], np.full((1, 2, 3), math.inf)).arrays, (0,), (1, 3), 5)).statistics
    assert found["nonfinite_steps"].tolist() == [2.0]
    assert found["nonfinite_step"].tolist() == [4.0]
    assert math.isnan(found["norm_peak"][0])
    none = {"steps": np.array([[1]]), "norm": np.array([[NONE]]), "entry": np.array([[NONE]])}
    assert all(np.isnan(values).all() for values in on_host(HostBatch(none, (0,), (1, 3), 1)).statistics.values())


def test_sentinels_of_earlier_messages_go_with_the_next_frame() -> None:
    """The first process makes no frame of every step, and the others send one at every step."""

    def message(step: int, entries: int) -> LayerGroup:
        return LayerGroup(
            (2,), (2, 4), {"sentinels": part([step], np.full((1, 1, entries), float(step))).arrays}, entries
        )

    earlier = [message(1, 6), message(2, 6)]
    other = with_earlier(earlier, [message(3, 6)])
    own = LayerGroup(
        (2,), (2, 4), {"sentinels": part([1, 2, 3], np.array([[[1.0] * 2, [2.0] * 2, [3.0] * 2]])).arrays}, 2
    )
    (group,) = merged([[own], other])
    found = on_host(HostBatch(group.arrays["sentinels"], group.positions, group.shape, 3)).statistics
    assert found["norm_peak"] == pytest.approx([3 * math.sqrt(8)])
    assert found["norm_trough_step"].tolist() == [1.0]
