"""One step of ROOT on lists of tensors: momentum, threshold, orthogonalization and write-back, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from root_dash.coefficients.tables import Coefficients, Normalization
from root_dash.optim.matrices.batches import (
    SMALL_ENTRIES,
    Batch,
    batches_of,
    empty,
    keep_freed_memory,
    matrices,
    standing,
    writable,
)
from root_dash.optim.matrices.layout import Layout
from root_dash.optim.matrices.nonfinite import cleaned
from root_dash.optim.newton_schulz.orthogonalize import Orthogonalized, newton_schulz
from root_dash.optim.observation import Observation, Observer
from root_dash.optim.options import AdjustLr, at_step, lr_scale
from root_dash.optim.outliers.threshold import QuantileMethod, split, threshold

Sets: TypeAlias = Callable[[Batch], Sequence[Coefficients] | Tensor]
"""The coefficient set of a batch of matrices: triples, or a tensor (K, 3) on their device."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How outliers are cut: at a quantile of |M| by a method, at a fixed ε where one is given, or not at all."""

    quantile: float
    method: QuantileMethod = "exact"
    fixed: float | None = None

    def threshold(self, M: Tensor) -> Tensor | None:
        """ε of each matrix of a batch (L, m, n): (L,), or None where nothing is cut."""
        if self.fixed is not None:
            return M.new_full((len(M),), self.fixed)
        if self.quantile >= 1 or not M.numel():
            return None
        return threshold(M, self.quantile, self.method)

    def largest(self, epsilon: Tensor | None) -> Tensor | None:
        """The largest magnitude in each base (L,) where it follows from ε: no quantile lies beyond all entries."""
        return epsilon if self.fixed is None and self.method == "exact" else None

    def of(self, M: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """ε (L,) and B (L, m, n) of a batch; None and None where nothing is cut."""
        epsilon = self.threshold(M)
        return epsilon, None if epsilon is None else split(M, epsilon)


def cut_of(group: Mapping[str, Any], step: int) -> Cut:
    """How a parameter group cuts outliers at a step."""
    fixed = group["outlier_threshold"]
    return Cut(
        quantile=at_step(group["outlier_quantile"], step, "outlier_quantile"),
        method=group["quantile_method"],
        fixed=None if fixed is None else at_step(fixed, step, "outlier_threshold"),
    )


def root(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    sets: Sets,
    eps: float,
    adjust_lr_fn: AdjustLr,
    cut: Cut,
    normalization: Normalization,
    ns_dtype: torch.dtype | None,
    layout: Layout,
    maximize: bool,
    finite: Sequence[Tensor] | None = None,
    one_by_one: bool = False,
    observers: Sequence[Observer] = (),
) -> None:
    """Advance the parameters and their momentum buffers by one step; the gradients are left as they are.

    Matrices of one shape, dtype and device are orthogonalized as one batch, or each alone with `one_by_one`. `finite`
    are 0-dimensional booleans, one per parameter: where False, the parameter and its buffer stay as they are.
    """
    if not params:
        return
    if params[0].is_cpu and not torch.compiler.is_compiling():
        keep_freed_memory()
    seen = grads
    if finite is not None:
        grads = cleaned(grads, finite)
    if maximize:
        grads = list(torch._foreach_neg(grads))
    advance(momentum_buffers, grads, momentum, finite)
    targets, copies = writable(params, layout)
    for batch in batches_of(params, layout, one_by_one=one_by_one):
        M = momenta(batch, grads, momentum_buffers, momentum, nesterov, layout)
        epsilon, base = cut.of(M)
        result = newton_schulz(
            M if base is None else base,
            sets(batch),
            normalization=normalization,
            eps=eps,
            dtype=ns_dtype,
            largest=cut.largest(epsilon),
        )
        weights = matrices(batch, targets, layout)
        if observers:
            show(
                observers,
                batch,
                params,
                matrices(batch, seen, layout),
                weights,
                M,
                epsilon,
                base,
                result,
                lr,
                adjust_lr_fn,
            )
        write(batch, weights, result.update, lr, adjust_lr_fn, weight_decay, finite)
    for copy, original in copies:
        original.copy_(copy)


def show(
    observers: Sequence[Observer],
    batch: Batch,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor] | None,
    weights: Sequence[Tensor] | None,
    M: Tensor,
    threshold: Tensor | None,
    base: Tensor | None,
    result: Orthogonalized,
    lr: float | Tensor,
    adjust_lr_fn: AdjustLr,
) -> None:
    """Offer what the step knows of a batch to the observers: views of its own tensors, nothing computed or copied."""
    for cut, places in batch.parts():
        transposed = places[0].transposed

        def part(whole: Tensor | None, cut: slice = cut, transposed: bool = transposed) -> Tensor | None:
            return None if whole is None else whole[cut].mT if transposed else whole[cut]

        momentum, update = part(M), part(result.update)
        assert momentum is not None
        assert update is not None
        observation = Observation(
            parameters=tuple(params[place.parameter] for place in places),
            pieces=tuple(place.piece for place in places),
            algorithm="root",
            gradient=None if gradients is None else tuple(gradients[cut]),
            weight=None if weights is None else tuple(weights[cut]),
            momentum=momentum,
            threshold=None if threshold is None else threshold[cut],
            base=part(base),
            update=update,
            lr=lr * lr_scale(places[0].shape, adjust_lr_fn),
            gram=None if result.gram is None else result.gram[cut],
            gram_squared=None if result.gram_squared is None else result.gram_squared[cut],
            gram_scale=None if result.scale is None else result.scale[cut],
        )
        for observe in observers:
            observe(observation)


