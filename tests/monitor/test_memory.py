"""The device's memory that recording takes, and what happens to a recording if no memory is left."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import root_dash
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.measure import Measurement, measure
from root_dash.monitor.optimizers.adapter import chunks, outliers_of
from root_dash.monitor.quantities.norms import norms_apart
from root_dash.monitor.quantities.quantity import LayerBatch, MeasureLimits
from root_dash.monitor.quantities.registry import QUANTITIES
from root_dash.records import Kind
from tests.monitor.training import (
    EVERY_STEP,
    MATRICES,
    Build,
    Model,
    adamw,
    layers_of,
    muon,
    record,
    root,
    sgd,
    step,
    train,
    watch_within,
)
from tests.waiting import until

KINDS: tuple[Kind, ...] = ("statistics", "histograms", "quantiles", "spectra", "masks")


SHAPES = 5
"""How many shapes the model's parameters have: the weights of each shape are sampled before a step."""


def batch_of(rows: list[int]) -> LayerBatch:
    """Return some of eight layers with heavy tails, each of its own scale."""
    generator = torch.Generator().manual_seed(0)
    gradient, momentum, weight = torch.randn(3, 8, 48, 160, generator=generator) ** 3 * torch.logspace(-3, 3, 8).view(
        8, 1, 1
    )
    gradient, momentum, weight = (tensor[rows] for tensor in (gradient, momentum, weight))
    base, threshold = outliers_of(momentum, 0.9)
    norm = norms_apart(list(weight))
    seen = LayerBatch(tuple(rows), gradient, norm, momentum, threshold, base, momentum / 2, 0.1, orthogonalized=True)
    return replace(seen, weight=list(weight))


def named(measurement: Measurement) -> dict[tuple[str, str], Tensor]:
    """Return the tensors of a measurement by quantity and name."""
    return {(quantity, name): one for quantity, found in measurement.tensors.items() for name, one in found.items()}


@pytest.mark.parametrize("exact_side", [512, 16], ids=["grams", "lanczos"])
@pytest.mark.parametrize("host", [True, False], ids=["host", "device"])
def test_layers_that_are_measured_apart_have_the_same_bits(
    host: bool, exact_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor equals the tensor of layers measured together, by the ways of a CPU and of a device."""
    limits = MeasureLimits(exact_side=exact_side, entries=3 * 48 * 160)
    parts = [list(rows) for rows in chunks(range(8), 48 * 160, limits)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]
    if not host:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together, *apart = (named(measure(batch_of(rows), KINDS, limits=limits)) for rows in [list(range(8)), *parts])
    finally:
        torch.set_num_threads(threads)
    # What changed is known after a step, and sentinels are read of the gradients: nothing is measured of either here.
    elsewhere = {"changes", "sentinels"}
    assert {quantity for quantity, _ in together} == {quantity.name for quantity in QUANTITIES} - elsewhere
    assert (("spectrum", "cross") in together) == (exact_side >= 48)
    for name, tensor in together.items():
        if tensor.ndim:
            assert torch.equal(torch.cat([one[name] for one in apart]), tensor), name
        else:
            assert all(torch.equal(one[name], tensor) for one in apart), name


@pytest.mark.parametrize("build", [root, muon, adamw, sgd])
def test_a_recording_is_the_same_however_many_layers_are_measured_at_once(build: Build, tmp_path: Path) -> None:
    """All layers of a shape may be measured at once, or one at a time: the frames are the same."""
    frames = []
    for entries in (2**24, 1):
        store = record(tmp_path / f"{entries}.db", build, 3, limits=MeasureLimits(entries=entries))
        frames.append([asdict(store.frame(notice.id)) for notice in store.frames(1)])
    assert len(frames[0]) == 3
    for one, other in zip(*frames, strict=True):
        for name in ("layers", "statistics", "histograms", "quantiles", "spectra", "masks", "scalars"):
            np.testing.assert_equal(one[name], other[name])


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that were made and are not yet freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._held = 0
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a new storage until the last Python tensor of it is gone."""
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and all(tensor is not one for one in given):
                place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                if place in self._owners or place not in places:
                    self._held += size * (place not in self._owners)
                    self._owners[place] = self._owners.get(place, 0) + 1
                    weakref.finalize(tensor, self._let_go, place, size)
        self.most = max(self.most, self._held)
        return made

    def _let_go(self, place: int, size: int) -> None:
        self._owners[place] -= 1
        if not self._owners[place]:
            del self._owners[place]
            self._held -= size


SIDES = (128, 1024)
LAYER_BYTES = 4 * SIDES[0] * SIDES[1]


LIMITS = MeasureLimits(exact_side=64, entries=2 * SIDES[0] * SIDES[1], copied_bytes=2 * LAYER_BYTES)


def peak(layers: int, path: Path) -> int:
    """Return the most bytes that a recorded step made beside weights, gradients and momenta."""
    model = nn.Sequential(*(nn.Linear(*SIDES, bias=False) for _ in range(layers)))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    with watch_within(model, [optimizer], path, LIMITS) as run:
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            with Peak() as counted:
                optimizer.step()
    assert (run.stored, run.failures) == (2, 0)
    most: int = counted.most
    return most


@pytest.mark.heavy
def test_the_memory_of_a_step_does_not_grow_with_the_number_of_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is recorded grows: temporary tensors are of two layers at a time, and copies are bounded."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    few, many = peak(4, tmp_path / "few.db"), peak(8, tmp_path / "many.db")
    assert 4 * LAYER_BYTES < few
    assert many - few < LAYER_BYTES


def recording() -> bool:
    """Return whether the recorder is among the callers."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_globals["__name__"].startswith("root_dash.monitor"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def no_memory(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: int = 0, times: float = float("inf")
) -> Iterator[None]:
    """Let a function of torch find no memory when recording calls it, after so many calls and so many times."""
    function, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += recording()
        if recording() and after < calls <= after + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        yield


def held(model: nn.Module) -> int:
    """Return the bytes of all tensors of the size of a layer in the process, without the model's own."""
    own = {id(parameter) for parameter in model.parameters()}
    tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and id(one) not in own]
    layers = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() >= 24 * 24]
    return sum(tensor.nbytes for tensor in layers)


