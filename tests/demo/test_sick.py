"""The sick-run zoo: each fault does what it says, in its layer, from its step on, and leaves the rest alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from root_dash.demo.sick import FAULTS, LEARNING_RATE_FACTOR, default_layer, make_sick
from root_dash.exceptions import RootDashError
from root_dash.health import Health, Verdict
from root_dash.monitor.layers import watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from root_dash.optim.root import ROOT
from root_dash.records import Frame, Layer

ONSET = 5
SICK = "4.weight"


def model() -> nn.Sequential:
    """Return a small network whose middle matrix is `SICK`."""
    torch.manual_seed(0)
    sizes = [12, 24, 24, 24, 24, 6]
    parts: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        parts += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


class Looker:
    """Keeps what the optimizers saw of each step: gradients, learning rates, and the weights after it."""

    def __init__(self, network: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self._network = network
        optimizers[0].register_step_pre_hook(lambda *_: self._before(optimizers[0]))
        optimizers[-1].register_step_post_hook(lambda *_: self._after())

    def _before(self, optimizer: Optimizer) -> None:
        named = self._network.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def _after(self) -> None:
        self.weights.append({name: p.detach().clone() for name, p in self._network.named_parameters()})


def train(fault: str | None, steps: int = 12, optimizer: str = "adamw") -> Looker:
    """Train a few steps, sick from `ONSET` on."""
    network = model()
    optimizers: list[Optimizer] = [
        ROOT(ROOT.param_groups(network), lr=1e-2) if optimizer == "root" else AdamW(network.parameters(), lr=1e-2)
    ]
    if fault is None:
        looker = Looker(network, optimizers)
        _steps(network, optimizers, steps)
        return looker
    with make_sick(fault, network, optimizers, onset=ONSET, layer=SICK):
        looker = Looker(network, optimizers)
        _steps(network, optimizers, steps)
    return looker


def _steps(network: nn.Module, optimizers: Sequence[Optimizer], steps: int, recorder: Any = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(32, 12, generator=generator)
        loss = functional.cross_entropy(network(inputs), inputs[:, :6].argmax(-1))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad()
        if recorder is not None:
            recorder.log(loss=loss.detach())


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_different_before_the_onset(fault: str) -> None:
    """Weights are those of the healthy twin, to the bit, until the step before."""
    optimizer = "root" if fault == "paper-seven" else "adamw"
    healthy, sick = train(None, ONSET - 1, optimizer), train(fault, ONSET - 1, optimizer)
    for name, weight in healthy.weights[-1].items():
        torch.testing.assert_close(sick.weights[-1][name], weight, rtol=0, atol=0)


IN_THE_WEIGHTS = {"bit-flip", "reset", "bf16-weights"}
"""Faults in a weight: they change every gradient."""


@pytest.mark.parametrize(
    "fault", [name for name, fault in FAULTS.items() if not fault.whole_run and name not in IN_THE_WEIGHTS]
)
def test_at_the_onset_only_the_sick_layer_is_touched(fault: str) -> None:
    """All other layers have the healthy twin's gradients."""
    healthy, sick = train(None), train(fault)
    for name, gradient in healthy.gradients[ONSET - 1].items():
        if name != SICK:
            torch.testing.assert_close(sick.gradients[ONSET - 1][name], gradient, rtol=0, atol=0)
    if fault == "frozen":
        assert SICK not in sick.gradients[ONSET - 1]
    else:
        assert not torch.equal(sick.gradients[ONSET - 1][SICK], healthy.gradients[ONSET - 1][SICK])


def test_one_nan_leaves_no_trace() -> None:
    """One entry for one step; the layer is skipped, and everything is finite afterwards."""
    looker = train("one-nan")
    counts = [int(gradients[SICK].isnan().sum()) for gradients in looker.gradients]
    assert counts == [0] * (ONSET - 1) + [1] + [0] * (12 - ONSET)
    torch.testing.assert_close(looker.weights[ONSET - 1][SICK], looker.weights[ONSET - 2][SICK], rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in looker.weights[-1].values())


