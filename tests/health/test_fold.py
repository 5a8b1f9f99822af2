"""The fold: known answers on synthetic runs, and verdicts that do not depend on how the frames were fed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from root_dash.health import RULES, Changes, Health, Verdict, from_json, replay, to_json
from root_dash.records import Frame, Layer
from tests.health.synthetic import COLUMN, layers, run, set_rate

ONSET = 150
SICK = 3


def warnings(frames: list[Frame], watched: tuple[Layer, ...] | None = None) -> list[Verdict]:
    """Return the verdicts of warning or worse that nothing else explains."""
    return [one for one in replay(watched or layers(), frames) if one.severity != "note" and one.under is None]


def multiply(name: str, factor: float, layer: int = SICK, until: int = 10**9):  # type: ignore[no-untyped-def]
    """Return a change that multiplies one statistic of one layer from `ONSET` on."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if ONSET <= step < until:
            numbers[layer, COLUMN[name]] *= factor
            if name == "grad_norm":  # the whole gradient changes
                numbers[layer, COLUMN["grad_abs_max"]] *= factor

    return sicken


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.05, 0.15, 0.5])
def test_a_healthy_run_has_no_verdict(seed: int, noise: float) -> None:
    """Noise of any size, a falling gradient and a falling loss are no sickness."""
    assert replay(layers(), run(layers(), 500, seed=seed, noise=noise)) == []


@pytest.mark.parametrize(
    ("statistic", "factor", "rule"),
    [
        ("grad_norm", 30.0, "gradient-explosion"),
        ("grad_norm", 1 / 30.0, "gradient-collapse"),
        ("grad_abs_max", 8.0, "outlier-entries"),
        ("grad_kurtosis", 60.0, "heavy-tails"),
        ("outlier_energy", 9.9, "outlier-energy"),
        ("update_norm", 20.0, "update-jump"),
        ("update_norm", 1 / 20.0, "update-collapse"),
    ],
)
def test_a_shift_of_one_layer_is_named_with_its_step(statistic: str, factor: float, rule: str) -> None:
    """Layer, rule, first step and the baseline in the statistic's own unit."""
    frames = run(layers(), 300, multiply(statistic, factor))
    first = warnings(frames)[0]
    assert (first.layer, first.rule, first.since) == (SICK, rule, ONSET)
    measured = first.evidence[statistic]
    assert measured.baseline is not None
    assert measured.value / measured.baseline == pytest.approx(factor, rel=1.0)
    assert "blocks.3.weight" in first.text
    assert "7 of 7 other layers are as usual" in first.text


def test_a_verdict_ends_when_the_fault_does() -> None:
    """`until` is the last sick step, within the few samples that smoothing takes."""
    (first,) = warnings(run(layers(), 300, multiply("grad_norm", 30.0, until=200)))
    assert first.until is not None
    assert 199 <= first.until <= 202


def test_one_nan_is_named_with_layer_and_step() -> None:
    """One sample is enough, and the layer alone is named."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step == ONSET:
            numbers[SICK, COLUMN["grad_nan"]] = 1

    (first,) = replay(layers(), run(layers(), 200, sicken))
    assert (first.layer, first.rule, first.severity) == (SICK, "non-finite-gradient", "critical")
    assert (first.since, first.until) == (ONSET, ONSET)
    assert "1 NaN entry" in first.text


def test_a_nan_that_spreads_is_one_verdict_with_the_others_below() -> None:
    """The first layer in time is the origin; layers and loss that follow hang below its verdict."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step == ONSET:
            numbers[SICK, COLUMN["grad_nan"]] = 1
        if step > ONSET:
            numbers[:, COLUMN["grad_nan"]] = 7

    frames = run(layers(), 200, sicken, loss=lambda step: math.nan if step > ONSET else 2.0)
    first, *rest = replay(layers(), frames)
    assert (first.layer, first.since, first.under) == (SICK, ONSET, None)
    assert {one.layer for one in rest} == {None, *range(8)} - {SICK}
    assert {one.under for one in rest} == {first.id}


