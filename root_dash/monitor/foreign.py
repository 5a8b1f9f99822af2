"""Any optimizer but ROOT, seen through its step hooks: gradients before the step, momentum and update after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from root_dash.monitor import statistics
from root_dash.monitor.displacement import WEIGHT_BYTES, Displacement, displacement, stacked
from root_dash.monitor.measure import Batch, outliers_of
from root_dash.optim.batches import matrix_shape
from root_dash.optim.shards import is_dtensor, local
from root_dash.records import Kind

MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")
"""Under which names optimizers keep their momentum: SGD and the Muon family, and the Adam family."""


_Key = tuple[int, torch.Size, bool, torch.Size, torch.dtype, torch.device]
"""What parameters that are measured together have in common: their group, shape, shard, dtype and device."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Parameters of one shape and group, their gradients (L, rows, cols), and the norms of their weights (L,).

    Of sharded ones this is what the process holds, and `shard_of` their matrices' shape. `displacement` knows what the
    weights were, where the update is due.
    """

    parameters: list[Tensor]
    group: Mapping[str, Any]
    gradient: Tensor
    weight_norm: Tensor
    shard_of: tuple[int, int] | None
    displacement: Displacement | None


class ForeignOptimizer:
    """Collects what an optimizer shows of itself around a step.

    The gradient is what the optimizer is about to see, after accumulation and clipping; it is copied before the step
    since some optimizers write into it. The momentum is read from the state after the step; torch's Muon's is corrected
    as Nesterov has it, where it does so. Outliers are those of the momentum at the recorder's quantile. The update is
    what the weights were moved by, as `displacement` says. Of parameters that are DTensors each process sees its
    shards, and none the outliers.
    """

    def __init__(self, optimizer: Optimizer, positions: Mapping[Tensor, int], outlier_quantile: float) -> None:
        self._optimizer = optimizer
        self._positions = positions
        self._outlier_quantile = outlier_quantile
        self._seen: list[Seen] | None = None
        self._due = False

    @property
    def device(self) -> torch.device:
        """Where the optimizer's first parameter is."""
        return next((p.device for group in self._optimizer.param_groups for p in group["params"]), torch.device("cpu"))

    def before_step(self, due: Collection[Kind], *, closure: bool) -> None:
        """Copy the gradients of the watched parameters, take the norms of their weights, and copy these where needed.

        Given a closure, the step itself makes the gradients: they are read after it, and so are the weights, and the
        update is not known.
        """
        self._seen = None if closure else self._look(due)
        self._due = True

    def after_step(self) -> Iterator[Batch]:
        """What was seen of the step, in batches of equal shape; nothing where `before_step` was not called."""
        due, self._due = self._due, False
        seen, self._seen = self._seen, None
        for one in (self._look(()) if seen is None else seen) if due else ():
            yield self._batch(one)

    def _look(self, due: Collection[Kind]) -> list[Seen]:
        groups = self._optimizer.param_groups
        alike: dict[_Key, list[Tensor]] = {}
        held_bytes = 0
        for index, parameter in self._watched():
            held = local(parameter)
            if held.numel():
                key = (index, parameter.shape, is_dtensor(parameter), held.shape, parameter.dtype, parameter.device)
                alike.setdefault(key, []).append(parameter)
                held_bytes += held.nbytes
        updates = "spectra" in due or ("statistics" in due and held_bytes <= WEIGHT_BYTES)
        # Fused optimizers undo the loss scale of a GradScaler themselves, within the step.
        scale = getattr(self._optimizer, "grad_scale", None)
        seen: list[Seen] = []
        for (index, *_), parameters in alike.items():
            gradient = stacked([p.grad for p in parameters if p.grad is not None])
            if isinstance(scale, Tensor):
                gradient = gradient / local(scale).to(gradient.device, non_blocking=True)
            moved = displacement(self._optimizer, groups[index], parameters) if updates else None
            norms = statistics.norms_of([local(parameter).detach() for parameter in parameters])
            shard_of = matrix_shape(parameters[0].shape) if is_dtensor(parameters[0]) else None
            seen.append(Seen(parameters, groups[index], gradient, norms, shard_of, moved))
        return seen

    def _watched(self) -> Iterator[tuple[int, Tensor]]:
        """The parameters that are measured, each with its group's number."""
        for index, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                if (
                    parameter in self._positions
                    and parameter.grad is not None
                    and not parameter.grad.is_sparse
                    and _cut_alike(parameter, parameter.grad)
                ):
                    yield index, parameter

    def _batch(self, seen: Seen) -> Batch:
        batch = Batch(
            positions=tuple(self._positions[p] for p in seen.parameters),
            gradient=seen.gradient,
            weight_norm=seen.weight_norm,
            shard_of=seen.shard_of,
        )
        momenta = [self._momentum(p) for p in seen.parameters]
        if all(momentum is not None for momentum in momenta):
            momentum = stacked([m for m in momenta if m is not None])
            if isinstance(self._optimizer, Muon) and seen.group["nesterov"]:
                momentum = seen.gradient.lerp(momentum, seen.group["momentum"])
            batch = replace(batch, momentum=momentum)
            if seen.shard_of is None:
                base, threshold = outliers_of(momentum, self._outlier_quantile)
                batch = replace(batch, base=base, threshold=threshold)
        moved = seen.displacement
        if moved is None:
            return batch
        return replace(
            batch,
            update=moved.update(seen.parameters),
            lr=moved.lr,
            orthogonalized=moved.orthogonalized and seen.shard_of is None,
            of_base=False,
        )

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
