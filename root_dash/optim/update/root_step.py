"""One step of ROOT on lists of tensors: momentum, threshold, orthogonalization and write-back, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from root_dash.optim.matrices.batches import (
    SMALL_ENTRIES,
    MatrixBatch,
    empty_stack,
    keep_freed_memory,
    matrices,
    matrix_batches,
    unstack,
    writable,
)
from root_dash.optim.matrices.nonfinite import zero_nonfinite
from root_dash.optim.newton_schulz.orthogonalize import Orthogonalized, newton_schulz
from root_dash.optim.observation import Observation, Observer
from root_dash.optim.update.step_options import StepOptions

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Some parameters of a group, and the tensors of each."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    """The momentum buffers."""
    finite: Sequence[Tensor] | None = None
    """A boolean of no dimension per parameter. If False, the step changes neither the parameter nor its buffer."""

    def pick(self, indices: Sequence[int]) -> StepTensors:
        """Return the parameters at the indices, with their tensors."""
        finite = None if self.finite is None else pick(self.finite, indices)
        return StepTensors(pick(self.params, indices), pick(self.grads, indices), pick(self.buffers, indices), finite)


@dataclass(frozen=True, slots=True)
class BatchUpdate:
    """What a step computed for a batch of L matrices; every stack is (L, *batch.shape)."""

    momentum: Tensor
    """M."""
    threshold: Tensor | None
    """ε (L,), or None if nothing is clipped."""
    base: Tensor | None
    """B, or None if M itself is orthogonalized."""
    result: Orthogonalized


def root(tensors: StepTensors, options: StepOptions, observers: Sequence[Observer] = ()) -> None:
    """Advance the parameters and their momentum buffers by one step. The gradients do not change.

    Matrices of equal shape, dtype and device are orthogonalized as a batch, or each alone with `one_by_one`.
    """
    params, layout = tensors.params, options.layout
    if not params:
        return
    if params[0].is_cpu and not torch.compiler.is_compiling():
        keep_freed_memory()
    grads = advance_momentum(tensors.grads, tensors.buffers, tensors.finite, options)
    targets, copies = writable(params, layout)
    for batch in matrix_batches(params, layout, one_by_one=options.one_by_one):
        M = stack_momenta(batch, grads, tensors.buffers, options)
        computed = orthogonalize_batch(batch, M, options)
        weights = matrices(batch, targets, layout)
        if observers:
            gradients = matrices(batch, tensors.grads, layout)
            show_batch(observers, batch, params, gradients, weights, computed, options)
        write_update(batch, weights, computed.result.update, tensors.finite, options)
    for copy, original in copies:
        original.copy_(copy)


def advance_momentum(
    grads: list[Tensor], buffers: list[Tensor], finite: Sequence[Tensor] | None, options: StepOptions
) -> list[Tensor]:
    """Advance m <- μ m + (1 - μ) G for every finite gradient, and return G: without NaN, and negated to maximize."""
    if finite is not None:
        grads = zero_nonfinite(grads, finite)
    if options.maximize:
        grads = list(torch._foreach_neg(grads))
    if finite is None:
        torch._foreach_lerp_(buffers, grads, 1 - options.momentum)
        return grads
    for buffer, grad, flag in zip(buffers, grads, finite, strict=True):
        buffer.lerp_(grad, (1 - options.momentum) * flag.to(buffer.dtype))  # a weight of 0 keeps the buffer exactly
    return grads


def stack_momenta(
    batch: MatrixBatch, grads: Sequence[Tensor], buffers: Sequence[Tensor], options: StepOptions
) -> Tensor:
    """Return M of the batch: (L, *batch.shape)."""
    layout = options.layout
    found = matrices(batch, buffers, layout)
    gradients = matrices(batch, grads, layout) if options.nesterov else None
    if batch.shape[0] * batch.shape[1] <= SMALL_ENTRIES:  # few calls matter more than few passes over memory
        M = _stack(batch, found)
        return M if gradients is None else torch.lerp(_stack(batch, gradients), M, options.momentum)
    out = empty_stack(batch)
    look_ahead(unstack(batch, out), gradients, found, options.momentum)
    return out


def _stack(batch: MatrixBatch, found: Sequence[Tensor]) -> Tensor:
    return torch.stack([matrix.mT if ref.transposed else matrix for ref, matrix in zip(batch.refs, found, strict=True)])


def look_ahead(
    targets: Sequence[Tensor], gradients: Sequence[Tensor] | None, buffers: Sequence[Tensor], momentum: float
) -> None:
    """Write M into the targets: (1 - μ) G + μ m, or m if there are no gradients (no Nesterov)."""
    if not targets:
        return
    if gradients is None:
        torch._foreach_copy_(list(targets), list(buffers))
    elif targets[0].is_cpu and not torch.compiler.is_compiling():
        # On a CPU foreach is a loop anyway: this is one pass over the memory instead of two.
        for target, gradient, buffer in zip(targets, gradients, buffers, strict=True):
            torch.lerp(gradient, buffer, momentum, out=target)
    else:
        torch._foreach_copy_(list(targets), list(gradients))
        torch._foreach_lerp_(list(targets), list(buffers), momentum)


def orthogonalize_batch(batch: MatrixBatch, M: Tensor, options: StepOptions) -> BatchUpdate:
    """Clip and orthogonalize the M of a batch, (L, *batch.shape)."""
    epsilon, base = options.clipping.clip(M)
    result = newton_schulz(
        M if base is None else base,
        options.sets(batch),
        normalization=options.normalization,
        eps=options.eps,
        dtype=options.ns_dtype,
        largest=options.clipping.largest(epsilon),
    )
    return BatchUpdate(M, epsilon, base, result)


def show_batch(
    observers: Sequence[Observer],
    batch: MatrixBatch,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor] | None,
    weights: Sequence[Tensor] | None,
    computed: BatchUpdate,
    options: StepOptions,
) -> None:
    """Show the observers the results of a batch: views of the step's own tensors; nothing is computed or copied.

    `gradients` and `weights` are a matrix per entry of `batch.refs`, as in its parameter.
    """
    result = computed.result
    for cut, refs in batch.orientations():
        transposed = refs[0].transposed

        def view(stack: Tensor, cut: slice = cut, transposed: bool = transposed) -> Tensor:
            return stack[cut].mT if transposed else stack[cut]

        observation = Observation(
            parameters=tuple(params[ref.parameter] for ref in refs),
            pieces=tuple(ref.piece for ref in refs),
            algorithm="root",
            gradient=None if gradients is None else tuple(gradients[cut]),
            weight=None if weights is None else tuple(weights[cut]),
            momentum=view(computed.momentum),
            threshold=None if computed.threshold is None else computed.threshold[cut],
            base=None if computed.base is None else view(computed.base),
            update=view(result.update),
            lr=options.scaled_lr(refs[0].shape),
            gram=None if result.gram is None else result.gram[cut],
            gram_squared=None if result.gram_squared is None else result.gram_squared[cut],
            gram_scale=None if result.scale is None else result.scale[cut],
        )
        for observe in observers:
            observe(observation)


def write_update(
    batch: MatrixBatch,
    weights: Sequence[Tensor],
    X: Tensor,
    finite: Sequence[Tensor] | None,
    options: StepOptions,
) -> None:
    """Apply θ <- (1 - η λ) θ - η s X to the weights of the batch, except where a gradient was not finite.

    A learning rate in a tensor stays on its device.
    """
    lr, weight_decay = options.lr, options.weight_decay
    if X.element_size() < batch.dtype.itemsize and not X.is_cpu:
        X = X.to(batch.dtype)  # widening rounds nothing, and foreach fuses equal dtypes, but not on a CPU
    # Many small weights on a CPU: to stack them and to copy them back costs less than two operations on each.
    small = X.is_cpu and batch.shape[0] * batch.shape[1] <= SMALL_ENTRIES and len(weights) > 1
    for cut, refs in batch.orientations():
        part = list(weights[cut])
        scaled = options.scaled_lr(refs[0].shape)
        update = X[cut]
        if small and finite is None and not isinstance(lr, Tensor):
            stack = torch.stack(part)
            if weight_decay != 0:
                stack *= 1 - lr * weight_decay
            stack.add_(update.mT if refs[0].transposed else update, alpha=-float(scaled))
            torch._foreach_copy_(part, list(stack.unbind()))
            continue
        if finite is not None:
            flags = torch.stack([finite[ref.parameter] for ref in refs]).to(torch.float64)
            for weight, factor in zip(part, (1 - flags * (lr * weight_decay)).unbind(), strict=True):
                weight.mul_(factor)
            scaled = (flags * scaled).view(-1, 1, 1)
        else:
            decay_weights(part, lr, weight_decay)
        if isinstance(scaled, Tensor):
            update = update if update.dtype == torch.float64 else update.float()  # the product is rounded once, below
            update, scaled = update * scaled.to(update.dtype), 1.0
        updates = (update.mT if refs[0].transposed else update).unbind()
        torch._foreach_add_(part, list(updates), alpha=-scaled)


def decay_weights(weights: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
    """Apply θ <- (1 - η λ) θ."""
    if weight_decay == 0:
        return
    if isinstance(lr, Tensor):
        factor = 1 - lr * weight_decay
        for weight in weights:
            weight.mul_(factor)
    else:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)


def pick(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    """Return the items at the indices."""
    return [items[index] for index in indices]
