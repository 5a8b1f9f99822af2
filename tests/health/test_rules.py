"""Rules on numbers that a recorder keeps for them: rounding of updates, steps between frames, and bad batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from root_dash.health import replay
from root_dash.health.absolute import AbsoluteRules
from root_dash.health.findings import Finding
from root_dash.health.nonfinite import NonFinite
from root_dash.health.signals import Columns, columns_of
from root_dash.records import Layer, statistic_names
from tests.health.synthetic import COLUMN, layers, run

COUNT = 8
ALL = np.ones(COUNT, bool)


def columns(**changed: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return statistics of eight healthy layers, some replaced."""
    empty = np.full((COUNT, len(statistic_names("statistics"))), 0.0)
    usual = columns_of(np.arange(COUNT), empty, COUNT)
    ones = {name: np.ones(COUNT) for name in ("grad_norm", "update_norm", "weight_norm")}
    return {**usual, **ones, "update_to_weight": np.full(COUNT, 1e-3), **changed}


def rounding(steps: int, table: Columns) -> list[Finding]:
    """Return what the rule of rounding finds within so many equal samples."""
    rules = AbsoluteRules(layers(COUNT))
    found = [one for step in range(1, steps + 1) for one in rules.judge(step, ALL, ALL, table)]
    return [one for one in found if isinstance(one, Finding) and one.rule == "updates-rounded-away"]


def test_updates_that_are_rounded_away_are_found_in_their_layer() -> None:
    """Three samples in a row with a tenth of the entries changed, although the update is no smaller than others'."""
    share = np.where(np.arange(COUNT) == 3, 0.1, 1.0)
    (one,) = rounding(5, columns(changed_share=share))
    assert (one.layer, one.since, one.severity) == (3, 1, "warning")
    assert one.evidence["changed_share"] == (0.1, 1.0)


def test_updates_that_are_rounded_away_whole_are_found_by_the_usual_step() -> None:
    """Nothing of the update is left to be measured, at a learning rate that used to move the weight."""
    rules, found = AbsoluteRules(layers(COUNT)), []
    for step in range(1, 31):
        lost = (np.arange(COUNT) == 5) & (step > 20)
        table = columns(
            scaled_lr=np.full(COUNT, 1e-2 / step),
            changed_share=np.where(lost, 0.0, 1.0),
            update_to_weight=np.where(lost, 0.0, 1e-1 / step),
        )
        found += list(rules.judge(step, ALL, ALL, table))
    (one,) = (one for one in found if isinstance(one, Finding))
    assert (one.layer, one.rule, one.since) == (5, "updates-rounded-away", 21)


@pytest.mark.parametrize(
    "healthy",
    [
        {"changed_share": np.full(COUNT, 0.05), "grad_zero": np.full(COUNT, 0.95 * 32 * 64)},  # a sparse embedding
        {"changed_share": np.zeros(COUNT), "update_to_weight": np.zeros(COUNT)},  # a learning rate of 0
        {"changed_share": np.full(COUNT, np.nan)},  # an older database
    ],
    ids=["sparse", "no rate", "not recorded"],
)
def test_entries_that_need_not_change_are_no_fault(healthy: dict[str, NDArray[np.float64]]) -> None:
    """Only entries with a gradient, in steps with a learning rate, have to change."""
    assert rounding(10, columns(**healthy)) == []


def test_a_row_of_sentinels_alone_is_no_fault() -> None:
    """The budget may leave nothing but sentinels: weights and gradients are not recorded then, all is finite."""
    unmeasured = dict.fromkeys(columns(), np.full(COUNT, np.nan))
    sentinels = {"nonfinite_steps": np.zeros(COUNT), "norm_peak": np.ones(COUNT)}
    assert list(NonFinite().judge(40, ALL, unmeasured | sentinels, 2.0)) == []


def test_what_was_not_finite_between_frames_is_dated_and_placed_by_its_step() -> None:
    """The layer that was first in time is the origin, also if all is finite again at the frame."""
    steps = np.where(np.isin(np.arange(COUNT), (2, 5)), 1.0, 0.0)
    when = np.where(steps > 0, np.where(np.arange(COUNT) == 5, 37.0, 38.0), np.nan)
    found = list(NonFinite().judge(40, ALL, columns(nonfinite_steps=steps, nonfinite_step=when), 2.0))
    first, second = (one for one in found if isinstance(one, Finding))
    assert (first.layer, first.since, first.severity) == (5, 37, "critical")
    assert (second.layer, second.since, second.severity) == (2, 38, "note")


