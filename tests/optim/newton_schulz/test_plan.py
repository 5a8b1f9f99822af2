from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from root_dash.optim.newton_schulz import plan as planning
from root_dash.optim.newton_schulz.plan import is_fine, plan


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (512, 512), (512, 2048), (2048, 2048)])
@pytest.mark.parametrize("units", [True, False])
def test_arithmetic_is_fine_unless_bfloat16_comes_first(
    shape: tuple[int, int], units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arithmetic is fine on every CPU, and on CUDA in Gram space in float16; it is never fine in bfloat16."""
    monkeypatch.setattr(planning, "CPU_MULTIPLIES_BFLOAT16", units)
    for given in (torch.float32, torch.bfloat16):
        assert is_fine(plan(*shape, 5, None, "auto", given, "cpu"))
        assert is_fine(plan(*shape, 5, None, "auto", given, "cuda")) == (shape[1] > shape[0])
        for dtype in (torch.float32, torch.float16, torch.float64):
            assert is_fine(plan(*shape, 5, dtype, "auto", given, "cpu"))
        assert not is_fine(plan(*shape, 5, torch.bfloat16, "auto", given, "cpu"))


@pytest.fixture
def cut_float32() -> Iterator[None]:
    """Set what `torch.set_float32_matmul_precision("medium")` sets for CPUs."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    yield
    products.fp32_precision = before


@pytest.mark.usefixtures("cut_float32")
def test_float32_that_may_be_cut_is_not_fine() -> None:
    """If torch may cut float32 products to bfloat16, a first step in float32 is not fine; other dtypes stay fine."""
    for shape in ((64, 64), (64, 256), (512, 512), (512, 2048)):
        for dtype in (None, torch.float32):
            assert not is_fine(plan(*shape, 5, dtype, "auto", torch.float32, "cpu"))
        for dtype in (torch.float16, torch.float64):
            assert is_fine(plan(*shape, 5, dtype, "auto", torch.float32, "cpu"))
