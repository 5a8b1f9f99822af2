"""AdamW for the parameters that ROOT leaves alone: vectors, embeddings and the output head.

The arithmetic is torch's own, in its fused kernel where the device has one. What an observer is shown of it is read off
the state afterwards, so that being watched changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from root_dash.optim.matrices.batches import as_matrix, equal_shaped
from root_dash.optim.observation import Observation, Observer


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],  # 0-dimensional, float32, where `step_device` says
    *,
    lr: float | Tensor,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    maximize: bool,
    capturable: bool = False,
    finite: Sequence[Tensor] | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Advance the parameters and their state by one step.

    `finite` are 0-dimensional booleans, one per parameter: where False, the parameter and its state stay as they are.

    Raises:
        RuntimeError: `finite` is given and the device has no fused kernel.
    """
    if not params:
        return
    own = params
    fused = _has_fused(params)
    if finite is not None and not fused:
        raise RuntimeError(f"nonfinite='skip' needs a fused AdamW, which torch lacks on {params[0].device.type}")
    weights = _stacks(params) if observers else []
    # The fused kernel walks through all four in the order of their memory, whatever their strides say.
    apart = [
        i
        for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
        if not all(tensor.is_contiguous() for tensor in tensors)
    ]
    strided = [[of[i] for i in apart] for of in (params, exp_avgs, exp_avg_sqs)]
    if apart:
        params, grads, exp_avgs, exp_avg_sqs = (
            [tensor.contiguous() if i in apart else tensor for i, tensor in enumerate(of)]
            for of in (params, grads, exp_avgs, exp_avg_sqs)
        )
    # One call takes one flag, so that parameters which may be skipped are stepped one by one.
    calls = [slice(0, len(params))] if finite is None else [slice(i, i + 1) for i in range(len(params))]
    for call in calls:
        torch_adamw(
            params[call],
            grads[call],
            exp_avgs[call],
            exp_avg_sqs[call],
            [],
            steps[call],
            fused=fused or None,
            capturable=capturable,
            found_inf=None if finite is None else (~finite[call.start]).float(),
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
        )
    for originals, of in zip(strided, (params, exp_avgs, exp_avg_sqs), strict=True):
        for original, i in zip(originals, apart, strict=True):
            if original is not of[i]:
                original.copy_(of[i])
    for indices, weight in zip(equal_shaped(params) if observers else (), weights, strict=True):
        momentum = torch.stack([as_matrix(exp_avgs[i]) for i in indices])
        observation = Observation(
            parameters=tuple(own[i] for i in indices),
            pieces=(0,) * len(indices),
            algorithm="adamw",
            gradient=tuple(as_matrix(grads[i]) for i in indices),
            weight=tuple(weight),
            momentum=momentum,
            threshold=None,
            base=None,
            update=_update(
                momentum,
                torch.stack([as_matrix(exp_avg_sqs[i]) for i in indices]),
                torch.stack([steps[i].to(params[i].device, non_blocking=True) for i in indices]).view(-1, 1, 1),
                betas,
                eps,
            ),
            lr=lr,
        )
        for observe in observers:
            observe(observation)


def step_device(param: Tensor) -> torch.device:
    """Where the count of a parameter's steps lives: beside it where the kernel is fused."""
    return param.device if _has_fused([param]) else torch.device("cpu")


def _update(momentum: Tensor, square: Tensor, steps: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """m̂ / (√v̂ + eps) of averages (L, rows, cols) after `steps` (L, 1, 1), in float32 or wider.

    In float16 eps were 0, and what never had a gradient 0 / 0.
    """
    wide = torch.promote_types(momentum.dtype, torch.float32)
    corrections = [(1 - torch.pow(beta, steps.double())).to(wide) for beta in betas]
    return momentum.to(wide) / corrections[0] / ((square.to(wide) / corrections[1]).sqrt() + eps)


def _stacks(params: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack([as_matrix(params[i]) for i in indices]) for indices in equal_shaped(params)]


def _has_fused(params: Sequence[Tensor]) -> bool:
    devices = _get_fused_kernels_supported_devices()
    return all(param.device.type in devices and param.is_floating_point() for param in params)
