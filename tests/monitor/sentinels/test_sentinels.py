"""Sentinels: what is kept of every step, whatever is thinned."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import root_dash
from root_dash import Cadence
from root_dash.monitor.optimizers.registry import adapter_for
from root_dash.monitor.quantities.sentinels import NONE, SENTINELS
from root_dash.monitor.sentinels.gradients import read
from root_dash.monitor.sentinels.rows import GradientReader, Sentinels, groups_of_rows
from root_dash.optim.root import ROOT
from root_dash.store.store import Store
from tests.monitor.training import Model, adamw, layers_of, muon, plain_sgd, root, step, train

NEVER = Cadence(statistics=10**6, histograms=0, quantiles=0, spectra=0, masks=0)
"""No frame but the first and the last has statistics."""


def column(store: Store, layer: str, name: str) -> dict[int, float]:
    """A statistic of a layer by step."""
    history = store.history(layers_of(store)[layer].id, name)
    return dict(zip(history.steps.tolist(), history.values.tolist(), strict=True))


@pytest.mark.parametrize("build", [root, muon, adamw, plain_sgd])
def test_sentinels_are_the_extremes_of_the_gradients_since_the_row_before(
    build: Callable[[nn.Module], list[Optimizer]], tmp_path: Path
) -> None:
    """Of every step, thinned or not: recomputed here from the gradients of each step."""
    model = Model()
    optimizers = build(model)
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def witness(optimizer: Optimizer, *_: object) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in own and parameter.grad is not None:
                gradient = parameter.grad.double()
                seen[name].append((float(gradient.norm()), float(gradient.abs().max())))

    cadence = Cadence(statistics=7, histograms=0, quantiles=0, spectra=0, masks=0)
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(witness)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=cadence, max_overhead=math.inf) as run:
        train(model, optimizers, 23)
    assert (run.lost, run.failures) == (0, 0)
    store = root_dash.open(tmp_path / "runs.db")
    for name, values in seen.items():
        norms, entries = np.array(values).T
        ends = sorted(column(store, name, "norm_peak"))
        assert ends == [1, 7, 14, 21, 23]
        for begin, end in zip([0, *ends], ends, strict=False):
            steps = slice(begin, end)
            expected = {
                "nonfinite_steps": 0.0,
                "norm_peak": norms[steps].max(),
                "norm_peak_step": begin + 1 + norms[steps].argmax(),
                "norm_trough": norms[steps].min(),
                "norm_trough_step": begin + 1 + norms[steps].argmin(),
                "entry_peak": entries[steps].max(),
                "entry_peak_step": begin + 1 + entries[steps].argmax(),
            }
            found = {key: column(store, name, key)[end] for key in expected}
            assert found == pytest.approx(expected, rel=1e-6), (name, end)
            assert math.isnan(column(store, name, "nonfinite_step")[end])


@pytest.mark.parametrize("broken_at", [1, 2, 5, 17, 30, 31])
def test_one_entry_that_is_nan_is_recorded_with_its_layer_and_step(broken_at: int, tmp_path: Path) -> None:
    """Whatever the budget left out around it."""
    model = Model()
    optimizers = adamw(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", max_overhead=1e-9) as run:
        for index in range(1, 32):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
            if index == broken_at:
                assert model.up.weight.grad is not None
                model.up.weight.grad[3, 5] = math.nan
            optimizers[0].step()
    assert (run.lost, run.failures) == (0, 0)
    store = root_dash.open(tmp_path / "runs.db")
    for name in layers_of(store):
        first = [value for value in column(store, name, "nonfinite_step").values() if not math.isnan(value)]
        assert first == ([broken_at] if name == "up.weight" else [])
        assert sum(column(store, name, "nonfinite_steps").values()) == len(first)


def test_a_firing_records_every_step_for_a_while_and_says_so(tmp_path: Path) -> None:
    """From the very step on, in which the gradient is measured while it is not finite."""
    model = Model()
    optimizers = adamw(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=NEVER) as run:
        for index in range(1, 81):
            step(model, [], index)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            if index == 20:
                assert model.up.weight.grad is not None
                model.up.weight.grad[3, 5] = math.inf
            optimizers[0].step()
    assert run.failures == 0
    store = root_dash.open(tmp_path / "runs.db")
    (recorded,) = store.runs()
    (event,) = [event for event in store.events(recorded.id) if event.kind == "flight"]
    assert event.text.startswith("up.weight has a gradient that is not finite at step 20: steps 20 to 51 were all")
    infinite = {at: count for at, count in column(store, "up.weight", "grad_inf").items() if not math.isnan(count)}
    assert [at for at in infinite if 2 <= at < 80] == list(range(20, 52))
    assert infinite[20] == 1


def test_what_is_held_is_stored_when_the_loop_raises(tmp_path: Path) -> None:
    """As a last frame, up to the last step."""
    model = Model()
    optimizers = adamw(model)

    def fail(**_: Tensor) -> None:
        if run.step == 9:
            raise RuntimeError("diverged")

    with (
        pytest.raises(RuntimeError, match="diverged"),
        root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=NEVER) as run,
    ):
        train(model, optimizers, 12, fail)
    assert sorted(column(root_dash.open(tmp_path / "runs.db"), "up.weight", "norm_peak")) == [1, 9]


def test_what_is_held_is_stored_when_a_signal_ends_the_process(tmp_path: Path) -> None:
    """SIGTERM, which a scheduler sends."""
    program = f"""