@pytest.mark.parametrize(
    ("build", "owner", "name", "after"),
    [
        (adamw, torch, "stack", SHAPES + 2),
        (muon, torch, "stack", len(MATRICES) + 7),
        (adamw, torch, "maximum", 1),
        (root, torch.Tensor, "topk", 0),
        (root, torch.linalg, "vector_norm", 3),
    ],
    ids=["gradients", "weights", "outliers", "masks", "norms"],
)
def test_without_memory_the_step_is_trained_as_ever_and_nothing_is_held(
    build: Build, owner: Any, name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be missing for copies or in a measurement; all tensors are freed without a collection."""
    alone, watched = Model(), Model()
    train(alone, build(alone), 5)
    optimizers, after_steps = build(watched), []
    gc.collect()
    gc.disable()
    try:
        with root_dash.watch(watched, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
            for index in range(5):
                with no_memory(monkeypatch, owner, name, after=after) if index == 3 else nullcontext():
                    run.log(loss=step(watched, optimizers, index))
                until(lambda: not run.pending)  # the writer's thread has tensors of its own
                after_steps.append(held(watched))
            assert run.active
    finally:
        gc.enable()
    assert run.failures in (1, 2)  # of the copies and, as nothing is left, of what would have been read without them
    assert (run.stored, run.lost) == (5, 0)
    assert after_steps[3] == after_steps[2] == after_steps[4]
    for left, right in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_heaviest_kinds_are_given_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A kind that finds no memory costs a step that kind and all heavier kinds; it is one failure for all layers."""
    model = Model()
    optimizers = adamw(model)
    cadence = Cadence(statistics=1, histograms=1, quantiles=3, spectra=1, masks=1)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=cadence, max_overhead=10.0) as run:
        with no_memory(monkeypatch, torch.Tensor, "gather"):  # which the quantiles are read by, and then the masks
            train(model, optimizers, 1, run.log)
        train(model, optimizers, 4, run.log)
        with no_memory(monkeypatch, torch.Tensor, "gather"):
            train(model, optimizers, 1, run.log)
        assert run.active
    assert (run.stored, run.lost, run.failures) == (6, 0, 2)
    assert capfd.readouterr().err.count("failed to measure quantiles; training goes on") == 1
    with root_dash.open(tmp_path / "runs.db") as store:
        for name in MATRICES:
            layer = layers_of(store)[name].id
            assert {kind: store.steps(layer, kind).tolist() for kind in KINDS} == {
                **dict.fromkeys(("statistics", "histograms"), [1, 2, 3, 4, 5, 6]),
                "quantiles": [3],
                **dict.fromkeys(("masks", "spectra"), [2, 3, 4, 5]),
            }


def test_without_memory_for_copies_gradients_are_read_after_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the update is missing from the step."""
    model = Model()
    optimizers = sgd(model)
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        train(model, optimizers, 2, run.log)
        with no_memory(monkeypatch, torch, "stack", after=SHAPES + 2, times=1):
            run.log(loss=step(model, optimizers, 2))
    assert (run.stored, run.failures) == (3, 1)
    with root_dash.open(tmp_path / "runs.db") as store:
        for layer in layers_of(store).values():
            assert np.isfinite(store.history(layer.id, "grad_norm").values).tolist() == [True, True, True]
            assert np.isfinite(store.history(layer.id, "update_norm").values).tolist() == [True, True, False]


def test_a_recorder_that_never_has_memory_turns_itself_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder is off after three failures in a row; the training ends as it would have without it."""
    alone, watched = Model(), Model()
    train(alone, sgd(alone), 6)
    optimizers = sgd(watched)
    with root_dash.watch(watched, optimizers, db=tmp_path / "runs.db", cadence=EVERY_STEP) as run:
        with no_memory(monkeypatch, torch, "stack"):
            train(watched, optimizers, 6, run.log)
        assert not run.active
    assert run.failures == 3
    for left, right in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(left, right)
