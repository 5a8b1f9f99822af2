"""What the hook does on CUDA alone, walked through on a device that computes nothing (`tests.pretended`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import root_dash
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.quantities.quantity import MeasureLimits
from tests.monitor.training import EVERY_STEP, Build, Model, adamw, muon, plain_sgd, root, sgd
from tests.pretended import pretended_cuda

STEPS = 4


def moved(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with parameters on the device."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype, device="cuda")))
    return model


def watched(
    path: Path,
    model: nn.Module,
    build: Build,
    cadence: Cadence,
    dtype: torch.dtype,
    *,
    triton: bool,
    steps: int = STEPS,
) -> tuple[int, int, int]:
    """How many frames of some steps on the device were stored and lost, and how often the hook failed."""
    with pretended_cuda(triton=triton):
        model = moved(model, dtype)
        optimizers = build(model)
        run = root_dash.watch(model, optimizers, db=path, cadence=cadence, max_overhead=None)
        for step in range(steps):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, dtype=p.dtype, device="cuda")
            if step == 2:
                run.capture_masks()
            for optimizer in optimizers:
                optimizer.step()
            run.log(loss=torch.zeros((), device="cuda"), lr=0.1)
    run.close()
    return run.stored, run.lost, run.failures


@pytest.mark.parametrize(("dtype", "triton"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("build", [root, muon, adamw, sgd, plain_sgd])
def test_the_training_thread_never_waits(build: Build, dtype: torch.dtype, triton: bool, tmp_path: Path) -> None:
    """Statistics, histograms, quantiles, spectra and masks of any optimizer leave all to the device and the writer."""
    assert watched(tmp_path / "runs.db", Model(), build, EVERY_STEP, dtype, triton=triton) == (STEPS, 0, 0)


@pytest.mark.parametrize("build", [root, adamw])
def test_nor_for_large_layers(build: Build, tmp_path: Path) -> None:
    """The thread does not wait if spectra are estimated and the entries are too many for one pass."""
    side = MeasureLimits().exact_side + 1
    model = nn.ModuleDict({"square": nn.Linear(side, side), "head": nn.Linear(64, 3000)})
    counts = watched(tmp_path / "runs.db", model, build, EVERY_STEP, torch.float32, triton=True, steps=1)
    assert counts == (1, 0, 0)


def test_nor_between_the_costly_steps(tmp_path: Path) -> None:
    """The thread does not wait with the default cadence, at which most steps take the cheap statistics alone."""
    assert watched(tmp_path / "runs.db", Model(), root, Cadence(), torch.float32, triton=True) == (STEPS, 0, 0)