import os, signal, time, root_dash
from tests.monitor.training import Model, adamw, train
from tests.monitor.sentinels.test_sentinels import NEVER
model = Model()
optimizers = adamw(model)
run = root_dash.watch(model, optimizers, db={str(tmp_path / "runs.db")!r}, cadence=NEVER)
train(model, optimizers, 9)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    root_folder = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root_folder)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, cwd=root_folder, timeout=120)
    assert ended.returncode == -signal.SIGTERM
    assert sorted(column(root_dash.open(tmp_path / "runs.db"), "up.weight", "norm_peak")) == [1, 9]


def test_never_asking_for_statistics_keeps_no_sentinels(tmp_path: Path) -> None:
    """The user's cadence is the user's."""
    model = Model()
    optimizers = adamw(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=Cadence(0, 0, 0, 0, 0)) as run:
        train(model, optimizers, 5, run.log)
    store = root_dash.open(tmp_path / "runs.db")
    assert column(store, "up.weight", "norm_peak") == {}


def test_a_layer_without_a_gradient_has_no_sentinels(tmp_path: Path) -> None:
    """NaN, and the layers beside it have theirs."""
    model = Model()
    optimizers = plain_sgd(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=NEVER) as run:
        for index in range(4):
            model.up.weight.grad = torch.full_like(model.up.weight, float(index))
            optimizers[0].step()
    assert run.failures == 0
    store = root_dash.open(tmp_path / "runs.db")
    assert column(store, "up.weight", "norm_peak_step")[4] == 4
    assert all(math.isnan(value) for value in column(store, "head.weight", "norm_peak").values())


def test_gradients_that_a_closure_makes_are_read(tmp_path: Path) -> None:
    """After the step, as the closure's last call left them."""
    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.up(torch.ones(1, 24)).square().sum()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    norms = []
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=NEVER):
        for _ in range(5):
            optimizer.step(closure)
            assert model.up.weight.grad is not None
            norms.append(float(model.up.weight.grad.norm()))
    store = root_dash.open(tmp_path / "runs.db")
    assert column(store, "up.weight", "norm_peak")[5] == pytest.approx(max(norms[1:]))


def test_sparse_gradients_are_read(tmp_path: Path) -> None:
    """What is not stored of them is zero, and what is stored twice adds up."""
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.1)
    with root_dash.watch(embedding, optimizer, db=tmp_path / "runs.db", cadence=NEVER) as run:
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 1, 7])).sum().backward()
            optimizer.step()
    assert run.failures == 0
    store = root_dash.open(tmp_path / "runs.db")
    assert column(store, "weight", "norm_peak")[3] == pytest.approx(math.sqrt(4 * 4 + 4))
    assert column(store, "weight", "entry_peak")[3] == 2.0


