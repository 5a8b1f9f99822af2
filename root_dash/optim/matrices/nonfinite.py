"""What a step does with gradients that are not finite, and what it costs: nothing, unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from root_dash.optim.matrices.shards import agreed, local

NonFinite: TypeAlias = Literal["propagate", "skip", "raise"]
NONFINITE: tuple[NonFinite, ...] = get_args(NonFinite)


def finite_flags(grads: Sequence[Tensor]) -> list[Tensor]:
    """Whether each gradient is finite throughout: 0-dimensional booleans on their devices; nothing waits for them.

    Of DTensors all parts are asked: a collective call.
    """
    here = [local(grad) for grad in grads]
    # The largest magnitude is NaN or infinite where any entry is; of no entries there is none.
    filled = [grad for grad in here if grad.numel()]
    norms = iter(torch._foreach_norm(filled, float("inf")) if filled else ())
    flags = [
        next(norms).isfinite() if grad.numel() else torch.ones((), dtype=torch.bool, device=grad.device)
        for grad in here
    ]
    return agreed(flags, grads)


def cleaned(grads: Sequence[Tensor], finite: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, those that are not finite replaced by zeros; copies."""
    return [torch.where(flag, grad, 0.0) for grad, flag in zip(grads, finite, strict=True)]


def refuse_nonfinite(grads: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise before anything has changed; waits for the device, as it must.

    Raises:
        FloatingPointError: a gradient holds a NaN or an infinity; names the first parameters that do.
    """
    if not grads:
        return
    flags = torch.stack([flag.cpu() for flag in finite_flags(grads)])
    if not flags.all():
        bad = [name for name, fine in zip(names, flags.tolist(), strict=True) if not fine]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise FloatingPointError(
            f"gradients must be finite with nonfinite='raise', got NaN or Inf in {', '.join(bad[:5])}{more}; "
            "no parameter was changed"
        )