def test_within_a_step_the_backward_pass_tells_the_origin() -> None:
    """It goes from the last layer to the first: the last one that is not finite is where it began."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[: SICK + 1, COLUMN["grad_inf"]] = 2

    assert replay(layers(), run(layers(), 200, sicken))[0].layer == SICK


def test_if_all_layers_are_reached_at_once_the_origin_is_one_of_them() -> None:
    """No layer is named that could be innocent."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[:, COLUMN["grad_nan"]] = 2

    first = replay(layers(), run(layers(), 200, sicken))[0]
    assert (first.layer, first.candidates) == (None, tuple(range(8)))


def test_a_dead_layer_is_named() -> None:
    """All entries are 0, three samples in a row."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[SICK, COLUMN["grad_zero"]] = 32 * 64
            numbers[SICK, COLUMN["grad_norm"]] = 0.0

    first = warnings(run(layers(), 200, sicken))[0]
    assert (first.layer, first.rule, first.since) == (SICK, "dead-layer", ONSET)


def test_an_expert_without_tokens_now_and_then_is_not_dead() -> None:
    """A layer that has been zero before may be zero for as long again."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step % 5 >= 3:
            numbers[SICK, COLUMN["grad_zero"]] = 32 * 64
            numbers[SICK, COLUMN["grad_norm"]] = 0.0

    assert not [one for one in warnings(run(layers(), 300, sicken)) if one.rule == "dead-layer"]


def test_dead_rows_are_found() -> None:
    """Half of the entries become exactly 0."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[SICK, COLUMN["grad_zero"]] = 32 * 64 // 2

    first = warnings(run(layers(), 300, sicken))[0]
    assert (first.layer, first.rule, first.since) == (SICK, "dead-rows", ONSET)
    assert first.evidence["grad_zero"].baseline == pytest.approx(0.0, abs=1e-6)


def test_a_weight_that_something_else_wrote_is_found_at_once() -> None:
    """Its norm changes by more than the updates between two samples can have changed it."""
    frames = run(layers(), 200, multiply("weight_norm", 3.0))
    first = warnings(frames)[0]
    assert (first.layer, first.rule, first.since, first.severity) == (SICK, "weight-overwritten", ONSET, "critical")
    assert tuple(first.evidence["weight_norm"]) == pytest.approx((24.0, 8.0))


def test_large_updates_explain_a_weight() -> None:
    """A weight that its own update triples is not overwritten."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        numbers[SICK, COLUMN["weight_norm"]] = 1e-3 * 1.5**step
        numbers[SICK, COLUMN["update_to_weight"]] = 0.5

    assert not [one for one in replay(layers(), run(layers(), 60, sicken)) if one.rule == "weight-overwritten"]


def test_a_loaded_checkpoint_is_one_verdict_about_the_run() -> None:
    """All weights are overwritten at the same step."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[:, COLUMN["weight_norm"]] *= 3.0

    found = replay(layers(), run(layers(), 200, sicken))
    assert [(one.layer, one.rule) for one in found] == [(None, "weight-overwritten")]


def test_an_update_beyond_what_orthogonalization_makes_is_critical() -> None:
    """Only for layers whose update is an orthogonalized matrix, whose norm is about sqrt(rank)."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        numbers[:, COLUMN["update_norm"]] = 32**0.5 * (3.0 if step >= ONSET else 1.0)

    watched = layers(algorithm="root")
    first = warnings(run(watched, 200, sicken), watched)[0]
    assert (first.layer, first.rule, first.severity) == (None, "update-too-large", "critical")
    assert first.since == ONSET
    assert not [one for one in replay(layers(), run(layers(), 200, sicken)) if one.rule == "update-too-large"]


def test_a_frozen_layer_is_a_note() -> None:
    """A layer without a gradient is named; it may be meant."""
    frames = [
        replace(frame, layers=np.delete(frame.layers, SICK), statistics=np.delete(frame.statistics, SICK, 0))
        if frame.step >= ONSET
        else frame
        for frame in run(layers(), 200)
    ]
    (first,) = replay(layers(), frames)
    assert (first.layer, first.rule, first.severity, first.since) == (SICK, "no-gradient", "note", ONSET)


