"""What is recorded of the weights and of the rows of the update in real training, against the weights themselves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import root_dash
from tests.monitor.training import EVERY_STEP, MATRICES, Build, Model, adamw, layers_of, muon, root, sgd, step

STEPS = 4


@pytest.mark.parametrize("build", [root, muon, adamw, sgd])
def test_weights_and_rows_are_recorded_with_the_spectra(tmp_path: Path, build: Build) -> None:
    """ROOT shows the weights before it writes the step, others are seen after it; the update is what moved them."""
    model = Model()
    optimizers = build(model)
    weights: list[dict[str, Tensor]] = []

    def copied() -> dict[str, Tensor]:
        return {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}

    path = tmp_path / "runs.db"
    watched = root_dash.watch(model, optimizers, db=path, name="test", cadence=EVERY_STEP, max_overhead=math.inf)
    with watched as run:
        weights.append(copied())
        for index in range(STEPS):
            step(model, optimizers, index)
            weights.append(copied())
    assert (run.lost, run.failures) == (0, 0)
    seen = weights[:-1] if build is root else weights[1:]
    lr = optimizers[0].param_groups[0]["lr"]
    with root_dash.open(path) as store:
        for name in MATRICES:
            layer = layers_of(store)[name].id
            found = {
                statistic: store.history(layer, statistic).values.tolist()
                for statistic in ("weight_sigma_max", "weight_stable_rank", "update_row_max", "update_col_weakest")
            }
            sigma = [torch.linalg.svdvals(at[name])[0].item() for at in seen]
            assert found["weight_sigma_max"] == pytest.approx(sigma, rel=2e-3)
            ranks = [(at[name].norm().item() / value) ** 2 for at, value in zip(seen, sigma, strict=True)]
            assert found["weight_stable_rank"] == pytest.approx(ranks, rel=5e-3)
            if build in (adamw, sgd):
                moved = [(a[name] - b[name]) / lr for a, b in zip(weights, weights[1:], strict=False)]
                assert found["update_row_max"] == pytest.approx([x.norm(dim=1).max().item() for x in moved], rel=1e-3)
                weakest = [x.norm(dim=0).argmin().item() for x in moved]
                assert found["update_col_weakest"] == weakest
