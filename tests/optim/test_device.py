"""What a step does on CUDA alone, walked through on a device that computes nothing (`tests.pretended`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from root_dash.optim import ROOT
from root_dash.optim.calibration.online import Change
from root_dash.optim.observation import Observation
from tests.optim.conformance import CASES
from tests.pretended import pretended_cuda

STEPS = 3


def steps(optimizer: ROOT, params: list[nn.Parameter]) -> None:
    """Some steps, each with its own gradients."""
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.randn(p.shape, dtype=p.dtype, device="cuda")
        optimizer.step()


# Without Triton the selections are others, and no more: those who select in a way of their own show it.
WITHOUT_TRITON = ("adaptive", "histogram", "sampled", "mixed")


@pytest.mark.parametrize(
    ("name", "dtype", "triton"),
    [
        *((name, torch.float32, True) for name in CASES if name != "raise"),
        *((name, torch.bfloat16, True) for name in ("adaptive", "mixed", "skip")),
        *((name, torch.float32, False) for name in WITHOUT_TRITON),
        *(
            pytest.param(name, torch.float32, False, marks=pytest.mark.long)
            for name in CASES
            if name not in ("raise", *WITHOUT_TRITON)
        ),
    ],
)
def test_no_step_waits_for_the_device(name: str, dtype: torch.dtype, triton: bool) -> None:
    """Every operation of the first steps, calibrations included, leaves values and copies to the device."""
    case = CASES[name]
    with pretended_cuda(triton=triton):
        params = [nn.Parameter(torch.empty(s, dtype=dtype, device="cuda")) for s in (*case.root, *case.adamw)]
        rate = case.options.get("lr")
        lr = {"lr": torch.full((), 0.02, device="cuda")} if isinstance(rate, Tensor) else {}
        optimizer = case.optimizer(params, **lr)
        seen: list[Observation] = []
        changes: list[Change] = []
        handles = [optimizer.register_observer(seen.append), optimizer.register_change_observer(changes.append)]
        steps(optimizer, params)
        for handle in handles:
            handle.remove()
        steps(optimizer, params)
    assert {p for each in seen for p in each.parameters} == set(params)
    for each in seen:
        assert each.momentum.is_cuda
        assert each.update.is_cuda
    for p in params:
        assert all(value.is_cuda for key, value in optimizer.state[p].items() if key != "step")


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("options", [{}, {"quantile_method": "histogram"}, {"nonfinite": "skip"}, {"foreach": False}])
def test_no_step_of_large_matrices_waits(options: dict[str, object], triton: bool) -> None:
    """Nor where thresholds are selected in several passes, and wide matrices take their steps in Gram space."""
    shapes = [(768, 768), (768, 768), (768, 3072), (3072, 768), (50257, 768)]
    with pretended_cuda(triton=triton):
        params = [nn.Parameter(torch.empty(s, device="cuda")) for s in shapes]
        steps(ROOT(params, **options), params)  # type: ignore[arg-type]
