"""Any optimizer but ROOT, seen through its step hooks: gradients before the step, momentum after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.measure import Batch, outliers_of, weight_norms
from root_dash.optim.batches import as_matrix, equal_shaped

MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")
"""Under which names optimizers keep their momentum: SGD and the Muon family, and the Adam family."""


Seen = tuple[list[Tensor], Tensor, Tensor]
"""Parameters of one shape, their gradients (L, rows, cols), and the norms of their weights (L,)."""


class ForeignOptimizer:
    """Collects what an optimizer shows of itself around a step.

    The gradient is what the optimizer is about to see, after accumulation and clipping; it is copied before the step
    since some optimizers write into it. The momentum is read from the state after the step. Outliers are those of the
    momentum at the recorder's quantile; the update is not offered, so what depends on it is not recorded.
    """

    def __init__(self, optimizer: Optimizer, positions: Mapping[Tensor, int], outlier_quantile: float) -> None:
        self._optimizer = optimizer
        self._positions = positions
        self._outlier_quantile = outlier_quantile
        self._seen: list[Seen] | None = None
        self._due = False

    def before_step(self, *, closure: bool) -> None:
        """Copy the gradients of the watched parameters and take the norms of their weights.

        Given a closure, the step itself makes the gradients: they are read after it, and so are the weights.
        """
        self._seen = None if closure else self._look()
        self._due = True

    def after_step(self) -> Iterator[Batch]:
        """What was seen of the step, in batches of equal shape; nothing where `before_step` was not called."""
        due, self._due = self._due, False
        seen, self._seen = self._seen, None
        for one in (self._look() if seen is None else seen) if due else ():
            yield self._batch(*one)

    def _look(self) -> list[Seen]:
        watched = self._watched()
        # Fused optimizers undo the loss scale of a GradScaler themselves, within the step.
        scale = getattr(self._optimizer, "grad_scale", None)
        seen: list[Seen] = []
        for indices in equal_shaped(watched):
            parameters = [watched[i] for i in indices]
            gradient = _stacked(p.grad for p in parameters if p.grad is not None)
            if isinstance(scale, Tensor):
                gradient = gradient / scale.to(gradient.device, non_blocking=True)
            seen.append((parameters, gradient, weight_norms(parameters)))
        return seen

    def _watched(self) -> list[Tensor]:
        return [
            parameter
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter in self._positions and parameter.grad is not None and not parameter.grad.is_sparse
        ]

    def _batch(self, parameters: list[Tensor], gradient: Tensor, weight_norm: Tensor) -> Batch:
        positions = tuple(self._positions[p] for p in parameters)
        momenta = [self._momentum(p) for p in parameters]
        if any(momentum is None for momentum in momenta):
            return Batch(positions, gradient, weight_norm)
        momentum = _stacked(m for m in momenta if m is not None)
        base, threshold = outliers_of(momentum, self._outlier_quantile)
        return Batch(positions, gradient, weight_norm, momentum, threshold, base)

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        state = self._optimizer.state.get(parameter, {})
        found = (state[key] for key in MOMENTUM_KEYS if isinstance(state.get(key), Tensor))
        return next((tensor for tensor in found if tensor.shape == parameter.shape), None)


def _stacked(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors of one shape as (L, rows, cols)."""
    return torch.stack([as_matrix(tensor.detach()) for tensor in tensors])
