from __future__ import annotations

import pytest

from root_dash.coefficients.bounds import Bounds
from root_dash.coefficients.tables import MUON, PAPER, ROBUST, ROBUST_FINE


def test_the_universal_sets_keep_to_their_bounds() -> None:
    """Each universal set keeps to the aim of a fit in its arithmetic; the fine set does so in fine arithmetic alone."""
    fine, coarse = Bounds("adaptive", 5, True), Bounds("adaptive", 5, False)
    assert fine.reach(ROBUST_FINE) <= fine.aim < fine.limit
    assert coarse.reach(ROBUST) <= coarse.aim < coarse.limit
    assert fine.hold(ROBUST)
    assert not coarse.hold(ROBUST_FINE)


@pytest.mark.parametrize("fine", [True, False])
def test_one_triple_is_held_to_a_looser_limit_for_longer(fine: bool) -> None:
    """Muon's triple stays at 1.2 for any number of steps; the paper's square triple exceeds 3 in five and diverges."""
    bounds = Bounds("adanewton", 5, fine)
    assert bounds.hold((MUON,) * 5)
    assert bounds.reach((MUON,) * 5) == pytest.approx(1.2, abs=0.02)
    assert not bounds.hold((PAPER[2048, 2048],) * 5)
    assert bounds.reach((PAPER[2048, 2048],) * 5) > 1e6
