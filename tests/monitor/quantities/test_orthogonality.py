"""The orthogonality error against its definition in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from root_dash.monitor.quantities.orthogonality import orthogonality_error


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
def test_orthogonality_error_equals_its_definition(shape: tuple[int, int]) -> None:
    """The error is taken on the short side, and compared with float64."""
    update = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)) / max(shape) ** 0.5
    for row, error in enumerate(orthogonality_error(update)):
        x = update[row].double().numpy()
        x = x if x.shape[0] <= x.shape[1] else x.T
        expected = np.linalg.norm(x @ x.T - np.eye(len(x))) / math.sqrt(len(x))
        assert error.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24), (128, 512)])
@pytest.mark.parametrize("size", [0.3, 1e-3])
def test_orthogonality_error_of_bfloat16_is_that_of_its_entries(shape: tuple[int, int], size: float) -> None:
    """The residual is rounded, not X Xᵀ. Dead rows are left out, and rows of 0.02 are not dead."""
    generator = torch.Generator().manual_seed(4)
    m, n = sorted(shape)
    orthonormal = torch.linalg.qr(torch.randn(2, n, m, generator=generator)).Q.mT
    update = (orthonormal * (1 + size * torch.randn(2, m, 1, generator=generator))).bfloat16()
    update[1, 3] *= 0.02
    update[1, 5] = 0
    for row, error in enumerate(orthogonality_error(update if shape == (m, n) else update.mT)):
        x = update[row].double().numpy()
        x = x[np.abs(x).sum(1) > 0]
        expected = np.linalg.norm(x @ x.T - np.eye(len(x))) / math.sqrt(len(x))
        assert error.item() == pytest.approx(expected, rel=1e-3)


def test_orthogonality_error_leaves_out_dead_rows() -> None:
    """Rows that are exactly zero have no direction: an orthogonal matrix with dead rows has no error."""
    update = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q[:8].clone()
    padded = torch.zeros(1, 12, 20)
    padded[0, ::2] = update[:6]
    assert orthogonality_error(padded).item() < 1e-5