def test_a_spreading_nan_reaches_every_layer_a_step_later() -> None:
    """First one layer, then all."""
    looker = train("spreading-nan")
    assert [name for name, g in looker.gradients[ONSET - 1].items() if g.isnan().any()] == [SICK]
    assert all(gradient.isnan().any() for gradient in looker.gradients[ONSET].values())


def test_a_rate_spike_lasts_three_steps_and_is_undone() -> None:
    """The loop's own rate comes back, and each spiked step has the same rate."""
    high = [rate / 1e-2 for rate in train("lr-spike").rates]
    expected = [1.0] * (ONSET - 1) + [LEARNING_RATE_FACTOR] * 3 + [1.0] * (12 - ONSET - 2)
    assert high == pytest.approx(expected)


def test_a_flipped_bit_changes_one_entry() -> None:
    """Of the weight, before the forward pass of its step."""
    healthy, sick = train(None, ONSET), train("bit-flip", ONSET)
    different = (sick.weights[-1][SICK] - healthy.weights[-1][SICK]).abs() > 1.0
    assert int(different.sum()) == 1


@pytest.mark.parametrize("fault", ["bit-flip", "reset"])
def test_a_weight_is_overwritten_once_in_a_step_of_several_forward_passes(fault: str) -> None:
    """Contrasted pairs and accumulated gradients run the model more than once before the optimizer steps."""
    network, seen = model(), []
    weight = network.get_parameter(SICK)
    with make_sick(fault, network, [AdamW(network.parameters())], onset=1, layer=SICK):
        for _ in range(2):
            network(torch.randn(4, 12))
            seen.append(weight.detach().clone())
    assert torch.equal(*seen)


def test_the_layer_in_the_middle_falls_ill_by_default() -> None:
    """Only matrices can."""
    assert default_layer(model()) == SICK
    with pytest.raises(RootDashError, match="a matrix that is trained"):
        default_layer(nn.LayerNorm(4))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("flu", {}, "--sick must be one of"),
        ("dead", {"onset": 0}, "onset must be at least 1, got 0"),
        ("dead", {"layer": "7"}, "layer must be a parameter of the model, got '7'"),
        ("paper-seven", {}, "needs an optimizer that orthogonalizes"),
    ],
)
def test_what_cannot_be_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    """By the argument and its value, before anything is attached."""
    network = model()
    optimizers = [AdamW(network.parameters())]
    with pytest.raises(RootDashError, match=words), make_sick(name, network, optimizers, **({"onset": 3} | changes)):
        pass
    assert not network._forward_pre_hooks


class Doctor:
    """A sink that judges frames as they come."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.health = Health(layers)
        self.verdicts: list[Verdict] = []

    def append(self, frame: Frame) -> None:
        self.verdicts += self.health.update(frame).begun

    def extend(self, layers: Sequence[Layer]) -> None:
        self.health.extend(layers)

    def end(self, time: float, lost: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.heavy
@pytest.mark.parametrize(
    "fault", ["one-nan", "spreading-nan", "dead", "exploding", "outlier-rows", "reset", "lr-spike"]
)
@pytest.mark.parametrize("optimizer", ["root", "adamw"])
def test_the_first_verdict_on_a_real_training_names_the_layer(fault: str, optimizer: str) -> None:
    """Recorded by the real recorder and judged as it comes: nothing before the onset, then the sick layer."""
    network, onset = model(), 90
    optimizers: list[Optimizer] = [
        ROOT(ROOT.param_groups(network), lr=3e-3) if optimizer == "root" else AdamW(network.parameters(), lr=3e-3)
    ]
    with make_sick(fault, network, optimizers, onset=onset, layer=SICK):
        layers, positions = watched_layers(network, optimizers, "*", ())
        doctor = Doctor(layers)
        cadence = Cadence(statistics=1, histograms=0, quantiles=0, spectra=0, masks=0)
        with Recorder(
            optimizers, positions, lambda: doctor, cadence=cadence, outlier_quantile=0.9, max_overhead=math.inf
        ) as recorder:
            _steps(network, optimizers, onset + 25, recorder)
    first = doctor.verdicts[0]
    expected = None if FAULTS[fault].whole_run else SICK
    assert (None if first.layer is None else doctor.layers[first.layer].name) == expected
    assert onset <= first.since <= onset + 4