@pytest.mark.parametrize("low", [0.003, 0.01])
def test_a_spike_of_the_learning_rate_below_its_highest_is_no_restart(low: float) -> None:
    """Thirty times as high for three steps, where the schedule is low, and back in one step."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        spike = 30.0 if ONSET <= step < ONSET + 3 else 1.0
        set_rate(numbers, (1e-2 if step < ONSET - 40 else 1e-2 * low) * spike)

    (first,) = replay(layers(), run(layers(), 300, sicken))
    assert (first.layer, first.rule, first.since, first.until) == (None, "learning-rate-jump", ONSET, ONSET + 2)


def test_a_jump_of_the_learning_rate_is_one_verdict_about_the_run() -> None:
    """It is known from what the updates were scaled by, at once, and layers that change with it hang below."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if ONSET <= step < ONSET + 3:
            set_rate(numbers, 3e-2)
        if step > ONSET:
            numbers[SICK:, COLUMN["grad_norm"]] *= 50.0

    frames = run(layers(), 250, sicken)
    first, *rest = replay(layers(), frames)
    assert (first.layer, first.rule, first.since, first.until) == (None, "learning-rate-jump", ONSET, ONSET + 2)
    assert tuple(first.evidence["lr"]) == pytest.approx((3e-2, 1e-3), rel=1e-3)
    assert rest
    assert all(one.under == first.id for one in rest)


def test_a_schedule_is_no_sickness() -> None:
    """Warm-up, cosine and restarts to the highest rate so far."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        warm = min(1.0, step / 50)
        set_rate(numbers, 1e-2 * warm * (0.01 + 0.5 * (1 + math.cos(math.pi * (step % 100) / 100))))

    assert replay(layers(), run(layers(), 500, sicken)) == []


def test_a_loss_spike_names_no_layer_and_says_what_it_is_not() -> None:
    """Neither the learning rate nor a layer changed: a batch is the likeliest cause."""
    frames = run(layers(), 250, loss=lambda step: 6.0 if ONSET <= step < ONSET + 6 else 2.0 + 0.05 * (step % 3))
    (first,) = replay(layers(), frames)
    assert (first.layer, first.rule, first.since) == (None, "loss-spike", ONSET)
    assert "the learning rate did not jump" in first.text
    assert "batch" in first.text


def test_a_spike_that_passes_the_first_loss_is_a_divergence() -> None:
    """The verdict is the same, and becomes critical."""
    health, changes = Health(layers()), list[Changes]()
    for frame in run(layers(), 250, loss=lambda step: 2.0 if step < ONSET else 2.0 * 1.05 ** (step - ONSET)):
        changes.append(health.update(frame))
    changed = [one for change in changes for one in change.changed]
    assert [(one.rule, one.severity) for one in changed] == [("loss-spike", "critical")]
    assert changed[0].id in [one.id for change in changes for one in change.begun]


def test_slow_drift_is_found_in_its_layer() -> None:
    """Two percent at every step, against the other layers."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[SICK, COLUMN["grad_norm"]] *= 1.02 ** (step - ONSET)

    first = replay(layers(), run(layers(), 350, sicken))[0]
    assert (first.layer, first.rule, first.severity) == (SICK, "slow-drift", "note")


