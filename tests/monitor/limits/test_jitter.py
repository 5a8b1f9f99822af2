"""Which steps remain of a thinned cadence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.limits.jitter import STRETCH, phase, recorded

ASKED = Cadence()
THINNED = replace(ASKED, statistics=16, histograms=160, quantiles=160, spectra=1600, masks=400, scalars=16)
STEPS = range(1, 64 * STRETCH + 1)


def steps(kept: Cadence, kind: str, seed: int = 7, asked: Cadence = ASKED) -> list[int]:
    """The steps at which a kind is due."""
    return [step for step, kinds in sorted(recorded(asked, kept, seed, STEPS).items()) if kind in kinds]


def test_a_cadence_that_was_not_thinned_is_kept_to_the_step() -> None:
    """What the user set is not jittered, also beside kinds that were thinned."""
    found = recorded(ASKED, ASKED, 7, STEPS)
    assert all(found[step] - {"scalars"} == ASKED.due(step) for step in STEPS)
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
    assert set(steps(THINNED, "scalars")) == with_statistics


@pytest.mark.parametrize("ahead", [1, 7, 64])
def test_steps_that_are_looked_up_in_parts_are_the_same(ahead: int) -> None:
    """A recorder looks up some steps at a time, from any step on."""
    few = STEPS[:600]
    parts = [recorded(ASKED, THINNED, 7, few[start : start + ahead]) for start in range(0, len(few), ahead)]
    assert {step: kinds for part in parts for step, kinds in part.items()} == recorded(ASKED, THINNED, 7, few)


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