def advance(buffers: list[Tensor], grads: list[Tensor], momentum: float, finite: Sequence[Tensor] | None) -> None:
    """m <- μ m + (1 - μ) G, where the gradient was finite."""
    if finite is None:
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return
    for buffer, grad, flag in zip(buffers, grads, finite, strict=True):
        buffer.lerp_(grad, (1 - momentum) * flag.to(buffer.dtype))  # a weight of 0 gives the buffer back exactly


def momenta(
    batch: Batch,
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    momentum: float,
    nesterov: bool,
    layout: Layout,
) -> Tensor:
    """M of the batch: (L, *batch.shape)."""
    found = matrices(batch, buffers, layout)
    gradients = matrices(batch, grads, layout) if nesterov else None
    if batch.shape[0] * batch.shape[1] <= SMALL_ENTRIES:  # fewer calls count for more than fewer passes
        M = _stacked(batch, found)
        return M if gradients is None else torch.lerp(_stacked(batch, gradients), M, momentum)
    out = empty(batch)
    ahead(standing(batch, out), gradients, found, momentum)
    return out


def _stacked(batch: Batch, found: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [matrix.mT if place.transposed else matrix for place, matrix in zip(batch.places, found, strict=True)]
    )


def ahead(
    targets: Sequence[Tensor], gradients: Sequence[Tensor] | None, buffers: Sequence[Tensor], momentum: float
) -> None:
    """M into the targets: one step ahead of the buffers, (1 - μ) G + μ m, or m where there are no gradients."""
    if not targets:
        return
    if gradients is None:
        torch._foreach_copy_(list(targets), list(buffers))
    elif (
        targets[0].is_cpu and not torch.compiler.is_compiling()
    ):  # where foreach is a loop anyway, one pass over the memory instead of two
        for target, gradient, buffer in zip(targets, gradients, buffers, strict=True):
            torch.lerp(gradient, buffer, momentum, out=target)
    else:
        torch._foreach_copy_(list(targets), list(gradients))
        torch._foreach_lerp_(list(targets), list(buffers), momentum)


def write(
    batch: Batch,
    weights: Sequence[Tensor],
    X: Tensor,
    lr: float | Tensor,
    adjust_lr_fn: AdjustLr,
    weight_decay: float,
    finite: Sequence[Tensor] | None,
) -> None:
    """θ <- (1 - η λ) θ - η s X into the batch's weights, where the gradient was finite.

    A learning rate in a tensor stays on its device.
    """
    if X.element_size() < batch.dtype.itemsize and not X.is_cpu:
        X = X.to(batch.dtype)  # widening rounds nothing, and equal dtypes let foreach fuse; on a CPU it cannot
    # Many small weights on a CPU: to stack them, and to copy them back, costs less than two operations on each.
    small = X.is_cpu and batch.shape[0] * batch.shape[1] <= SMALL_ENTRIES and len(weights) > 1
    for cut, places in batch.parts():
        part = list(weights[cut])
        scaled = lr * lr_scale(places[0].shape, adjust_lr_fn)
        update = X[cut]
        if small and finite is None and not isinstance(lr, Tensor):
            stack = torch.stack(part)
            if weight_decay != 0:
                stack *= 1 - lr * weight_decay
            stack.add_(update.mT if places[0].transposed else update, alpha=-float(scaled))
            torch._foreach_copy_(part, list(stack.unbind()))
            continue
        if finite is not None:
            flags = torch.stack([finite[place.parameter] for place in places]).to(torch.float64)
            for weight, factor in zip(part, (1 - flags * (lr * weight_decay)).unbind(), strict=True):
                weight.mul_(factor)
            scaled = (flags * scaled).view(-1, 1, 1)
        else:
            decay(part, lr, weight_decay)
        if isinstance(scaled, Tensor):
            update = update if update.dtype == torch.float64 else update.float()  # the product is rounded once, below
            update, scaled = update * scaled.to(update.dtype), 1.0
        updates = (update.mT if places[0].transposed else update).unbind()
        torch._foreach_add_(part, list(updates), alpha=-scaled)


def decay(weights: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
    """θ <- (1 - η λ) θ."""
    if weight_decay == 0:
        return
    if isinstance(lr, Tensor):
        factor = 1 - lr * weight_decay
        for weight in weights:
            weight.mul_(factor)
    else:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
