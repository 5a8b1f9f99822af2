"""The reference implementation against ROOT: the optimizer takes the steps that its 60 lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import root_in_60_lines as reference
from root_dash.coefficients.tables import ROBUST_FINE, resolve
from root_dash.optim import ROOT
from tests.optim.training import give_gradients, parameters

SHAPES = [(12, 20), (20, 12), (16, 16), (1, 9), (9, 1), (40, 200), (200, 40), (7, 7)]
NORMS = {"schatten8": reference.schatten8, "frobenius": torch.linalg.matrix_norm}
SCALES = {
    "match_rms_adamw": reference.match_rms_adamw,
    "original": lambda rows, cols: max(1, rows / cols) ** 0.5,
    "spectral": lambda rows, cols: (rows / cols) ** 0.5,
    "spectral_unclamped": lambda rows, cols: (rows / cols) ** 0.5,
    None: lambda rows, cols: 1.0,
}


def check(root_options: dict[str, Any], step_options: dict[str, Any]) -> None:
    """Take five steps of ROOT and of the reference, in float64, and compare weights and momenta."""
    params = parameters(SHAPES, torch.float64)
    weights = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(weight) for weight in weights]
    optimizer = ROOT(params, **root_options)
    for step in range(5):
        give_gradients(step, params)
        for i, p in enumerate(params):
            assert p.grad is not None
            weights[i], buffers[i] = reference.root_step(weights[i], p.grad, buffers[i], **step_options)
        optimizer.step()
    for p, weight, buffer in zip(params, weights, buffers, strict=True):
        torch.testing.assert_close(p.detach(), weight, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], buffer, rtol=1e-12, atol=1e-12)


def test_the_defaults_are_the_same() -> None:
    """Without any option both take the same steps, from the same coefficients."""
    assert reference.ROBUST == ROBUST_FINE
    check({}, {})


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("name", "steps", "normalization", "quantile", "rule"),
    [
        ("robust", 4, "schatten8", 0.5, "original"),
        ("robust", 8, "frobenius", 0.95, "spectral"),
        ("polar_express", 5, "frobenius", 0.99, "spectral_unclamped"),
        ("muon", 3, "frobenius", 1.0, None),
    ],
)
def test_steps_follow_the_formulas(
    name: str, steps: int, normalization: str, quantile: float, rule: Any, nesterov: bool
) -> None:
    """Every option of the reference means the same in ROOT."""
    same = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov}
    coefficients = resolve(name, steps, fine=True)  # float64 keeps every bit of X
    check(
        {
            **same,
            "ns_coefficients": name,
            "ns_steps": steps,
            "adjust_lr_fn": rule,
            "outlier_quantile": quantile,
            "normalization": normalization,
        },
        {
            **same,
            "quantile": quantile,
            "coefficients": coefficients,
            "norm": NORMS[normalization],
            "lr_scale": SCALES[rule],
        },
    )


def test_the_example_runs() -> None:
    """Run as a program, it prints a loss that falls to the noise of its data."""
    root = Path(__file__).parents[2]
    run = [sys.executable, "examples/root_in_60_lines.py"]
    printed = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=300, check=True).stdout
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 6
    assert losses[-1] < 0.03 < losses[0] / 100
