"""A small byte-level GPT: RMSNorm, rotary attention, and an MLP with squared ReLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from root_dash.demo.text import VOCABULARY


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model: its width d, number of blocks, heads per block, and tokens of context."""

    width: int
    depth: int
    heads: int
    context: int


class Attention(nn.Module):
    """Causal self-attention with rotary positions. Each of the four projections is a layer of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q, self.k, self.v, self.out = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:  # (batch, tokens, width)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v, is_causal=True)
        mixed = mixed.transpose(1, 2).flatten(-2)
        return self.out(mixed)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """A transformer block: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(shape.width)
        self.attn = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rotation)
        hidden = functional.relu(self.up(self.mlp_norm(x))).square()
        return x + self.down(hidden)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A GPT that maps bytes (batch, tokens) to the logits of the next byte (batch, tokens, 256)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, shape.width)
        self.blocks = nn.ModuleList(TransformerBlock(shape) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        self.register_buffer("rotation", _rotation(shape.width // shape.heads, shape.context), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # As in GPT-2, a layer that writes into the residual stream starts smaller in a deeper model.
                residual = name.endswith(("attn.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.depth) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        rotation = self.get_buffer("rotation")[: tokens.shape[1]]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, rotation)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def _rotation(head_width: int, context: int) -> Tensor:
    """Return the cosine and sine of every position and frequency: (context, 2, head_width / 2)."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, head_width // 2)
    angles = torch.arange(context).unsqueeze(1) * frequencies
    return torch.stack([angles.cos(), angles.sin()], 1)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of entries of x (..., tokens, head_width) by the angles of `_rotation`."""
    cosine, sine = rotation.to(x.dtype).unbind(1)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
