"""The measurement of a batch: by the ways of a CPU, and by those of every other device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.monitor.measure import measure
from root_dash.monitor.quantities.norms import norms
from root_dash.monitor.quantities.quantity import HostBatch, LayerBatch
from root_dash.monitor.quantities.registry import QUANTITIES, of_kind
from tests.monitor.quantities.measured import heavy_tailed


def test_every_way_through_a_device_makes_the_same_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices use masks and scales on rows as a whole; a CPU uses neither, and takes the rows in pieces."""
    gradient = heavy_tailed(3, 150_000) * torch.tensor([[1.0], [1e3], [1e-3]]) + 1e-4
    momentum = heavy_tailed(3, 150_001)[:, 1:]
    epsilon = momentum.abs().quantile(0.9, dim=-1)
    base = momentum.clamp(-epsilon[:, None], epsilon[:, None])

    def everything() -> dict[str, np.ndarray]:
        tensors = [tensor.unsqueeze(1) for tensor in (gradient, momentum, base)]
        batch = LayerBatch((0, 1, 2), tensors[0], norms(gradient), tensors[1], epsilon, tensors[2], tensors[1], 0.1)
        measured = measure(batch, ("statistics", "histograms", "quantiles")).tensors
        arrays = {
            quantity: {name: tensor.numpy() for name, tensor in tensors.items()}
            for quantity, tensors in measured.items()
        }
        found: dict[str, np.ndarray] = {}
        for quantity in of_kind(QUANTITIES, "statistics"):
            if quantity.name in arrays:
                found |= quantity.on_host(HostBatch(arrays[quantity.name], (0, 1, 2), (1, 150_000), 1)).statistics
        for name in ("histogram", "quantiles"):
            found |= {f"{name}.{key}": array for key, array in arrays[name].items()}
        return found

    here = everything()
    assert {"grad_kurtosis", "alignment", "outlier_energy", "update_norm", "histogram.gradient.nonfinite"} <= set(here)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for name, value in everything().items():
        np.testing.assert_allclose(value, here[name], rtol=5e-5, atol=1e-9, err_msg=name)