def test_batches_whose_loss_and_gradients_rise_a_little_are_found_together() -> None:
    """Neither leaves its own range by much; four samples in a row above all before are no chance."""
    rng = np.random.default_rng(1)
    losses = 2.0 * np.exp(0.1 * rng.normal(size=300))

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if 150 <= step < 155:
            numbers[:, COLUMN["grad_norm"]] *= 1.8

    def loss(step: int) -> float:
        return float(losses[step] * (1.35 if 150 <= step < 155 else 1.0))

    (first,) = replay(layers(), run(layers(), 250, sicken, loss=loss))
    assert (first.layer, first.rule, first.since, first.severity) == (None, "bad-batches", 150, "warning")
    assert first.until is not None
    assert first.until < 160


def test_an_expert_that_gets_no_example_is_a_note() -> None:
    """Its sisters are zero now and then, so that it is the routing that leaves it out."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        for layer in range(8):
            if (step + layer) % 9 == 0 or (layer == 4 and step >= 150):
                numbers[layer, COLUMN["grad_zero"]] = 32 * 64
                numbers[layer, COLUMN["grad_norm"]] = 0.0

    dead = [one for one in replay(layers(), run(layers(), 300, sicken)) if one.rule == "dead-layer"]
    assert [(one.layer, one.severity) for one in dead] == [(4, "note")]
    assert math.isclose(dead[0].since, 150, abs_tol=9)


def drifting(names: list[str], risen: set[int]) -> list[tuple[int | None, str]]:
    """Return which layers drift if the gradients of some grow by 2 % a step from step 200 on."""
    watched = [Layer(name, (32, 64), "adamw", i) for i, name in enumerate(names)]

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        for layer in risen:
            numbers[layer, COLUMN["grad_norm"]] *= 1.02 ** max(0, step - 200)

    return [(one.layer, one.rule) for one in replay(watched, run(watched, 420, sicken))]


def test_drift_is_told_from_what_all_layers_of_a_kind_do() -> None:
    """All queries rise together in healthy attention; one of them alone does not."""
    names = [f"blocks.{i}.{part}.weight" for i in range(6) for part in ("query", "value", "up", "down")]
    queries = {i for i, name in enumerate(names) if "query" in name}
    assert (8, "slow-drift") in drifting(names, {8})
    assert not [rule for _, rule in drifting(names, queries) if rule == "slow-drift"]


@pytest.mark.parametrize(("factor", "found"), [(100.0, [(3, "gradient-spike", 1597, 1600)]), (5.0, [])])
def test_a_spike_between_frames_is_a_note_if_it_is_far_above_all_before(factor: float, found: list[object]) -> None:
    """The frame itself is as usual: only the peak since the frame before tells."""
    watched = layers()

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        peak = numbers[:, COLUMN["grad_norm"]] * 1.3
        peak[3] *= factor if step == 100 else 1.0
        numbers[:, COLUMN["norm_peak"]] = peak
        numbers[:, COLUMN["norm_peak_step"]] = 16 * step - 3

    frames = [replace(frame, step=16 * frame.step) for frame in run(watched, 150, sicken)]
    verdicts = replay(watched, frames)
    assert [(one.layer, one.rule, one.since, one.until) for one in verdicts] == found
    assert {one.severity for one in verdicts} <= {"note"}


def test_momentum_that_decays_without_a_gradient_is_no_fault() -> None:
    """An expert under SGD gets no example for long: its update decays a thousandfold, and is back with its gradient."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if 60 <= step < 120:
            numbers[4, COLUMN["grad_zero"]] = 32 * 64
            numbers[4, COLUMN["grad_norm"]] = 0.0
            numbers[4, COLUMN["update_norm"]] *= 0.9 ** (step - 60)

    assert [one for one in replay(layers(), run(layers(), 200, sicken)) if one.rule.startswith("update")] == []
