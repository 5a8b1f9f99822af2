"""Which kinds are due at which steps."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.monitor.limits.cadence import Cadence


@given(st.integers(0, 50), st.integers(1, 10**6))
def test_a_kind_is_due_at_the_first_step_and_at_multiples_of_its_interval(interval: int, step: int) -> None:
    """A kind whose interval is 0 is never due."""
    due = Cadence(statistics=1, histograms=interval, quantiles=1, spectra=1, masks=1).due(step)
    assert ("histograms" in due) == (interval > 0 and (step == 1 or step % interval == 0))
    assert "statistics" in due


@pytest.mark.parametrize("kind", list(asdict(Cadence())))
@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)])
def test_what_is_no_interval_is_refused(kind: str, value: object, error: type[Exception]) -> None:
    """The message names the kind and the value."""
    with pytest.raises(error, match=rf"cadence.{kind} must be .* got {value}"):
        Cadence(**{kind: value})  # type: ignore[arg-type]
