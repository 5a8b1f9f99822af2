"""The registry of adapters, and what a run records of its optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Muon, Optimizer

import root_dash
from root_dash import ROOT
from root_dash.monitor.optimizers import registry
from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.monitor.optimizers.generic import GenericAdapter
from root_dash.monitor.optimizers.muon import MuonAdapter
from root_dash.monitor.optimizers.root import RootAdapter
from root_dash.records.algorithms import AlgorithmTraits, traits_of
from tests.monitor.training import EVERY_STEP, MATRICES, Model, layers_of, muon, record, root, step, train


class Factored(Optimizer):
    """Orthogonalizes the sign of its momentum by an SVD, which it keeps under a name of its own; it has no `lr`."""

    def __init__(self, params: Iterable[Tensor], power: float = 0.0) -> None:
        super().__init__(params, {"size": 0.02, "power": power})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move against U Σ^power Vᵀ of the momentum U Σ Vᵀ."""
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 0.5)
                left, singular, right = torch.linalg.svd(mean, full_matrices=False)
                parameter.sub_(group["size"] * (left * singular ** group["power"]) @ right)


class FactoredAdapter(GenericAdapter):
    """All that is to be written to have an optimizer's momentum and update recorded as they are."""

    label = "Factored"
    orthogonalizes = "momentum"
    momentum_keys = ("mean",)

    @classmethod
    def adapts(cls, optimizer: Optimizer) -> bool:
        """Return whether it is one of these."""
        return isinstance(optimizer, Factored)


@pytest.fixture
def _registered() -> Iterator[None]:
    registry.register(FactoredAdapter)
    yield
    registry._registered.remove(FactoredAdapter)


def matrices(model: torch.nn.Module) -> list[Tensor]:
    named = dict(model.named_parameters())
    return [named[name] for name in MATRICES]


def watched(optimizer: Optimizer, model: torch.nn.Module, path: Path) -> root_dash.store.store.Store:
    with root_dash.watch(model, optimizer, db=path, cadence=EVERY_STEP) as run:
        train(model, [optimizer], 3, run.log)
    assert (run.lost, run.failures) == (0, 0)
    return root_dash.open(path)


@pytest.mark.usefixtures("_registered")
def test_an_adapter_from_outside_is_all_that_an_optimizer_needs(tmp_path: Path) -> None:
    """Its label, momentum and update are recorded, and its update as one that should be orthogonal."""
    model = Model()
    with watched(Factored(matrices(model)), model, tmp_path / "runs.db") as store:
        layer = layers_of(store)["up.weight"]
        assert layer.algorithm == "factored"
        traits = traits_of(store.run(1).optimizer, layer.algorithm)
        assert traits == AlgorithmTraits("Factored", "momentum", "polar")
        assert traits.aims_at_polar
        statistics = store.statistics(layer.id)
        assert statistics["momentum_norm"] > 0
        assert statistics["orthogonality_error"] > 0.5  # the group has no `lr`: the update is the movement itself
        np.testing.assert_allclose(store.spectrum(layer.id).update, 0.02, rtol=1e-3)


def test_without_an_adapter_the_same_optimizer_is_one_of_many(tmp_path: Path) -> None:
    """Recorded by what its hooks show: no momentum of a name that nobody knows, and no orthogonality."""
    model = Model()
    with watched(Factored(matrices(model)), model, tmp_path / "runs.db") as store:
        layer = layers_of(store)["up.weight"]
        assert traits_of(store.run(1).optimizer, layer.algorithm) == AlgorithmTraits("Factored")
        assert np.isnan([store.statistics(layer.id)[name] for name in ("momentum_norm", "orthogonality_error")]).all()


def test_each_optimizer_has_its_adapter() -> None:
    """The most particular one that knows it."""
    parameters = [torch.nn.Parameter(torch.zeros(3, 4))]
    for optimizer, adapter in (
        (ROOT(parameters, lr=0.1), RootAdapter),
        (Muon(parameters), MuonAdapter),
        (AdamW(parameters), GenericAdapter),
        (SGD(parameters, lr=0.1), GenericAdapter),
    ):
        assert type(registry.adapter_for(optimizer)) is adapter


def test_a_run_records_what_each_algorithm_does(tmp_path: Path) -> None:
    """Its label and what it orthogonalizes, by the name that its layers bear; readers compare no names."""
    expected: Mapping[str, Mapping[str, AlgorithmTraits]] = {
        "root": {"root": AlgorithmTraits("ROOT", "base"), "adamw": AlgorithmTraits("AdamW")},
        "muon": {"muon": AlgorithmTraits("Muon", "momentum"), "adamw": AlgorithmTraits("AdamW")},
    }
    for name, build in (("root", root), ("muon", muon)):
        with record(tmp_path / f"{name}.db", build, 1) as store:
            found = {layer.algorithm for layer in layers_of(store).values()}
            assert {one: traits_of(store.run(1).optimizer, one) for one in found} == expected[name]


@pytest.mark.parametrize("target", ["muon", [[2.0, -1.5, 0.5]], ((1.5, -0.5),) * 3])
def test_a_run_declares_the_map_that_its_optimizer_aims_at(target: Any, tmp_path: Path) -> None:
    """An attribute of the optimizer: what shapes singular values on purpose is not read as a failed iteration."""
    model = Model()
    (optimizer,) = root(model)
    optimizer.target_map = target  # type: ignore[attr-defined]
    with root_dash.watch(model, optimizer, db=tmp_path / "runs.db") as run:
        step(model, [optimizer], 0)
    assert run.failures == 0
    with root_dash.open(tmp_path / "runs.db") as store:
        traits = traits_of(store.run(1).optimizer, "root")
        assert traits.target == (target if isinstance(target, str) else tuple(map(tuple, target)))
        assert not traits.aims_at_polar
        assert traits_of(store.run(1).optimizer, "adamw") == AlgorithmTraits("AdamW")


@pytest.mark.parametrize("target", ["cubic", [], [[]], [1.0, 2.0], [["a"]], 3, None])
def test_a_map_that_is_none_is_refused(target: object, tmp_path: Path) -> None:
    """Before anything is made, with the value and the rule."""
    model = Model()
    (optimizer,) = root(model)
    optimizer.target_map = target  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="target_map must be 'polar', one of .*'muon'.*, or the coefficients"):
        root_dash.watch(model, optimizer, db=tmp_path / "runs.db")
    assert not (tmp_path / "runs.db").exists()


@pytest.mark.parametrize(
    "optimizer",
    [{}, {"algorithms": None}, {"algorithms": {"muon": 3}}, {"algorithms": {"muon": {"label": 1}}}],
)
def test_a_run_without_traits_has_those_of_its_names(optimizer: dict[str, Any]) -> None:
    """Runs of earlier versions, and records that somebody wrote by hand."""
    assert traits_of(optimizer, "muon") == AlgorithmTraits("Muon", "momentum")
    assert traits_of(optimizer, "lion") == AlgorithmTraits("lion")


def test_a_base_adapter_must_say_what_it_knows() -> None:
    """An adapter is a class that names its optimizers and attaches itself to one."""
    with pytest.raises(NotImplementedError):
        Adapter.adapts(SGD([torch.zeros(1)], lr=0.1))
