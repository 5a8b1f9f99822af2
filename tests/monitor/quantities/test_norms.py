"""Norms against float64."""

from __future__ import annotations

import pytest
import torch

from root_dash.monitor.quantities.norms import norms_apart


@pytest.mark.parametrize("shape", [(7, 9), (300, 500), (1, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_of_tensors_apart_are_those_of_the_stack(
    shape: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    """The norms agree with float64 for any size, type and strides."""
    generator = torch.Generator().manual_seed(1)
    tensors = [(torch.randn(shape, generator=generator) * scale).to(dtype) for _ in range(3)]
    tensors[1] = tensors[1].mT.contiguous().mT
    expected = [tensor.double().norm().item() for tensor in tensors]
    assert norms_apart(tensors).tolist() == pytest.approx(expected, rel=1e-5 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize(("value", "dtype"), [(0.0, torch.float32), (-3.0, torch.bfloat16), (3.0, torch.float64)])
def test_the_norm_of_a_single_number_is_its_magnitude(value: float, dtype: torch.dtype) -> None:
    """A temperature has no dimension: neither its type nor a zero is a reason to fail."""
    assert norms_apart([torch.tensor(value, dtype=dtype)] * 2).tolist() == [abs(value)] * 2
