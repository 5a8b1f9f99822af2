"""Any optimizer, observed by its step hooks: gradients before the step, momentum and update after the step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.optimizers.adapter import Adapter, RecorderHooks, chunks, outliers_of
from root_dash.monitor.optimizers.displacement import Displacement, learning_rate, stacked
from root_dash.monitor.quantities.norms import norms_apart
from root_dash.monitor.quantities.quantity import LayerBatch
from root_dash.optim.matrices.batches import as_matrix, matrix_shape
from root_dash.optim.matrices.shards import cut_alike, is_dtensor, local
from root_dash.records import Kind

_Key = tuple[int, torch.Size, bool, torch.Size, torch.dtype, torch.device]
"""What parameters that are measured together have in common: their group, shape, shard, dtype and device."""


class GenericAdapter(Adapter):
    """The adapter of any optimizer of torch, observed around its step.

    An adapter of an optimizer that this one observes well enough overrides only what differs: where the momentum is,
    how it is corrected before use, and how the update is read from the movement of the weights.
    """

    momentum_keys: tuple[str, ...] = ("momentum_buffer", "exp_avg")
    """The names of the momentum in the optimizer's state: of SGD and the Muon family, and of the Adam family."""

    @classmethod
    def adapts(cls, optimizer: Optimizer) -> bool:
        """Return True: every optimizer has step hooks."""
        return True

    def attach(self, hooks: RecorderHooks) -> Iterator[Any]:
        """Register hooks that observe the optimizer before and after its step."""
        step = StepObserver(self, hooks)

        def before(_: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if not hooks.due():
                return
            closure = has_closure(args, kwargs)
            hooks.prepare(lambda due: step.before(due, closure=closure), step.device)

        yield self.optimizer.register_step_pre_hook(before)
        yield self.optimizer.register_step_post_hook(lambda *_: hooks.measure(step.after))

    def momentum(self, parameter: Tensor) -> Tensor | None:
        """Return a parameter's momentum after the step, if the optimizer's state has one of its shape."""
        state = self.optimizer.state.get(parameter, {})
        found = (state[key] for key in self.momentum_keys if isinstance(state.get(key), Tensor))
        fits = (tensor for tensor in found if tensor.shape == parameter.shape and cut_alike(parameter, tensor))
        return next(fits, None)

    def corrected(self, momentum: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Return the momentum (L, rows, cols) as the optimizer uses it."""
        return momentum

    def displacement(self, before: Tensor, shape: tuple[int, int], group: Mapping[str, Any]) -> Displacement:
        """Return how the update is read from weights that were `before`, of matrices of that shape.

        The update is the movement over the group's `lr`, with the weight decay in it.
        """
        lr = learning_rate(group)
        # A copy: a capturable optimizer's schedule writes into the tensor.
        return Displacement(before, lr.clone() if isinstance(lr, Tensor) else lr)


@dataclass(frozen=True, slots=True)
class SeenLayers:
    """Parameters of one shape and group, their gradients (L, rows, cols), and the norms of their weights (L,).

    If they are sharded, all this is of the process's shards, and `shard_of` is the shape of the whole matrices. The
    gradient is None if it is read after the step, and `displacement` is None if no update is due.
    """

    parameters: Sequence[Tensor]
    group: Mapping[str, Any]
    gradient: Tensor | None
    weight_norm: Tensor
    shard_of: tuple[int, int] | None
    displacement: Displacement | None


class StepObserver:
    """Collects what an optimizer shows of itself around a step.

    The gradient is what the optimizer is about to see, after accumulation and clipping. It is copied before the step,
    since some optimizers write into it, unless all gradients take more than `MeasureLimits.copied_bytes`. The momentum
    is read from the state after the step. Outliers are taken of the momentum at the recorder's quantile. The update is
    what the weights were moved by. If parameters are DTensors, each process sees its shards, and none sees outliers.
    """

    def __init__(self, adapter: GenericAdapter, hooks: RecorderHooks) -> None:
        self._adapter = adapter
        self._optimizer = adapter.optimizer
        self._hooks = hooks
        self._seen: list[SeenLayers] | None = None
        self._due = False
        self._turn = 0

    @property
    def device(self) -> torch.device:
        """The device of the optimizer's first parameter."""
        return next((p.device for group in self._optimizer.param_groups for p in group["params"]), torch.device("cpu"))

    def before(self, due: Collection[Kind], *, closure: bool) -> None:
        """Copy the gradients of the watched parameters, take the norms of their weights, and copy these if needed.

        If the step is given a closure, the step itself makes the gradients: gradients and weights are read after it,
        and the update is not known. The same holds if copying fails, as for want of memory.
        """
        self._seen, self._due = None, True
        self._seen = None if closure else self._look(due, copies=True)

    def after(self) -> Iterator[LayerBatch]:
        """Return what was seen of the step, in batches of equal shape; nothing if `before` was not called."""
        due, self._due = self._due, False
        seen, self._seen = self._seen, None
        return self._batches(seen) if due else iter(())

    def _batches(self, seen: list[SeenLayers] | None) -> Iterator[LayerBatch]:
        if seen is None:
            seen = self._look((), copies=False)
        while seen:
            yield from self._batch(seen.pop(0))  # let go before the next batch is made

    def _look(self, due: Collection[Kind], *, copies: bool) -> list[SeenLayers]:
        groups, limits = self._optimizer.param_groups, self._hooks.limits
        alike: dict[_Key, list[Tensor]] = {}
        gradient_bytes = 0
        for index, parameter, gradient in self._watched():
            held = local(parameter)
            if held.numel():
                key = (index, parameter.shape, is_dtensor(parameter), held.shape, parameter.dtype, parameter.device)
                alike.setdefault(key, []).append(parameter)
                gradient_bytes += held.numel() * gradient.itemsize
        copies = copies and gradient_bytes <= limits.copied_bytes
        parts = [(key[0], part) for key, found in alike.items() for part in chunks(found, key[3].numel(), limits)]
        moving = self._moving([sum(local(parameter).nbytes for parameter in part) for _, part in parts], due)
        seen: list[SeenLayers] = []
        for place, (index, parameters) in enumerate(parts):
            copied = self._gradient(parameters, after=False) if copies else None
            shape = matrix_shape(parameters[0].shape)  # of the whole matrix, also if this process holds a shard
            moved = None
            if place in moving:
                moved = self._adapter.displacement(stacked(parameters), shape, groups[index])
            norms = norms_apart([local(parameter).detach() for parameter in parameters])
            shard_of = shape if is_dtensor(parameters[0]) else None
            seen.append(SeenLayers(parameters, groups[index], copied, norms, shard_of, moved))
        return seen

    def _moving(self, sizes: Sequence[int], due: Collection[Kind]) -> Collection[int]:
        """Return which parts, whose weights have so many bytes, have their updates taken in this step."""
        room = self._hooks.limits.copied_bytes
        if sum(sizes) <= room:
            return range(len(sizes)) if {"spectra", "statistics"} & set(due) else ()
        if "spectra" not in due:
            return ()
        turns: list[list[int]] = [[]]
        left = room
        for place, size in enumerate(sizes):
            if size <= room:
                if size > left:
                    turns.append([])
                    left = room
                turns[-1].append(place)
                left -= size
        turn, self._turn = self._turn, self._turn + 1
        return turns[turn % len(turns)]

    def _gradient(self, parameters: Sequence[Tensor], *, after: bool) -> Tensor | None:
        """Return a copy of the gradients as the optimizer sees them, (L, rows, cols); None if any is gone."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if len(gradients) < len(parameters):
            return None
        gradient = stacked(gradients)
        # A fused optimizer undoes the loss scale of a GradScaler itself, in the gradients, within a step that it does
        # not skip.
        scale = getattr(self._optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):
            scale = local(scale)
            found = getattr(self._optimizer, "found_inf", None)
            if after and isinstance(found, Tensor):
                scale = torch.where(local(found) == 0, 1.0, scale)
            gradient.div_(scale.to(gradient.device, non_blocking=True))
        return gradient

    def _watched(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the parameters that are measured and their gradients, each with its group's number."""
        for index, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                if (
                    parameter in self._hooks.positions
                    and parameter.grad is not None
                    and not parameter.grad.is_sparse
                    and cut_alike(parameter, parameter.grad)
                ):
                    yield index, parameter, parameter.grad

    def _batch(self, seen: SeenLayers) -> Iterator[LayerBatch]:
        gradient = self._gradient(seen.parameters, after=True) if seen.gradient is None else seen.gradient
        if gradient is None:
            return
        batch = LayerBatch(
            positions=tuple(self._hooks.positions[p] for p in seen.parameters),
            gradient=gradient,
            weight_norm=seen.weight_norm,
            shard_of=seen.shard_of,
            weight=None if seen.shard_of else [as_matrix(parameter.detach()) for parameter in seen.parameters],
        )
        momenta = [self._adapter.momentum(p) for p in seen.parameters]
        if all(momentum is not None for momentum in momenta):
            momentum = stacked([m for m in momenta if m is not None])
            batch = replace(batch, momentum=self._adapter.corrected(momentum, gradient, seen.group))
            if seen.shard_of is None:
                assert batch.momentum is not None
                base, threshold = outliers_of(batch.momentum, self._hooks.outlier_quantile)
                batch = replace(batch, base=base, threshold=threshold)
        moved = seen.displacement
        if moved is not None:
            batch = replace(
                batch,
                update=moved.update(seen.parameters),
                lr=moved.lr,
                orthogonalized=self._adapter.orthogonalizes is not None and seen.shard_of is None,
                of_base=False,
            )
        yield batch


def has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a step was given a closure; the first of its arguments is the optimizer itself."""
    return kwargs.get("closure") is not None or any(argument is not None for argument in args[1:])
