"""Any optimizer but ROOT, seen through its step hooks: gradients before the step, momentum and update after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from root_dash.monitor.measure import Batch, chunks, outliers_of
from root_dash.monitor.optimizers.displacement import Displacement, displacement, stacked
from root_dash.monitor.quantities import sums
from root_dash.optim.matrices.batches import matrix_shape
from root_dash.optim.matrices.shards import is_dtensor, local
from root_dash.records import Kind

MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")
"""Under which names optimizers keep their momentum: SGD and the Muon family, and the Adam family."""

COPIED_BYTES = 2**30
"""So much is copied at most of an optimizer's gradients, and so much of its weights, to live until after its step.

Where there are more gradients, none is copied: they are read after the step. Where there are more weights, updates come
with the spectra alone, where the layers take turns; one that is larger by itself has none.
"""

_Key = tuple[int, torch.Size, bool, torch.Size, torch.dtype, torch.device]
"""What parameters that are measured together have in common: their group, shape, shard, dtype and device."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Parameters of one shape and group, their gradients (L, rows, cols), and the norms of their weights (L,).

    Of sharded ones this is what the process holds, and `shard_of` their matrices' shape. The gradient is None where it
    is read after the step. `displacement` knows what the weights were, where the update is due.
    """

    parameters: Sequence[Tensor]
    group: Mapping[str, Any]
    gradient: Tensor | None
    weight_norm: Tensor
    shard_of: tuple[int, int] | None
    displacement: Displacement | None


def has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a step was given a closure; the first of its arguments is the optimizer itself."""
    return any(argument is not None for argument in (*args[1:], kwargs.get("closure")))


