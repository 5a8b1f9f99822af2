"""Which steps remain of a thinned cadence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.jitter import STRETCH, due, phase, scalars_due

ASKED = Cadence()
THINNED = replace(ASKED, statistics=16, histograms=160, quantiles=160, spectra=1600, masks=400, scalars=16)
STEPS = range(1, 64 * STRETCH + 1)


def steps(kept: Cadence, kind: str, seed: int = 7, asked: Cadence = ASKED) -> list[int]:
    """The steps at which a kind is due."""
    return [step for step in STEPS if kind in due(asked, kept, seed, step)]


def test_a_cadence_that_was_not_thinned_is_kept_to_the_step() -> None:
    """What the user set is not jittered, also beside kinds that were thinned."""
    assert all(due(ASKED, ASKED, 7, step) == ASKED.due(step) for step in STEPS)
    partly = replace(ASKED, statistics=4, histograms=20, quantiles=20)
    assert steps(partly, "spectra") == steps(ASKED, "spectra")
    assert steps(partly, "masks") == steps(ASKED, "masks")


def test_a_thinned_cadence_is_as_dense_as_it_says_and_hides_nothing_periodic() -> None:
    """One step in 16; what happens every 20 or every 16 steps is met, whatever its phase."""
    kept = steps(THINNED, "statistics")
    assert len(kept) == pytest.approx(len(STEPS) / 16, rel=0.02)
    for period in (16, 20):
        assert {step % period for step in kept} == set(range(period))


def test_what_was_asked_for_together_comes_together() -> None:
    """Other kinds come in steps with statistics: gradients are gathered once."""
    with_statistics = set(steps(THINNED, "statistics"))
    for kind in ("histograms", "quantiles", "spectra", "masks"):
        assert set(steps(THINNED, kind)) <= with_statistics
    logged = {step for step in STEPS if scalars_due(ASKED, THINNED, 7, step)}
    assert logged == with_statistics


def test_thinning_further_keeps_some_of_the_steps_before() -> None:
    """Two processes whose budgets differ still meet in the steps of the rarer one."""
    assert set(steps(replace(THINNED, statistics=32), "statistics")) < set(steps(THINNED, "statistics"))


def test_the_steps_are_those_that_were_asked_for() -> None:
    """Statistics every 10 steps, thinned, come at some of every 10 steps."""
    asked = Cadence(statistics=10, histograms=0, quantiles=0, spectra=0, masks=0)
    kept = steps(replace(asked, statistics=40), "statistics", asked=asked)
    assert all(step == 1 or step % 10 == 0 for step in kept)
    assert {step % 40 for step in kept} >= {0, 10, 20, 30}


def test_the_seed_alone_chooses() -> None:
    """The same in every process, and other steps in another run."""
    assert steps(THINNED, "statistics", seed=7) != steps(THINNED, "statistics", seed=8)
    drawn = [phase(7, stretch) for stretch in range(1000)]
    assert set(drawn) == set(range(1, STRETCH + 1))
    phase.cache_clear()
    assert [phase(7, stretch) for stretch in range(1000)] == drawn
