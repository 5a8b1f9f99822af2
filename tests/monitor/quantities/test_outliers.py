"""Outliers of the momentum against their definition in NumPy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.monitor.quantities.outliers import OUTLIERS
from tests.monitor.quantities.measured import heavy_tailed, statistics_of, vectors


def test_outlier_statistics_equal_their_definition() -> None:
    """Fraction, energy and angle follow from M, ε and B."""
    momentum = heavy_tailed(2)
    epsilon = torch.tensor([1e-4, 3e-4])
    base = momentum.clamp(-epsilon[:, None], epsilon[:, None])
    columns = statistics_of(OUTLIERS, vectors(None, momentum, base, epsilon))
    for row in range(2):
        m, b = momentum[row].double().numpy(), base[row].double().numpy()
        assert columns["outlier_fraction"][row].item() == pytest.approx((np.abs(m) > epsilon[row].item()).mean())
        assert columns["outlier_energy"][row].item() == pytest.approx(((m - b) ** 2).sum() / (m**2).sum(), rel=1e-4)
        cosine = m @ b / np.linalg.norm(m) / np.linalg.norm(b)
        assert columns["base_alignment"][row].item() == pytest.approx(cosine, rel=1e-5)