def test_many_layers_at_once_are_one_verdict() -> None:
    """If three of eight layers leave their ranges in one step, none of them is blamed."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= ONSET:
            numbers[:3, COLUMN["grad_kurtosis"]] *= 100.0

    first, *rest = replay(layers(), run(layers(), 300, sicken))
    assert (first.layer, first.rule, first.since) == (None, "many-layers", ONSET)
    assert {one.layer for one in rest} == {0, 1, 2}
    assert {(one.under, one.severity) for one in rest} == {(first.id, "note")}


def test_lost_frames_are_noted() -> None:
    """One verdict that begins and ends at once."""
    frames = run(layers(), 50)
    frames[20] = replace(frames[20], lost=4)
    (first,) = replay(layers(), frames)
    assert (first.rule, first.severity, first.since, first.until) == ("frames-lost", "note", 21, 21)


def test_each_layer_has_a_score_and_its_rule() -> None:
    """The score is above 1 exactly while the layer is beyond a bound."""
    health = Health(layers())
    for frame in run(layers(), ONSET + 10, multiply("grad_norm", 30.0)):
        health.update(frame)
    assert health.scores[SICK] > 1.0
    assert RULES[health.worst_rules[SICK]] == "gradient-explosion"
    assert (np.delete(health.scores, SICK) < 1.0).all()


def everything(step: int, numbers: NDArray[np.float64]) -> None:
    """Several faults, one after the other, in several layers."""
    if 60 <= step < 75:
        numbers[1, COLUMN["grad_norm"]] *= 40.0
    if step == 90:
        numbers[2, COLUMN["grad_nan"]] = 3
    if 110 <= step < 113:
        set_rate(numbers, 5e-2)
    if step >= 130:
        numbers[:3, COLUMN["grad_kurtosis"]] *= 80.0
    if step >= 150:
        numbers[6, COLUMN["weight_norm"]] *= 5.0


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 170), thin=st.sampled_from([1, 2, 3]), more=st.integers(0, 170))
def test_a_fold_that_is_cut_anywhere_gives_the_same_verdicts(cut: int, thin: int, more: int) -> None:
    """Saved and continued at any two frames, at any cadence, all changes and the state itself are equal."""
    watched = layers()
    frames = run(watched, 170, everything)[::thin]
    whole, parts = Health(watched), Health(watched)
    for index, frame in enumerate(frames):
        if index in (cut, more):
            parts = Health.from_state(watched, parts.state())
        assert parts.update(frame) == whole.update(frame)
    assert parts.open == whole.open
    assert parts.state() == whole.state()


def test_the_state_does_not_grow_with_the_steps() -> None:
    """After a thousand frames it is as large as after a hundred."""
    health, sizes = Health(layers()), []
    for frame in run(layers(), 1000):
        health.update(frame)
        if frame.step in (100, 1000):
            sizes.append(len(health.state()))
    assert sizes[1] <= sizes[0] + 200


def test_layers_that_come_later_are_judged_from_then_on() -> None:
    """Their baselines begin with their first sample; the old ones go on as before."""
    watched = layers(10)
    frames = run(watched, 400, multiply("grad_norm", 30.0, layer=9))
    health, begun = Health(watched[:8]), list[Verdict]()
    for frame in frames:
        if frame.step < 40:
            begun += health.update(replace(frame, layers=frame.layers[:8], statistics=frame.statistics[:8])).begun
            continue
        if frame.step == 40:
            health.extend(watched[8:])
        begun += health.update(frame).begun
    assert [(one.layer, one.rule) for one in begun if one.under is None] == [(9, "gradient-explosion")]


@pytest.mark.parametrize("state", [b"", b"no archive", Health(layers(3)).state()])
def test_a_state_that_is_none_is_refused(state: bytes) -> None:
    """What is no archive, or one of other layers, is named."""
    with pytest.raises(ValueError, match="state must be"):
        Health.from_state(layers(), state)


def test_layers_out_of_order_and_unknown_layers_are_refused() -> None:
    """Positions count from 0, and a frame names known layers only."""
    with pytest.raises(ValueError, match="in the order of their positions"):
        Health(layers()[1:])
    health = Health(layers(2))
    with pytest.raises(ValueError, match="must be below 2"):
        health.update(run(layers(3), 1)[0])


def test_a_frame_of_scalars_alone_changes_nothing_but_the_loss() -> None:
    """Numbers that are logged apart come in frames of their own."""
    frames = run(layers(), 200, multiply("grad_norm", 30.0))
    split: list[Frame] = []
    for frame in frames:
        split += [replace(frame, scalars={}), Frame(frame.seq, frame.step, frame.time, scalars=frame.scalars)]
    apart, together = ([(one.layer, one.rule, one.since) for one in warnings(f)] for f in (split, frames))
    assert apart == together


def test_verdicts_survive_json() -> None:
    """Also those with numbers that JSON lacks."""
    frames = run(layers(), 170, everything, loss=lambda step: math.inf if step == 90 else 2.0)
    for one in replay(layers(), frames):
        assert str(from_json(to_json(one))) == str(one)
