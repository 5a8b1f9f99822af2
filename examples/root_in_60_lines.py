"""ROOT in about 60 lines of code: the reference implementation, with one plain function per idea.

`root_dash.optim.ROOT` batches matrices, saves products and runs kernels. Here nothing is fast, and every formula can be
read. The tests compare the two. He et al., ROOT, https://arxiv.org/abs/2511.20626.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The start of ns_coefficients="adaptive" in float32 and float64: one (a, b, c) per Newton-Schulz step.
ROBUST = (
    (5.00958, -14.54507, 10.57794),
    (4.59401, -9.41639, 4.86652),
    (4.22334, -6.93890, 2.95401),
    (3.02622, -4.02396, 1.54716),
    (2.72731, -3.29354, 1.53867),
)


def clip_outliers(M: Tensor, quantile: float) -> Tensor:
    """Limit the entries of M (m, n) to [-ε, ε], where ε is a quantile of their magnitudes."""
    epsilon = torch.quantile(M.abs(), quantile)
    return M.clamp(-epsilon, epsilon)


def schatten8(X: Tensor) -> Tensor:
    """Return 1.003 (Σ σ⁸)^(1/8), which is at least the largest singular value σ: ‖(X Xᵀ)²‖_F^(1/4)."""
    gram = X @ X.mT
    norm: Tensor = torch.linalg.matrix_norm(gram @ gram)
    return 1.003 * norm**0.25


def orthogonalize(
    B: Tensor, coefficients: Sequence[tuple[float, float, float]], norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Move all singular values of B (m, n) toward 1: X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X for every (a, b, c)."""
    X = B / norm(B)
    for a, b, c in coefficients:
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return X


def match_rms_adamw(rows: int, cols: int) -> float:
    """Return the factor of the learning rate that gives the update the root mean square of AdamW's."""
    return 0.2 * math.sqrt(max(rows, cols))


def root_step(
    weight: Tensor,
    gradient: Tensor,
    buffer: Tensor,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    quantile: float = 0.9,
    coefficients: Sequence[tuple[float, float, float]] = ROBUST,
    norm: Callable[[Tensor], Tensor] = schatten8,
    lr_scale: Callable[[int, int], float] = match_rms_adamw,
) -> tuple[Tensor, Tensor]:
    """Return the weight (m, n) and its momentum buffer (m, n) after one step. The first buffer is zero."""
    buffer = momentum * buffer + (1 - momentum) * gradient
    M = momentum * buffer + (1 - momentum) * gradient if nesterov else buffer
    update = orthogonalize(clip_outliers(M, quantile), coefficients, norm)
    return (1 - lr * weight_decay) * weight - lr * lr_scale(*weight.shape) * update, buffer


def main() -> None:
    """Learn a random linear map of noisy data, and print the loss."""
    torch.manual_seed(0)
    inputs, target = torch.randn(256, 32), torch.randn(32, 64)
    outputs = inputs @ target + 0.1 * torch.randn(256, 64)
    weight, buffer = torch.zeros(32, 64, requires_grad=True), torch.zeros(32, 64)
    for step in range(200):
        loss = (inputs @ weight - outputs).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        weight, buffer = root_step(weight.detach(), gradient, buffer, lr=0.3 * (1 - step / 200), weight_decay=0.0)
        weight.requires_grad_()
        if step % 40 == 0 or step == 199:
            print(f"step {step:3d}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
