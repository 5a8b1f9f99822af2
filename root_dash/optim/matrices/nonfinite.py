"""Gradients with NaN or infinity: how a step finds them, skips them or refuses them, if the user asks for a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from root_dash.optim.matrices.shards import agree, local

NonFinite: TypeAlias = Literal["propagate", "skip", "raise"]
NONFINITE: tuple[NonFinite, ...] = get_args(NonFinite)


def finite_flags(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return whether all entries of each gradient are finite: booleans of no dimension on the gradients' devices.

    The host does not wait for the devices. For DTensors all shards count, which makes this a collective call.
    """
    here = [local(grad) for grad in grads]
    # The largest magnitude is NaN or infinite if any entry is. A gradient without entries has none.
    filled = [grad for grad in here if grad.numel()]
    norms = iter(torch._foreach_norm(filled, float("inf")) if filled else ())
    flags = [
        next(norms).isfinite() if grad.numel() else torch.ones((), dtype=torch.bool, device=grad.device)
        for grad in here
    ]
    return agree(flags, grads)


def zero_nonfinite(grads: Sequence[Tensor], finite: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the gradients, with zeros in place of every gradient that is not finite."""
    return [torch.where(flag, grad, 0.0) for grad, flag in zip(grads, finite, strict=True)]


def refuse_nonfinite(grads: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise an error if a gradient is not finite, before anything has changed. The host waits for the device.

    Raises:
        FloatingPointError: a gradient holds NaN or infinity. The message names the first five such parameters.
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
