"""The GPT of the demo: causal, aware of positions, and of the sizes that the presets claim."""

from __future__ import annotations

import torch

from root_dash.demo.model import GPT, Shape
from root_dash.demo.train import PRESETS

SMALL = Shape(width=32, depth=2, heads=4, context=16)


def logits(tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of a small model with fixed weights, scaled up so that attention is not uniform."""
    torch.manual_seed(0)
    model = GPT(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
        output: torch.Tensor = model(tokens)
    return output


def test_a_byte_does_not_see_what_follows_it() -> None:
    """Changing the last byte changes no logit before it."""
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    torch.testing.assert_close(logits(tokens)[:, :-1], logits(changed)[:, :-1])
    assert not torch.allclose(logits(tokens)[:, -1], logits(changed)[:, -1])


def test_the_order_of_bytes_matters() -> None:
    """Swapping two earlier bytes changes the last logits, so the model sees positions."""
    tokens = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(1))
    swapped = tokens.clone()
    swapped[:, [2, 5]] = swapped[:, [5, 2]]
    assert not torch.allclose(logits(tokens)[:, -1], logits(swapped)[:, -1], atol=1e-4)


def test_presets_have_the_sizes_they_claim() -> None:
    """The presets have about 0.85 M, 11 M and 100 M parameters."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in GPT(preset.shape).parameters()) for name, preset in PRESETS.items()}
    assert 0.8e6 < sizes["tiny"] < 0.9e6
    assert 10e6 < sizes["small"] < 12e6
    assert 95e6 < sizes["gpu"] < 105e6
