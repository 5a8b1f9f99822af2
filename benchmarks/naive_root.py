"""ROOT by the formulas of its paper, a parameter at a time: the yardstick of the benchmarks.

He et al., https://arxiv.org/abs/2511.20626: heavy-ball momentum with Nesterov's look-ahead, ε the quantile of |M| from
two order statistics, outliers by soft thresholding, five Newton-Schulz steps with one (a, b, c) per shape after a
division by the Frobenius norm, in the parameter's own dtype. For comparison only: the square set diverges beyond five
steps. Nothing is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from root_dash.coefficients.tables import resolve

STEPS = 5


class NaiveROOT(torch.optim.Optimizer):
    """M <- μ M + G; B = M - T_ε[M]; θ <- (1 - η λ) θ - η 0.2 sqrt(max(m, n)) NS(B), for 2-D parameters."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        outlier_quantile: float = 0.9,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "outlier_quantile": outlier_quantile,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every parameter with a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter, dtype=torch.float32)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(parameter.grad)
                ahead = parameter.grad.add(buffer, alpha=group["momentum"])
                base = ahead - soft_threshold(ahead, quantile(ahead.abs(), group["outlier_quantile"]))
                update = newton_schulz(base.to(parameter.dtype))
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def quantile(magnitude: Tensor, q: float) -> Tensor:
    """Return the q-quantile of all entries, linear between the two nearest order statistics."""
    flat = magnitude.flatten()
    position = q * (flat.numel() - 1)
    rank = int(position)
    lower: Tensor = flat.kthvalue(rank + 1).values
    upper = flat.kthvalue(min(rank + 2, flat.numel())).values
    return lower.lerp(upper, position - rank)


def soft_threshold(matrix: Tensor, eps: Tensor) -> Tensor:
    """Return T_ε[x] = sign(x) max(|x| - ε, 0)."""
    return matrix.sign() * (matrix.abs() - eps).clamp(min=0)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Apply X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X five times to B / ‖B‖_F, with the published set nearest in shape."""
    tall = matrix.shape[0] > matrix.shape[1]
    X = matrix.mT if tall else matrix
    X = X / (X.norm() + 1e-7)
    for a, b, c in resolve("paper", STEPS, (X.shape[0], X.shape[1])):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X
