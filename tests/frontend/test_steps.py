"""Recorded steps in stretches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.frontend.steps import stretches


@given(st.sets(st.integers(0, 500), max_size=60))
def test_stretches_hold_exactly_the_steps(steps: set[int]) -> None:
    """Whatever was recorded, each step is in one stretch, in order."""
    ordered = np.array(sorted(steps), np.int64)
    held = [step for first, last, interval in stretches(ordered) for step in range(first, last + 1, interval)]
    assert held == ordered.tolist()


@pytest.mark.parametrize("interval", [1, 10])
def test_a_long_run_is_short(interval: int) -> None:
    """The recorder takes step 1 and then every tenth: two stretches, however long the run."""
    steps = np.unique(np.append(1, np.arange(interval, 1_000_000, interval)))
    assert len(stretches(steps)) <= 2
