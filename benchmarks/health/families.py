"""Families of small trainings: many layers of few entries, so that a million layer-steps cost minutes.

A family draws its widths, depths, activations, norms and data from a seed: two trainings of a family are as different
as two users' models, and not one model with two seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from root_dash.demo.model import GPT, Shape
from root_dash.demo.text import standard_library

Draw = random.Random
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.relu, functional.gelu, functional.silu, torch.tanh, functional.leaky_relu,
)  # fmt: skip


@dataclass
class Task:
    """A model and how it is trained."""

    model: nn.Module
    loss: Callable[[nn.Module, int, torch.Generator | None], Tensor]
    """The training loss of the model on a random batch of about so many examples."""
    lr: float = 1.0
    """Factor of the optimizer's usual learning rate."""
    batch: int = 32


class ResidualMLP(nn.Module):
    """A deep residual network of narrow layers."""

    def __init__(self, draw: Draw, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        width, depth = draw.choice((8, 12, 16, 24)), draw.randrange(10, 32)
        self.first, self.head = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=draw.random() < 0.8) for _ in range(depth))
        kind = draw.choice(("last", "all", "all", "none"))
        norm = draw.choice((nn.LayerNorm, nn.RMSNorm))
        self.norms = nn.ModuleList(norm(width) if kind == "all" else nn.Identity() for _ in range(depth))
        self.norm = nn.Identity() if kind == "none" else norm(width)
        self.act, self.dropout, self.share = draw.choice(ACTIVATIONS), nn.Dropout(dropout), draw.uniform(0.1, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = x + self.share * self.dropout(self.act(layer(norm(x))))
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """A residual network of convolutions with batch or group normalization."""

    def __init__(self, draw: Draw, dropout: float) -> None:
        super().__init__()
        width, depth = draw.choice((6, 8, 12)), draw.randrange(4, 14)
        batched = draw.random() < 0.6
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, track_running_stats=False) if batched else nn.GroupNorm(2, width)
            for _ in range(depth)
        )  # fmt: skip
        self.head, self.dropout, self.act = nn.Linear(width, 10), nn.Dropout(dropout), draw.choice(ACTIVATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + self.act(norm(conv(x)))
        return self.head(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent network over bytes."""

    def __init__(self, draw: Draw, dropout: float) -> None:
        super().__init__()
        width, depth = draw.choice((12, 16, 24)), draw.randrange(1, 4)
        self.embed, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        kind: type[nn.GRU | nn.LSTM] = draw.choice((nn.GRU, nn.LSTM))
        self.rnn = kind(width, width, num_layers=depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])  # type: ignore[no-any-return]


class Language(nn.Module):
    """The demo's GPT with dropout, its output tied to its input or not."""

    def __init__(self, draw: Draw, dropout: float) -> None:
        super().__init__()
        self.gpt = GPT(Shape(draw.choice((16, 24, 32)), draw.randrange(2, 7), 2, 16))
        self.dropout = nn.Dropout(dropout)
        if draw.random() < 0.3:
            self.gpt.head.weight = self.gpt.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        rotation = self.gpt.get_buffer("rotation")[: x.shape[1]]
        x = self.dropout(self.gpt.embed(x))
        for block in self.gpt.blocks:
            x = block(x, rotation)
        return self.gpt.head(self.gpt.norm(x))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """Blocks of experts of which each example uses one: some get no example in some steps."""

    def __init__(self, draw: Draw, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        width, blocks, self.count = draw.choice((8, 12)), draw.randrange(2, 5), draw.choice((4, 8))
        self.first, self.head = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.routers = nn.ModuleList(nn.Linear(width, self.count, bias=False) for _ in range(blocks))
        self.experts = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(self.count)) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for router, experts, norm in zip(self.routers, self.experts, self.norms, strict=True):
            hidden = norm(x)
            weight, chosen = router(hidden).softmax(-1).max(-1)
            mine = (chosen[:, None] == torch.arange(self.count)) * weight[:, None]
            out = sum(mine[:, i, None] * expert(hidden).relu() for i, expert in enumerate(experts))  # type: ignore[arg-type]
            x = x + self.dropout(out)
        return self.head(x)  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """A frozen residual network with low-rank adapters whose second factor begins at 0."""

    def __init__(self, draw: Draw, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.base = ResidualMLP(draw, inputs, outputs, dropout).requires_grad_(False)
        width, rank = self.base.first.out_features, draw.choice((2, 4))
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in self.base.hidden)
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in self.base.hidden)
        for layer in self.up:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        x = base.first(x)
        for layer, norm, down, up in zip(base.hidden, base.norms, self.down, self.up, strict=True):
            hidden = norm(x)
            x = x + base.share * base.act(layer(hidden) + up(down(hidden)))
        return base.head(base.norm(x))  # type: ignore[no-any-return]


class Recommender(nn.Module):
    """Embeddings of which a batch touches few rows, and a network on top."""

    def __init__(self, draw: Draw, dropout: float) -> None:
        super().__init__()
        width = draw.choice((4, 8))
        self.tables = nn.ModuleList(nn.Embedding(draw.choice((100, 300, 1000)), width) for _ in range(6))
        self.top = ResidualMLP(draw, 6 * width, 1, dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows = [table(x[:, i] % table.num_embeddings) for i, table in enumerate(self.tables)]  # type: ignore[operator]
        return self.top(torch.cat(rows, -1))  # type: ignore[no-any-return]


class Adversaries(nn.Module):
    """A generator and a discriminator that are trained against each other in the same step."""

    def __init__(self, draw: Draw, dropout: float) -> None:
        super().__init__()
        self.generator, self.discriminator = ResidualMLP(draw, 4, 2, dropout), ResidualMLP(draw, 2, 1, dropout)

    def forward(self, noise: Tensor, real: Tensor) -> Tensor:
        fake = self.generator(noise)
        # The difference is `fake` with its gradient's sign turned: what one part lowers the other part raises.
        judged = self.discriminator(torch.cat([real, 2.0 * fake.detach() - fake]))
        return functional.binary_cross_entropy_with_logits(
            judged[:, 0], (torch.arange(len(judged)) < len(real)).float()
        )


def _classify(draw: Draw, teacher: torch.Generator) -> Callable[[nn.Module, int, torch.Generator | None], Tensor]:
    first, second = torch.randn(16, 32, generator=teacher), torch.randn(32, 10, generator=teacher)
    noise = draw.choice((0.1, 0.5, 1.5))

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        x = torch.randn(size, 16, generator=generator)
        logits = (x @ first / 4).relu() @ second + noise * torch.randn(size, 10, generator=generator)
        return functional.cross_entropy(model(x), logits.argmax(-1))

    return loss


def _mlp(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    return Task(ResidualMLP(draw, 16, 10, dropout), _classify(draw, teacher))


def _experts(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    return Task(Experts(draw, 16, 10, dropout), _classify(draw, teacher))


def _lora(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    return Task(Adapted(draw, 16, 10, dropout), _classify(draw, teacher))


def _regression(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    """A target that can be fitted: the loss falls by orders of magnitude."""
    mix, noise = torch.randn(8, 4, generator=teacher) / 3, draw.choice((0.0, 0.01, 0.3))

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        x = torch.randn(size, 8, generator=generator)
        return functional.mse_loss(model(x), x @ mix + noise * torch.randn(size, 4, generator=generator))

    return Task(ResidualMLP(draw, 8, 4, dropout), loss)


def _policy(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    """Policy gradients of a bandit with contexts: few examples, a loss around zero, and mostly noise."""
    reward = torch.randn(16, 10, generator=teacher)

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        x = torch.randn(size, 16, generator=generator)
        chances = model(x).log_softmax(-1)
        actions = torch.multinomial(chances.detach().exp(), 1, generator=generator)
        gains = (x @ reward).gather(1, actions) + torch.randn(size, 1, generator=generator)
        return (
            -((gains - gains.mean()) * chances.gather(1, actions)).mean()
            + 0.01 * (chances.exp() * chances).sum(-1).mean()
        )

    return Task(ResidualMLP(draw, 16, 10, dropout), loss, lr=0.5, batch=draw.choice((8, 16, 64)))


def _conv(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    prototypes = torch.randn(10, 3, 6, 6, generator=teacher)

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        labels = torch.randint(10, (size,), generator=generator)
        images = 0.5 * prototypes[labels] + torch.randn(size, 3, 6, 6, generator=generator)
        return functional.cross_entropy(model(images), labels)

    return Task(ConvNet(draw, dropout), loss, batch=draw.choice((16, 32)))


def _words(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
    inputs, targets = _text().batch(max(2, size // 4), 16, generator)
    return functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def _gpt(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    return Task(Language(draw, dropout), _words)


def _rnn(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    return Task(Recurrent(draw, dropout), _words)


def _recommender(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    taste = torch.randn(1000, generator=teacher)
    skew = draw.uniform(1.0, 4.0)

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        rows = (1000 * torch.rand(size, 6, generator=generator) ** skew).long()
        clicks = taste[rows].sum(-1) + torch.randn(size, generator=generator) > 0
        return functional.binary_cross_entropy_with_logits(model(rows)[:, 0], clicks.float())

    return Task(Recommender(draw, dropout), loss)


def _adversaries(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    turn = torch.randn(2, 2, generator=teacher)

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        angles = 6.283 * torch.rand(size, generator=generator)
        real = torch.stack([angles.cos(), angles.sin()], -1) @ turn
        return model(torch.randn(size, 4, generator=generator), real)  # type: ignore[no-any-return]

    return Task(Adversaries(draw, dropout), loss, lr=0.3)


def _contrast(draw: Draw, teacher: torch.Generator, dropout: float) -> Task:
    """Pairs of views that have to find each other in the batch."""
    scale = draw.uniform(0.2, 0.6)

    def loss(model: nn.Module, size: int, generator: torch.Generator | None) -> Tensor:
        x = torch.randn(size, 16, generator=generator)
        views = [x + scale * torch.randn(size, 16, generator=generator) for _ in range(2)]
        first, second = (functional.normalize(model(view), dim=-1) for view in views)
        return functional.cross_entropy(first @ second.T / 0.2, torch.arange(size))

    return Task(ResidualMLP(draw, 16, 12, dropout), loss)


FAMILIES: dict[str, Callable[[Draw, torch.Generator, float], Task]] = {
    "mlp": _mlp,
    "gpt": _gpt,
    "conv": _conv,
    "rnn": _rnn,
    "experts": _experts,
    "lora": _lora,
    "regression": _regression,
    "policy": _policy,
    "recommender": _recommender,
    "adversaries": _adversaries,
    "contrast": _contrast,
}
"""The families by name: what makes a training of a draw, a generator for its data's law, and a share of dropout."""

LEARNING_RATES: dict[str, dict[str, float]] = {
    "root": {"conv": 5e-3, "gpt": 5e-3, "rnn": 5e-3},
    "muon": {"conv": 5e-3, "gpt": 5e-3, "rnn": 5e-3},
    "adamw": {"conv": 3e-3, "gpt": 4e-3, "rnn": 4e-3},
    "sgd": {"conv": 3e-2, "gpt": 1e-1, "rnn": 3e-1},
}
USUAL_RATES = {"root": 3e-3, "muon": 3e-3, "adamw": 2e-3, "sgd": 2e-2}

_text = cache(standard_library)
