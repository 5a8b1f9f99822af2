"""AdamW for the parameters that ROOT leaves alone: vectors, embeddings and the output head.

The arithmetic is torch's own, in a fused kernel if torch has a kernel for the device. Observers are shown the state
after the step, and change nothing.
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
    steps: list[Tensor],  # of no dimension, float32, on `step_device`
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

    `finite` has a boolean of no dimension per parameter. If False, the parameter and its state do not change.

    Raises:
        RuntimeError: `finite` is given and the device has no fused kernel.
    """
    if not params:
        return
    originals = params
    fused = _has_fused(params)
    if finite is not None and not fused:
        raise RuntimeError(f"nonfinite='skip' needs a fused AdamW, which torch lacks on {params[0].device.type}")
    seen = equal_shaped(params) if observers else []
    weights = [torch.stack([as_matrix(params[i]) for i in indices]) for indices in seen]
    # The fused kernel walks through all four tensors in the order of memory and ignores their strides.
    apart = [
        i
        for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
        if not all(tensor.is_contiguous() for tensor in tensors)
    ]
    strided = [[tensors[i] for i in apart] for tensors in (params, exp_avgs, exp_avg_sqs)]
    if apart:
        params, grads, exp_avgs, exp_avg_sqs = (
            [tensor.contiguous() if i in apart else tensor for i, tensor in enumerate(tensors)]
            for tensors in (params, grads, exp_avgs, exp_avg_sqs)
        )
    # A call takes a single flag: with flags every parameter is stepped alone.
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
    for targets, copies in zip(strided, (params, exp_avgs, exp_avg_sqs), strict=True):
        for target, i in zip(targets, apart, strict=True):
            if target is not copies[i]:
                target.copy_(copies[i])
    for indices, weight in zip(seen, weights, strict=True):
        momentum = torch.stack([as_matrix(exp_avgs[i]) for i in indices])
        observation = Observation(
            parameters=tuple(originals[i] for i in indices),
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
    """Return the device of the step count of a parameter: the parameter's own if the kernel is fused, else the CPU."""
    return param.device if _has_fused([param]) else torch.device("cpu")


def _update(momentum: Tensor, square: Tensor, steps: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Return m̂ / (√v̂ + eps) of averages (L, rows, cols) after `steps` (L, 1, 1), in float32 or wider.

    In float16 eps would be 0, and an entry without any gradient 0 / 0.
    """
    wide = torch.promote_types(momentum.dtype, torch.float32)
    corrections = [(1 - torch.pow(beta, steps.double())).to(wide) for beta in betas]
    return momentum.to(wide) / corrections[0] / ((square.to(wide) / corrections[1]).sqrt() + eps)


def _has_fused(params: Sequence[Tensor]) -> bool:
    devices = _get_fused_kernels_supported_devices()
    return all(param.device.type in devices and param.is_floating_point() for param in params)
