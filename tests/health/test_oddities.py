"""What users bring: no healthy oddity gives a warning or an exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from root_dash.health import Health, Verdict
from root_dash.records import Frame, Layer
from tests.health.synthetic import COLUMN, layers, run, set_rate

SIZE = 32 * 64


def warned(watched: tuple[Layer, ...], frames: list[Frame]) -> list[Verdict]:
    """Return the verdicts of warning or worse that begin."""
    health = Health(watched)
    return [one for frame in frames for one in health.update(frame).begun if one.severity != "note"]


def zero(numbers: NDArray[np.float64], layer: int) -> None:
    """Let a layer's gradient be 0 in all entries."""
    numbers[layer, COLUMN["grad_zero"]] = SIZE
    for name in ("grad_norm", "grad_abs_max"):
        numbers[layer, COLUMN[name]] = 0.0


def begins_at_zero(step: int, numbers: NDArray[np.float64]) -> None:
    """As the first factor of a low-rank adapter, whose second factor begins at 0."""
    if step == 1:
        for layer in range(0, 8, 2):
            zero(numbers, layer)


def first_rate_is_zero(step: int, numbers: NDArray[np.float64]) -> None:
    """A warm-up from exactly 0."""
    set_rate(numbers, 1e-3 * min(1.0, (step - 1) / 30))


def experts_rest(step: int, numbers: NDArray[np.float64]) -> None:
    """Each of eight experts gets no example in a third of the steps."""
    for layer in range(8):
        if np.random.default_rng(100 * step + layer).random() < 0.33:
            zero(numbers, layer)


def sparse_rows(step: int, numbers: NDArray[np.float64]) -> None:
    """An embedding of which a batch touches few and varying rows."""
    share = 0.9 + 0.08 * np.random.default_rng(step).random()
    numbers[0, COLUMN["grad_zero"]] = round(share * SIZE)


def parts_take_turns(step: int, numbers: NDArray[np.float64]) -> None:
    """A generator and a discriminator with gradients in every other step."""
    for layer in range(4) if step % 2 else range(4, 8):
        zero(numbers, layer)


def very_noisy(step: int, numbers: NDArray[np.float64]) -> None:
    """Policy gradients of a few episodes: norms vary by factors of ten."""
    numbers[:, COLUMN["grad_norm"]] *= np.exp(0.8 * np.random.default_rng(step).normal(size=len(numbers)))


@pytest.mark.parametrize(
    "sicken",
    [begins_at_zero, first_rate_is_zero, experts_rest, sparse_rows, parts_take_turns, very_noisy],
    ids=lambda sicken: sicken.__name__,
)
@pytest.mark.parametrize("seed", range(3))
def test_healthy_oddities_of_gradients_are_no_fault(
    sicken: Callable[[int, NDArray[np.float64]], object], seed: int
) -> None:
    """Three hundred steps without a warning."""
    assert warned(layers(), run(layers(), 300, sicken, seed=seed)) == []


LOSSES: dict[str, Callable[[int], float]] = {
    "negative": lambda step: -0.5 + 0.3 * math.sin(7 * step),
    "exactly zero": lambda step: 0.0,
    "from one to zero": lambda step: max(0.0, 1.0 - step / 100),
    "around zero": lambda step: 0.01 * math.sin(11 * step),
    "constant": lambda step: 2.0,
    "tiny": lambda step: 1e-12 * (2 + math.sin(3 * step)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_odd_losses_are_no_fault(loss: Callable[[int], float]) -> None:
    """A loss need not be positive, nor change."""
    assert warned(layers(), run(layers(), 300, loss=loss)) == []


@pytest.mark.parametrize("every", [2, 5, 10, 50])
def test_a_loss_that_is_logged_now_and_then_is_no_fault(every: int) -> None:
    """Frames between have no scalars."""
    frames = [
        frame if frame.step % every == 0 else replace(frame, scalars={}) for frame in run(layers(), 400)
    ]  # fmt: skip
    assert warned(layers(), frames) == []


def test_an_evaluation_loss_is_not_the_training_loss() -> None:
    """It may be far higher."""
    frames = [
        replace(frame, scalars={**frame.scalars, "val_loss": 9.0}) if frame.step % 50 == 0 else frame
        for frame in run(layers(), 400)
    ]
    assert warned(layers(), frames) == []


def test_a_gap_of_steps_is_no_fault() -> None:
    """A run that is resumed goes on at a later step."""
    frames = [replace(f, step=f.step + 10_000) if f.step > 150 else f for f in run(layers(), 300)]
    assert warned(layers(), frames) == []


@pytest.mark.parametrize("count", [1, 2, 3, 1500])
def test_any_number_of_layers_can_be_judged(count: int) -> None:
    """From one layer to fifteen hundred."""
    watched = layers(count)
    assert warned(watched, run(watched, 60 if count > 100 else 300)) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sick_layer_is_found_among_few(count: int) -> None:
    """A layer that has no peers is compared with its own past alone."""

    def sicken(step: int, numbers: NDArray[np.float64]) -> None:
        if step >= 150:
            numbers[0, COLUMN["grad_norm"]] *= 30.0
            numbers[0, COLUMN["grad_abs_max"]] *= 30.0

    watched = layers(count)
    first = warned(watched, run(watched, 200, sicken))[0]
    assert first.since == 150
    assert first.layer == 0


def test_layers_that_all_are_frozen_leave_no_frame_to_judge() -> None:
    """Frames without any layer are taken."""
    frames = [
        replace(f, layers=f.layers[:0], statistics=f.statistics[:0]) if 100 <= f.step < 150 else f
        for f in run(layers(), 200)
    ]
    assert warned(layers(), frames) == []
