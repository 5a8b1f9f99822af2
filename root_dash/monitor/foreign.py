"""Any optimizer but ROOT, seen through its step hooks: gradients before the step, momentum after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.measure import Batch, outliers_of, weight_norms
from root_dash.optim.batches import as_matrix, matrix_shape
from root_dash.optim.shards import is_dtensor, local

MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")
"""Under which names optimizers keep their momentum: SGD and the Muon family, and the Adam family."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Parameters of one shape, their gradients (L, rows, cols), and the norms of their weights (L,).

    Of sharded ones this is what the process holds, and `shard_of` their matrices' shape.
    """

    parameters: list[Tensor]
    gradient: Tensor
    weight_norm: Tensor
    shard_of: tuple[int, int] | None


class ForeignOptimizer:
    """Collects what an optimizer shows of itself around a step.

    The gradient is what the optimizer is about to see, after accumulation and clipping; it is copied before the step
    since some optimizers write into it. The momentum is read from the state after the step. Outliers are those of the
    momentum at the recorder's quantile; the update is not offered, so what depends on it is not recorded. Of parameters
    that are DTensors each process sees its shards, and none the outliers.
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
            yield self._batch(one)

    def _look(self) -> list[Seen]:
        alike: dict[tuple[object, ...], list[Tensor]] = {}
        for parameter in self._watched():
            held = local(parameter)
            if held.numel():
                key = (parameter.shape, is_dtensor(parameter), held.shape, parameter.dtype, parameter.device)
                alike.setdefault(key, []).append(parameter)
        # Fused optimizers undo the loss scale of a GradScaler themselves, within the step.
        scale = getattr(self._optimizer, "grad_scale", None)
        seen: list[Seen] = []
        for parameters in alike.values():
            gradient = _stacked(p.grad for p in parameters if p.grad is not None)
            if isinstance(scale, Tensor):
                gradient = gradient / local(scale).to(gradient.device, non_blocking=True)
            shard_of = matrix_shape(parameters[0].shape) if is_dtensor(parameters[0]) else None
            seen.append(Seen(parameters, gradient, weight_norms(map(local, parameters)), shard_of))
        return seen

    def _watched(self) -> list[Tensor]:
        return [
            parameter
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter in self._positions
            and parameter.grad is not None
            and not parameter.grad.is_sparse
            and _cut_alike(parameter, parameter.grad)
        ]

    def _batch(self, seen: Seen) -> Batch:
        positions = tuple(self._positions[p] for p in seen.parameters)
        momenta = [self._momentum(p) for p in seen.parameters]
        known = not any(momentum is None for momentum in momenta)
        momentum = _stacked(m for m in momenta if m is not None) if known else None
        if momentum is None or seen.shard_of is not None:
            return Batch(positions, seen.gradient, seen.weight_norm, momentum, shard_of=seen.shard_of)
        base, threshold = outliers_of(momentum, self._outlier_quantile)
        return Batch(positions, seen.gradient, seen.weight_norm, momentum, threshold, base)

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        state = self._optimizer.state.get(parameter, {})
        found = (state[key] for key in MOMENTUM_KEYS if isinstance(state.get(key), Tensor))
        fits = (tensor for tensor in found if tensor.shape == parameter.shape and _cut_alike(parameter, tensor))
        return next(fits, None)


def _cut_alike(parameter: Tensor, tensor: Tensor) -> bool:
    """Whether a process holds the same part of both: what lies elsewhere could only be had by communicating."""
    if not is_dtensor(parameter) or not is_dtensor(tensor):
        return is_dtensor(parameter) == is_dtensor(tensor)
    return parameter.placements == tensor.placements


def _stacked(tensors: Iterable[Tensor]) -> Tensor:
    """What is here of tensors of one shape, as (L, rows, cols)."""
    return torch.stack([as_matrix(local(tensor).detach()) for tensor in tensors])
