"""Parameters and gradients for the tests of the optimizer: seeded, and equal for every copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from root_dash.optim.newton_schulz.orthogonalize import newton_schulz

SHAPES = [(12, 20), (20, 12), (12, 20), (16, 16), (1, 9)]
MUON: dict[str, Any] = {"outlier_quantile": 1.0, "ns_coefficients": "muon", "normalization": "frobenius"}


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def copies(params: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def give_gradients(step: int, *lists: Sequence[nn.Parameter]) -> None:
    """Give the parameters of every list the same gradients, heavy-tailed and new at each step."""
    generator = torch.Generator().manual_seed(step)
    for same in zip(*lists, strict=True):
        gradient = torch.randn(same[0].shape, generator=generator) ** 3
        for p in same:
            p.grad = gradient.to(p.dtype, copy=True)


def orthogonalize(matrix: Tensor, coefficients: Any, **options: Any) -> Tensor:
    """Return the update of `newton_schulz` alone."""
    return newton_schulz(matrix, coefficients, **options).update


def mixed() -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Return matrices under ROOT, vectors and an embedding under AdamW, and their groups."""
    params = parameters([(8, 12), (8, 12), (12, 8), (6, 3, 2, 2), (5,), (5,), (), (9, 4)])
    return params, [{"params": params[:4]}, {"params": params[4:], "algorithm": "adamw", "lr": 1e-2}]
