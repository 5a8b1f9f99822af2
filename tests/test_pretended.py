"""That the pretended device notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretended import HostWaited, pretended_cuda


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: torch.zeros(3).to("cuda"),
        lambda x: x.copy_(torch.zeros(4, 6)),
        lambda x: torch.empty(4, 6, dtype=torch.float32, pin_memory=True).copy_(x),
        lambda x: torch.cuda.Event().synchronize(),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_it_notices_that_the_host_waits(reads: Callable[[Tensor], Any]) -> None:
    """A value that is read, a copy that blocks, an event or a device that is waited for."""
    with pretended_cuda(), pytest.raises(HostWaited):
        reads(torch.zeros(4, 6, device="cuda"))


def test_it_notices_what_mixes_devices() -> None:
    """Two tensors of two devices cannot be added, unless one is a number."""
    with pretended_cuda():
        x = torch.zeros(4, 6, device="cuda")
        assert (x + torch.tensor(1.0)).is_cuda
        with pytest.raises(RuntimeError, match="device"):
            x + torch.zeros(6)


def test_what_does_not_wait_passes() -> None:
    """Views, products and copies to pinned memory that do not block have the shapes that they would have."""
    with pretended_cuda():
        x = torch.randn(4, 6, 5, device="cuda")
        assert x[1:3, ..., None, 2].shape == (2, 6, 1)
        assert x[:, torch.zeros(3, dtype=torch.long, device="cuda")].shape == (4, 3, 5)
        x[0] = 1
        x[:, 1] = torch.zeros(5, device="cuda")
        assert (x @ x.mT).double().shape == (4, 6, 6)
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        assert host.copy_(x, non_blocking=True) is host
    assert not host.any()
