"""The matrices of a step taken in rounds by several processes, which send each other what they lack meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch
import torch.distributed
from torch import Tensor

from root_dash.coefficients.tables import Normalization
from root_dash.optim.distributed.schedule import Chunk, Exchange, Round, exchanges_of, rounds_of, shard_rows
from root_dash.optim.matrices.batches import Batch, empty, matrices, standing, writable
from root_dash.optim.matrices.layout import Layout
from root_dash.optim.matrices.nonfinite import cleaned
from root_dash.optim.matrices.shards import local, local_gradient
from root_dash.optim.newton_schulz.orthogonalize import Orthogonalized, newton_schulz
from root_dash.optim.observation import Observer, ShardObservation, ShardObserver
from root_dash.optim.options import AdjustLr, lr_scale
from root_dash.optim.update.root_step import Cut, Sets, advance, ahead, decay, momenta, show, write

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Options(TypedDict):
    """The options of `root` that do not depend on the parameters."""

    lr: float | Tensor
    weight_decay: float
    momentum: float
    nesterov: bool
    sets: Sets
    eps: float
    adjust_lr_fn: AdjustLr
    cut: Cut
    normalization: Normalization
    ns_dtype: torch.dtype | None
    layout: Layout
    maximize: bool
    one_by_one: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the parameters of a group, and what is theirs."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    finite: Sequence[Tensor] | None

    def at(self, indices: Sequence[int]) -> Part:
        finite = None if self.finite is None else at(self.finite, indices)
        return Part(at(self.params, indices), at(self.grads, indices), at(self.buffers, indices), finite)


def dealt(part: Part, group: ProcessGroup, observers: Sequence[Observer], options: Options) -> None:
    """One step of replicated parameters."""
    from torch.distributed import all_gather_into_tensor

    params, buffers, finite = part.params, part.buffers, part.finite
    rank, ranks, layout = group.rank(), group.size(), options["layout"]
    grads = _advanced(part.grads, buffers, finite, options)
    targets, copies = writable(params, layout)

    def ahead_of(batch: Batch) -> Tensor:
        return momenta(batch, grads, buffers, options["momentum"], options["nesterov"], layout)

    def turn(each: Round) -> Iterator[None]:
        own, most = each.of(rank), each.most()
        M = ahead_of(own) if own.places else empty(own)
        _, base = options["cut"].of(M)
        X = _orthogonalized(own, M if base is None else base, options).update
        if len(X) < most:
            X = torch.cat([X, X.new_zeros(most - len(X), *own.shape)])
        gathered = X.new_empty(ranks * most, *own.shape)
        work = all_gather_into_tensor(gathered, X.contiguous(), group, async_op=True)
        yield
        yield  # two rounds behind: ranks with more to do in one and less in the next do not wait for each other
        work.wait()
        slots = each.slots()
        X = gathered if slots == list(range(len(gathered))) else torch.stack([gathered[slot] for slot in slots])
        weights = matrices(each.batch, targets, layout)
        if observers:
            M = ahead_of(each.batch)
            threshold, base = options["cut"].of(M)
            gradients = matrices(each.batch, part.grads, layout)
            result = Orthogonalized(X, None, None, None)
            show(
                observers,
                each.batch,
                params,
                gradients,
                weights,
                M,
                threshold,
                base,
                result,
                options["lr"],
                options["adjust_lr_fn"],
            )
        write(each.batch, weights, X, options["lr"], options["adjust_lr_fn"], options["weight_decay"], finite)

    _overlap(turn(each) for each in rounds_of(params, layout, ranks, one_by_one=options["one_by_one"]))
    for copy, original in copies:
        original.copy_(copy)


def sharded(
    part: Part,
    group: ProcessGroup,
    observers: Sequence[Observer],
    shard_observers: Sequence[ShardObserver],
    options: Options,
) -> None:
    """One step of parameters whose rows are sharded."""
    from torch.distributed import Work, all_to_all_single

    params, finite = part.params, part.finite
    rank, ranks, layout = group.rank(), group.size(), options["layout"]
    seen = [local_gradient(param, grad) for param, grad in zip(params, part.grads, strict=True)]
    buffers = [local(buffer) for buffer in part.buffers]
    grads = _advanced(seen, buffers, finite, options)
    weights = [local(param) for param in params]
    targets = [weight.contiguous() for weight in weights]
    bounds = [shard_rows(param.shape, layout, ranks)[rank] for param in params]
    seen_rows, gradient_rows, buffer_rows, weight_rows = (
        [
            each.reshape(stop - start, -1) if each.numel() else each
            for each, (start, stop) in zip(of, bounds, strict=True)
        ]
        for of in (seen, grads, buffers, targets)
    )

    def rows(of: Sequence[Tensor], chunks: Sequence[Chunk]) -> list[Tensor]:
        return [of[chunk.place.parameter][slice(*chunk.of_shard)] for chunk in chunks]

    def sent(each: Exchange, entries: Tensor, to: Sequence[Chunk], of: Sequence[Chunk]) -> tuple[Tensor, Work | None]:
        if each.round.local:
            return entries, None
        out = entries.new_empty(_entries(of))
        work = all_to_all_single(out, entries, each.splits(of, ranks), each.splits(to, ranks), group, async_op=True)
        return out, work

    def turn(exchange: Exchange) -> Iterator[None]:
        own, held, needed = exchange.own, exchange.held, exchange.needed
        outgoing = torch.empty(_entries(held), dtype=own.dtype, device=own.device)
        gradients = rows(gradient_rows, held) if options["nesterov"] else None
        ahead(_cut(outgoing, held), gradients, rows(buffer_rows, held), options["momentum"])
        if shard_observers and held:
            shards = _shards(
                held, params, rows(seen_rows, held), rows(weight_rows, held), _cut(outgoing, held), options
            )
            for observe in shard_observers:
                observe(shards)
        incoming, work = sent(exchange, outgoing, held, needed)
        yield
        if work is not None:
            work.wait()
        M = empty(own)
        _copy(_pieces(standing(own, M), needed), _cut(incoming, needed))
        threshold, base = options["cut"].of(M)
        result = _orthogonalized(own, M if base is None else base, options)
        if observers and own.places:
            show(
                observers,
                own,
                params,
                None,
                None,
                M,
                threshold,
                base,
                result,
                options["lr"],
                options["adjust_lr_fn"],
            )
        outgoing = result.update.new_empty(_entries(needed))
        _copy(_cut(outgoing, needed), _pieces(standing(own, result.update), needed))
        incoming, work = sent(exchange, outgoing, needed, held)
        yield
        if work is not None:
            work.wait()
        _write(held, rows(weight_rows, held), _cut(incoming, held), finite, options)

    _overlap(turn(each) for each in exchanges_of(params, layout, ranks, rank, one_by_one=options["one_by_one"]))
    for weight, target in zip(weights, targets, strict=True):
        if target is not weight:
            weight.copy_(target)


def _shards(
    chunks: Sequence[Chunk],
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    momenta: Sequence[Tensor],
    options: Options,
) -> list[ShardObservation]:
    """What the observers of shards are shown of chunks."""
    return [
        ShardObservation(
            parameter=params[chunk.place.parameter],
            piece=chunk.place.piece,
            algorithm="root",
            shape=chunk.place.shape,
            gradient=gradient,
            weight=weight,
            momentum=momentum,
            update=None,
            lr=options["lr"] * lr_scale(chunk.place.shape, options["adjust_lr_fn"]),
        )
        for chunk, gradient, weight, momentum in zip(chunks, gradients, weights, momenta, strict=True)
    ]


def _advanced(
    grads: list[Tensor], buffers: list[Tensor], finite: Sequence[Tensor] | None, options: Options
) -> list[Tensor]:
    """Advance the buffers, and return the gradients as they went in."""
    if finite is not None:
        grads = cleaned(grads, finite)
    if options["maximize"]:
        grads = list(torch._foreach_neg(grads))
    advance(buffers, grads, options["momentum"], finite)
    return grads


def _orthogonalized(batch: Batch, base: Tensor, options: Options) -> Orthogonalized:
    return newton_schulz(
        base,
        options["sets"](batch),
        normalization=options["normalization"],
        eps=options["eps"],
        dtype=options["ns_dtype"],
    )


def _write(
    chunks: Sequence[Chunk],
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    finite: Sequence[Tensor] | None,
    options: Options,
) -> None:
    """What `step.write` does to whole matrices, to some rows of each."""
    lr, weight_decay = options["lr"], options["weight_decay"]
    for transposed in (False, True):
        part = [index for index, chunk in enumerate(chunks) if chunk.place.transposed == transposed]
        if not part:
            continue
        ours, theirs = at(weights, part), at(updates, part)
        if theirs[0].element_size() < ours[0].element_size():
            theirs = [update.to(ours[0].dtype) for update in theirs]
        scaled = lr * lr_scale(chunks[part[0]].place.shape, options["adjust_lr_fn"])
        if finite is not None:
            factors = [finite[chunks[index].place.parameter].to(torch.float64) for index in part]
            for weight, factor in zip(ours, factors, strict=True):
                weight.mul_(1 - factor * (lr * weight_decay))
            theirs = [_scaled(update, factor * scaled) for update, factor in zip(theirs, factors, strict=True)]
            scaled = 1.0
        else:
            decay(ours, lr, weight_decay)
            if isinstance(scaled, Tensor):
                theirs, scaled = [_scaled(update, scaled) for update in theirs], 1.0
        torch._foreach_add_(ours, theirs, alpha=-scaled)


def _scaled(update: Tensor, factor: Tensor) -> Tensor:
    update = update if update.dtype == torch.float64 else update.float()
    return update * factor.to(update.dtype)


def _overlap(rounds: Iterable[Iterator[None]]) -> None:
    """Run all rounds, each up to its next `yield` at a time: what one waits for goes on while others work.

    The order in which the rounds communicate is that of the rounds alone, so the same on all ranks.
    """
    running: list[Iterator[None]] = []
    done = object()
    for each in rounds:
        running.insert(0, each)  # the newest first, so that what it sends is under way before an older one waits
        running = [one for one in running if next(one, done) is not done]
    while running:
        running = [one for one in running if next(one, done) is not done]


def _entries(chunks: Sequence[Chunk]) -> int:
    return sum(prod(chunk.shape) for chunk in chunks)


def _cut(entries: Tensor, chunks: Sequence[Chunk]) -> list[Tensor]:
    """The chunks one after another in a vector: views, rows x cols."""
    parts = entries.split([prod(chunk.shape) for chunk in chunks])
    return [part.view(chunk.shape) for part, chunk in zip(parts, chunks, strict=True)] if chunks else []


def _pieces(found: Sequence[Tensor], chunks: Sequence[Chunk]) -> list[Tensor]:
    """The chunks in their owner's matrices, as these stand in their parameters: views."""
    return [found[chunk.index][slice(*chunk.of_piece)] for chunk in chunks]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


def at(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    """The items at the indices."""
    return [items[index] for index in indices]
