"""A model with every kind of parameter, and its gradients, whole and sharded, for tests of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor

from root_dash.optim import ROOT


class Model(nn.Module):
    """Every kind of parameter: square, tall, wide and fused matrices, kernels, experts, an embedding and vectors.

    No dimension is divisible by 2 and by 3; some first dimensions are smaller than 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.kernel = nn.Conv1d(16, 10, 2, padding="same")
        self.up = nn.Linear(10, 16)
        self.up_again = nn.Linear(10, 16, bias=False)
        self.square = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.experts = nn.Parameter(torch.randn(2, 8, 16) / 4)
        self.odd = nn.Linear(8, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.kernel(self.embedding(tokens).mT).mT
        x = torch.tanh(self.up(x) + self.up_again(x))
        for layer in self.square:
            x = x + torch.tanh(layer(x))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.mT, -1) @ v
        x = torch.tanh(torch.einsum("btd,eod->bto", x, self.experts))
        loss: Tensor = self.head(torch.tanh(self.odd(x))).square().mean()
        return loss


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return five groups: plain (calibrated every two steps), fused, experts, one by one, and AdamW."""
    named = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    special: dict[str, dict[str, Any]] = {
        "qkv.weight": {"split_sizes": (16, 16, 16)},
        "experts": {"batch_ndim": 1},
        "odd.weight": {"foreach": False},
    }
    adamw = [name for name, p in named.items() if p.ndim < 2 or name in ("embedding.weight", "head.weight")]
    plain = [name for name in named if name not in special and name not in adamw]
    return [
        {"params": [named[name] for name in plain], "calibrate_every": 2},
        *[{"params": [named[name]], **options} for name, options in special.items()],
        {"params": [named[name] for name in adamw], "algorithm": "adamw", "lr": 0.01},
    ]


def optimizer(model: nn.Module, **options: Any) -> ROOT:
    return ROOT(groups(model), lr=0.02, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights, gathered: a collective call."""
    return {name.removeprefix("module."): whole(p).clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> list[Tensor]:
    """Return all gradients, gathered: a collective call."""
    return [whole(p.grad).clone() for p in model.parameters() if p.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def momenta(model: nn.Module, optimizer: ROOT) -> dict[str, Tensor]:
    return {
        f"{name.removeprefix('module.')}.{key}": whole(value).clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
    }


def tokens(step: int, rank: int) -> Tensor:
    """Return a batch that differs between ranks."""
    return torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(100 * step + rank))


def drawn(shapes: Sequence[Sequence[int]], step: int) -> list[Tensor]:
    """Return gradients that are equal on every rank."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(*shape, generator=generator) ** 3 for shape in shapes]


def give(params: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    """Give parameters their gradients, sharded as the parameters."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = cut(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad.clone()


def cut(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
