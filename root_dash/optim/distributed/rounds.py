"""The matrices of a step in rounds that several processes share, and the messages between the processes.

Every round is a generator, which yields while its messages travel. `_overlap` runs the rounds in turn, so that the
messages of a round travel while the matrices of another round are orthogonalized:

    replicated:  orthogonalize own matrices, gather them | yield | yield | write all weights
    sharded:     send rows of M to their owners | yield | orthogonalize, send rows of X | yield | write
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor

from root_dash.optim.distributed.schedule import (
    Round,
    RowExchange,
    RowShard,
    plan_exchanges,
    plan_rounds,
    shard_rows,
)
from root_dash.optim.matrices.batches import empty_stack, matrices, unstack, writable
from root_dash.optim.matrices.shards import local, local_gradient
from root_dash.optim.newton_schulz.orthogonalize import Orthogonalized
from root_dash.optim.observation import Observer, ShardObservation, ShardObserver
from root_dash.optim.update.root_step import (
    BatchUpdate,
    StepTensors,
    advance_momentum,
    decay_weights,
    look_ahead,
    orthogonalize_batch,
    pick,
    show_batch,
    stack_momenta,
    write_update,
)
from root_dash.optim.update.step_options import StepOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def step_replicated(
    tensors: StepTensors, group: ProcessGroup, options: StepOptions, observers: Sequence[Observer]
) -> None:
    """Take one step of parameters that all processes of a group hold: a collective call."""
    from torch.distributed import all_gather_into_tensor

    params, layout, rank, ranks = tensors.params, options.layout, group.rank(), group.size()
    grads = advance_momentum(tensors.grads, tensors.buffers, tensors.finite, options)
    targets, copies = writable(params, layout)

    def run(round_: Round) -> Iterator[None]:
        own, most = round_.owned_by(rank), round_.most_owned()
        M = stack_momenta(own, grads, tensors.buffers, options) if own.refs else empty_stack(own)
        X = orthogonalize_batch(own, M, options).result.update
        if len(X) < most:
            X = torch.cat([X, X.new_zeros(most - len(X), *own.shape)])
        gathered = X.new_empty(ranks * most, *own.shape)
        work = all_gather_into_tensor(gathered, X.contiguous(), group, async_op=True)
        yield
        yield  # two rounds behind: ranks with more work in one round and less in the next do not wait for each other
        work.wait()
        slots = round_.slots()
        X = gathered if slots == list(range(len(gathered))) else torch.stack([gathered[slot] for slot in slots])
        weights = matrices(round_.batch, targets, layout)
        if observers:
            M = stack_momenta(round_.batch, grads, tensors.buffers, options)
            gradients = matrices(round_.batch, tensors.grads, layout)
            computed = BatchUpdate(M, *options.clipping.clip(M), Orthogonalized(X, None, None, None))
            show_batch(observers, round_.batch, params, gradients, weights, computed, options)
        write_update(round_.batch, weights, X, tensors.finite, options)

    _overlap(run(round_) for round_ in plan_rounds(params, layout, ranks, one_by_one=options.one_by_one))
    for copy, original in copies:
        original.copy_(copy)


def step_sharded(
    tensors: StepTensors,
    group: ProcessGroup,
    options: StepOptions,
    observers: Sequence[Observer],
    shard_observers: Sequence[ShardObserver],
) -> None:
    """Take one step of parameters whose rows are sharded over the processes of a group: a collective call."""
    from torch.distributed import Work, all_to_all_single

    params, layout, rank, ranks = tensors.params, options.layout, group.rank(), group.size()
    raw_grads = [local_gradient(param, grad) for param, grad in zip(params, tensors.grads, strict=True)]
    buffers = [local(buffer) for buffer in tensors.buffers]
    grads = advance_momentum(raw_grads, buffers, tensors.finite, options)
    weights = [local(param) for param in params]
    targets = [weight.contiguous() for weight in weights]
    bounds = [shard_rows(param.shape, layout, ranks)[rank] for param in params]

    def as_rows(locals_: Sequence[Tensor]) -> list[Tensor]:
        """Reshape the local part of each parameter to rows x cols."""
        return [
            part.reshape(stop - start, -1) if part.numel() else part
            for part, (start, stop) in zip(locals_, bounds, strict=True)
        ]

    raw_rows, gradient_rows, buffer_rows, weight_rows = map(as_rows, (raw_grads, grads, buffers, targets))

    def select(rows: Sequence[Tensor], shards: Sequence[RowShard]) -> list[Tensor]:
        return [rows[shard.ref.parameter][slice(*shard.in_parameter)] for shard in shards]

    def send(
        exchange: RowExchange, entries: Tensor, sent: Sequence[RowShard], received: Sequence[RowShard]
    ) -> tuple[Tensor, Work | None]:
        if exchange.round.local:
            return entries, None
        out = entries.new_empty(_entries(received))
        sizes = exchange.splits(received, ranks), exchange.splits(sent, ranks)
        return out, all_to_all_single(out, entries, *sizes, group, async_op=True)

    def run(exchange: RowExchange) -> Iterator[None]:
        own, held, needed = exchange.own, exchange.held, exchange.needed
        outgoing = torch.empty(_entries(held), dtype=own.dtype, device=own.device)
        gradients = select(gradient_rows, held) if options.nesterov else None
        look_ahead(_views(outgoing, held), gradients, select(buffer_rows, held), options.momentum)
        if shard_observers and held:
            parts = select(raw_rows, held), select(weight_rows, held), _views(outgoing, held)
            shown = _shard_observations(held, params, *parts, options)
            for observe in shard_observers:
                observe(shown)
        incoming, work = send(exchange, outgoing, held, needed)
        yield
        if work is not None:
            work.wait()
        M = empty_stack(own)
        _copy(_owned_rows(unstack(own, M), needed), _views(incoming, needed))
        computed = orthogonalize_batch(own, M, options)
        if observers and own.refs:
            show_batch(observers, own, params, None, None, computed, options)
        update = computed.result.update
        outgoing = update.new_empty(_entries(needed))
        _copy(_views(outgoing, needed), _owned_rows(unstack(own, update), needed))
        incoming, work = send(exchange, outgoing, needed, held)
        yield
        if work is not None:
            work.wait()
        _write_rows(held, select(weight_rows, held), _views(incoming, held), tensors.finite, options)

    _overlap(run(exchange) for exchange in plan_exchanges(params, layout, ranks, rank, one_by_one=options.one_by_one))
    for weight, target in zip(weights, targets, strict=True):
        if target is not weight:
            weight.copy_(target)


def _shard_observations(
    shards: Sequence[RowShard],
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    momenta: Sequence[Tensor],
    options: StepOptions,
) -> list[ShardObservation]:
    """Return what the observers of shards are shown."""
    return [
        ShardObservation(
            parameter=params[shard.ref.parameter],
            piece=shard.ref.piece,
            algorithm="root",
            shape=shard.ref.shape,
            gradient=gradient,
            weight=weight,
            momentum=momentum,
            update=None,
            lr=options.scaled_lr(shard.ref.shape),
        )
        for shard, gradient, weight, momentum in zip(shards, gradients, weights, momenta, strict=True)
    ]


def _write_rows(
    shards: Sequence[RowShard],
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    finite: Sequence[Tensor] | None,
    options: StepOptions,
) -> None:
    """Apply `root_step.write_update` to some rows of each matrix."""
    lr, weight_decay = options.lr, options.weight_decay
    for transposed in (False, True):
        part = [index for index, shard in enumerate(shards) if shard.ref.transposed == transposed]
        if not part:
            continue
        weights_here, updates_here = pick(weights, part), pick(updates, part)
        if updates_here[0].element_size() < weights_here[0].element_size():
            updates_here = [update.to(weights_here[0].dtype) for update in updates_here]
        scaled = options.scaled_lr(shards[part[0]].ref.shape)
        if finite is not None:
            factors = [finite[shards[index].ref.parameter].to(torch.float64) for index in part]
            for weight, factor in zip(weights_here, factors, strict=True):
                weight.mul_(1 - factor * (lr * weight_decay))
            pairs = zip(updates_here, factors, strict=True)
            updates_here, scaled = [_scale(update, factor * scaled) for update, factor in pairs], 1.0
        else:
            decay_weights(weights_here, lr, weight_decay)
            if isinstance(scaled, Tensor):
                updates_here, scaled = [_scale(update, scaled) for update in updates_here], 1.0
        torch._foreach_add_(weights_here, updates_here, alpha=-scaled)


def _scale(update: Tensor, factor: Tensor) -> Tensor:
    update = update if update.dtype == torch.float64 else update.float()
    return update * factor.to(update.dtype)


def _overlap(rounds: Iterable[Iterator[None]]) -> None:
    """Run all rounds, each up to its next `yield` at a time: while one round waits for messages, others compute.

    The order in which the rounds communicate depends on the order of the rounds alone, so all ranks have the same.
    """
    running: list[Iterator[None]] = []
    done = object()
    for started in rounds:
        running.insert(0, started)  # the newest first: its messages are under way before an older round waits
        running = [round_ for round_ in running if next(round_, done) is not done]
    while running:
        running = [round_ for round_ in running if next(round_, done) is not done]


def _entries(shards: Sequence[RowShard]) -> int:
    return sum(prod(shard.shape) for shard in shards)


def _views(entries: Tensor, shards: Sequence[RowShard]) -> list[Tensor]:
    """Return views, rows x cols, of adjacent shards in a vector."""
    parts = entries.split([prod(shard.shape) for shard in shards])
    return [part.view(shard.shape) for part, shard in zip(parts, shards, strict=True)] if shards else []


def _owned_rows(matrices: Sequence[Tensor], shards: Sequence[RowShard]) -> list[Tensor]:
    """Return the rows of each shard in its owner's matrices, as views in the parameters' orientation."""
    return [matrices[shard.index][slice(*shard.in_matrix)] for shard in shards]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