def test_experts_and_heads_have_sentinels_of_their_own(tmp_path: Path) -> None:
    """A parameter that ROOT takes apart is a layer for each of its matrices."""
    stack = nn.Parameter(torch.randn(3, 8, 6))
    model = nn.Module()
    model.experts = stack
    optimizer = ROOT([{"params": [stack], "batch_ndim": 1}], lr=1e-2)
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db", cadence=NEVER) as run:
        for index in range(4):
            stack.grad = torch.ones_like(stack) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) * (index + 1)
            optimizer.step()
    assert run.failures == 0
    store = root_dash.open(tmp_path / "runs.db")
    for piece in range(3):
        assert column(store, f"experts[{piece}]", "entry_peak")[4] == 4.0 * (piece + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_norms_and_largest_entries_are_exact_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    """Large and small tensors, transposed ones, and vectors; sums over 16 bits are taken in 32."""
    torch.manual_seed(0)
    gradients = [
        torch.randn(shape, dtype=torch.float64) * scale for shape in [(300, 400), (7, 5), (5, 7), (9,), (), (2**17,)]
    ]
    gradients = [one.to(dtype) for one in (*gradients, gradients[0].mT)]
    norms, entries = read(gradients).array()
    for index, gradient in enumerate(gradients):
        exact = gradient.double()
        if not exact.isfinite().all():
            assert not math.isfinite(entries[index])
            continue
        assert norms[index] == pytest.approx(float(exact.norm()), rel=1e-5, abs=0)
        assert entries[index] == pytest.approx(float(exact.abs().max()), rel=1e-7, abs=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [10, 2**17])
def test_one_entry_that_is_not_finite_shows(value: float, dtype: torch.dtype, size: int) -> None:
    """At the end of a small and of a large tensor, and in no other."""
    gradients = [torch.ones(size, dtype=dtype) for _ in range(3)]
    gradients[1][-1] = value
    _, entries = read(gradients).array()
    assert np.isfinite(entries).tolist() == [True, False, True]


def test_the_loss_scale_is_taken_out() -> None:
    """As it is of the recorded gradients, if the optimizer takes it out itself."""
    norms, entries = read([torch.full((4,), 8.0)], torch.tensor(4.0)).array()
    assert (norms.tolist(), entries.tolist()) == ([4.0], [2.0])


def test_reading_changes_no_gradient() -> None:
    """Not a bit of it."""
    gradients = [torch.randn(30, 40), torch.randn(2**17)]
    before = [one.clone() for one in gradients]
    read(gradients)
    assert all(torch.equal(one, old) for one, old in zip(gradients, before, strict=True))


def test_a_step_that_failed_and_is_tried_again_counts_once() -> None:
    """The last try is the step."""
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters())
    reader = GradientReader(
        adapter_for(optimizer), {parameter: place for place, parameter in enumerate(model.parameters())}
    )
    kept = Sentinels()
    for size in (1.0, 5.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, size)
        row = reader.row(1)
        assert row is not None
        kept.add(row)
    (group,) = groups_of_rows(kept.take())
    assert group.arrays[SENTINELS.name]["entry"].tolist() == [[5.0], [5.0]]
    assert not kept.take()
    assert NONE < 0


def test_a_sum_that_overflows_warns_nobody() -> None:
    """Beside large gradients, which are read apart; the norm is read again in float64."""
    gradients = [torch.full((100,), 1e19), torch.randn(2**17), torch.full((3,), math.nan)]
    norms, entries = read(gradients).array()
    assert norms[0] == pytest.approx(1e20)
    assert entries[0] == pytest.approx(1e19)
    assert np.isfinite(norms).tolist() == [True, True, False]