class ForeignOptimizer:
    """Collects what an optimizer shows of itself around a step.

    The gradient is what the optimizer is about to see, after accumulation and clipping; it is copied before the step
    since some optimizers write into it, unless it takes more than `COPIED_BYTES`. The momentum is read from the state
    after the step; torch's Muon's is corrected as Nesterov has it, where it does so. Outliers are those of the momentum
    at the recorder's quantile. The update is what the weights were moved by, as `displacement` says. Of parameters that
    are DTensors each process sees its shards, and none the outliers.
    """

    def __init__(self, optimizer: Optimizer, positions: Mapping[Tensor, int], outlier_quantile: float) -> None:
        self._optimizer = optimizer
        self._positions = positions
        self._outlier_quantile = outlier_quantile
        self._seen: list[Seen] | None = None
        self._due = False
        self._turn = 0

    @property
    def device(self) -> torch.device:
        """Where the optimizer's first parameter is."""
        return next((p.device for group in self._optimizer.param_groups for p in group["params"]), torch.device("cpu"))

    def before_step(self, due: Collection[Kind], *, closure: bool) -> None:
        """Copy the gradients of the watched parameters, take the norms of their weights, and copy these where needed.

        Given a closure, the step itself makes the gradients: they are read after it, and so are the weights, and the
        update is not known. So it is where the copies fail, as for want of memory.
        """
        self._seen, self._due = None, True
        self._seen = None if closure else self._look(due, copies=True)

    def after_step(self) -> Iterator[Batch]:
        """What was seen of the step, in batches of equal shape; nothing where `before_step` was not called."""
        due, self._due = self._due, False
        seen, self._seen = self._seen, None
        return self._batches(seen) if due else iter(())

    def _batches(self, seen: list[Seen] | None) -> Iterator[Batch]:
        if seen is None:
            seen = self._look((), copies=False)
        while seen:
            yield from self._batch(seen.pop(0))  # which is let go before the next is made

    def _look(self, due: Collection[Kind], *, copies: bool) -> list[Seen]:
        groups = self._optimizer.param_groups
        alike: dict[_Key, list[Tensor]] = {}
        gradient_bytes = 0
        for index, parameter, gradient in self._watched():
            held = local(parameter)
            if held.numel():
                key = (index, parameter.shape, is_dtensor(parameter), held.shape, parameter.dtype, parameter.device)
                alike.setdefault(key, []).append(parameter)
                gradient_bytes += held.numel() * gradient.itemsize
        copies = copies and gradient_bytes <= COPIED_BYTES
        parts = [(key[0], part) for key, found in alike.items() for part in chunks(found, key[3].numel())]
        moving = self._moving([sum(local(parameter).nbytes for parameter in part) for _, part in parts], due)
        seen: list[Seen] = []
        for place, (index, parameters) in enumerate(parts):
            copied = self._gradient(parameters, after=False) if copies else None
            moved = displacement(self._optimizer, groups[index], parameters) if place in moving else None
            norms = sums.norms_of([local(parameter).detach() for parameter in parameters])
            shard_of = matrix_shape(parameters[0].shape) if is_dtensor(parameters[0]) else None
            seen.append(Seen(parameters, groups[index], copied, norms, shard_of, moved))
        return seen

    def _moving(self, sizes: Sequence[int], due: Collection[Kind]) -> Collection[int]:
        """Whose updates are taken, of parts whose weights have so many bytes."""
        if sum(sizes) <= COPIED_BYTES:
            return range(len(sizes)) if {"spectra", "statistics"} & set(due) else ()
        if "spectra" not in due:
            return ()
        turns: list[list[int]] = [[]]
        room = COPIED_BYTES
        for place, size in enumerate(sizes):
            if size <= COPIED_BYTES:
                if size > room:
                    turns.append([])
                    room = COPIED_BYTES
                turns[-1].append(place)
                room -= size
        turn, self._turn = self._turn, self._turn + 1
        return turns[turn % len(turns)]

    def _gradient(self, parameters: Sequence[Tensor], *, after: bool) -> Tensor | None:
        """A copy of the gradients as the optimizer sees them, (L, rows, cols); None where there is none any more."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if len(gradients) < len(parameters):
            return None
        gradient = stacked(gradients)
        # Fused optimizers undo the loss scale of a GradScaler themselves, within the step that they do not skip, and in
        # the gradients.
        scale = getattr(self._optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):
            scale = local(scale)
            found = getattr(self._optimizer, "found_inf", None)
            if after and isinstance(found, Tensor):
                scale = torch.where(local(found) == 0, 1.0, scale)
            gradient.div_(scale.to(gradient.device, non_blocking=True))
        return gradient

    def _watched(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The parameters that are measured and their gradients, each with its group's number."""
        for index, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                if (
                    parameter in self._positions
                    and parameter.grad is not None
                    and not parameter.grad.is_sparse
                    and _cut_alike(parameter, parameter.grad)
                ):
                    yield index, parameter, parameter.grad

    def _batch(self, seen: Seen) -> Iterator[Batch]:
        gradient = self._gradient(seen.parameters, after=True) if seen.gradient is None else seen.gradient
        if gradient is None:
            return
        batch = Batch(
            positions=tuple(self._positions[p] for p in seen.parameters),
            gradient=gradient,
            weight_norm=seen.weight_norm,
            shard_of=seen.shard_of,
        )
        momenta = [self._momentum(p) for p in seen.parameters]
        if all(momentum is not None for momentum in momenta):
            momentum = stacked([m for m in momenta if m is not None])
            if isinstance(self._optimizer, Muon) and seen.group["nesterov"]:
                momentum = gradient.lerp(momentum, seen.group["momentum"])
            batch = replace(batch, momentum=momentum)
            if seen.shard_of is None:
                base, threshold = outliers_of(momentum, self._outlier_quantile)
                batch = replace(batch, base=base, threshold=threshold)
        moved = seen.displacement
        if moved is not None:
            batch = replace(
                batch,
                update=moved.update(seen.parameters),
                lr=moved.lr,
                orthogonalized=moved.orthogonalized and seen.shard_of is None,
                of_base=False,
            )
        yield batch

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
