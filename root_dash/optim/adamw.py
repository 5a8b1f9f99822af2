"""AdamW for the parameters that ROOT leaves alone: vectors, embeddings and the output head.

The arithmetic of `torch.optim.AdamW`, operation for operation, opened up between the state and the weights so that an
observer sees the update before it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from root_dash.optim.batches import as_matrix, decay, equal_shaped
from root_dash.optim.observation import Observation, Observer


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],  # 0-dimensional, on the host
    *,
    lr: float | Tensor,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    maximize: bool,
    observers: Sequence[Observer] = (),
) -> None:
    """Advance the parameters and their state by one step."""
    if not params:
        return
    beta1, beta2 = betas
    seen = grads
    if maximize:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    counts = [step.item() for step in steps]
    corrections1 = [1 - beta1**count for count in counts]
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(denominators, eps)

    if observers:
        updates = torch._foreach_div(exp_avgs, denominators)
        torch._foreach_div_(updates, corrections1)
        for indices in equal_shaped(params):
            observation = Observation(
                parameters=tuple(params[i] for i in indices),
                algorithm="adamw",
                gradient=torch.stack([as_matrix(seen[i]) for i in indices]),
                momentum=torch.stack([as_matrix(exp_avgs[i]) for i in indices]),
                threshold=None,
                base=None,
                update=torch.stack([as_matrix(updates[i]) for i in indices]),
                lr=lr,
            )
            for observe in observers:
                observe(observation)

    decay(params, lr, weight_decay)
    if isinstance(lr, Tensor):
        for param, exp_avg, denominator, correction in zip(params, exp_avgs, denominators, corrections1, strict=True):
            param.sub_(exp_avg / denominator * (lr / correction))
    else:
        torch._foreach_addcdiv_(params, exp_avgs, denominators, [-(lr / correction) for correction in corrections1])
