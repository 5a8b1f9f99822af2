"""ROOT on more than one process: each matrix is orthogonalized once, by one of them, and the others get the update.

Replicated parameters (DistributedDataParallel): all processes keep and advance the whole momentum, so that a checkpoint
is that of a single process. The matrices are dealt out by cost, and the updates gathered.

Sharded parameters (FSDP2, and hybrid sharding): each process keeps and advances the rows of the momentum that belong
to its rows of the parameter. M is sent to the owner of each matrix, which sees it whole, so that threshold and norm are
exact; the rows of X are sent back. What lies whole on one process, as experts often do, is never sent. DTensors that
are cut otherwise, as by tensor parallelism, are put together and stepped by every process.

Communication is overlapped with work on the matrices before and after. All processes have to call `step` alike, with
gradients for the same parameters, as they have under DistributedDataParallel and FSDP2; who observes does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import torch
import torch.distributed
from torch import Tensor

from root_dash.optim.adamw import adamw
from root_dash.optim.arguments import AdjustLr, lr_scale
from root_dash.optim.batches import Batch, empty, matrices, standing, whole, writable
from root_dash.optim.coefficients import Normalization
from root_dash.optim.dealing import Chunk, Exchange, Round, exchanges_of, rounds_of, shard_rows
from root_dash.optim.faults import cleaned
from root_dash.optim.observation import Observer
from root_dash.optim.orthogonalize import Orthogonalized, newton_schulz
from root_dash.optim.pieces import Layout
from root_dash.optim.shards import is_dtensor, local, local_gradient, part_of, row_group
from root_dash.optim.step import Cut, Sets, advance, ahead, decay, momenta, root, show, write

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


def root_over_ranks(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    process_group: ProcessGroup | None,
    finite: Sequence[Tensor] | None = None,
    observers: Sequence[Observer] = (),
    **options: Unpack[Options],
) -> None:
    """`root` of parameters of which others hold the same, `process_group`, or other parts, as DTensors.

    All processes of the group, or of the DTensors' mesh, have to call it with the same parameters in the same order.
    `finite` must be the same for all parts of a parameter: `shards.agreed`.
    """
    plain: list[int] = []
    cut_by_rows: dict[str, tuple[ProcessGroup, list[int]]] = {}
    for index, parameter in enumerate(params):
        if not is_dtensor(parameter):
            plain.append(index)
        elif (group := row_group(parameter)) is not None:
            cut_by_rows.setdefault(group.group_name, (group, []))[1].append(index)
    tensors = (params, grads, momentum_buffers)
    if plain:
        ours, flags = [_at(each, plain) for each in tensors], finite and _at(finite, plain)
        if process_group is None or process_group.size() == 1:
            root(*ours, finite=flags, observers=observers, **options)
        else:
            _dealt(*ours, process_group, flags, observers, options)
    for group, indices in cut_by_rows.values():
        _sharded(*[_at(each, indices) for each in tensors], group, finite and _at(finite, indices), observers, options)
    by_rows = {index for _, indices in cut_by_rows.values() for index in indices}
    for index in range(len(params)):
        if index not in by_rows and is_dtensor(params[index]):
            _put_together(*[each[index] for each in tensors], finite and [finite[index]], observers, options)


def adamw_over_ranks(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    finite: Sequence[Tensor] | None = None,
    observers: Sequence[Observer] = (),
    **options: Any,
) -> None:
    """`adamw` of parameters of which some may be DTensors: their parts are stepped where they are, and not observed."""
    cut = [is_dtensor(param) for param in params]
    for sharded in (False, True):
        part = [index for index, each in enumerate(cut) if each == sharded]
        adamw(
            [local(param) for param in _at(params, part)],
            [local_gradient(params[index], grads[index]) for index in part],
            [local(average) for average in _at(exp_avgs, part)],
            [local(average) for average in _at(exp_avg_sqs, part)],
            _at(steps, part),
            finite=finite and _at(finite, part),
            observers=() if sharded else observers,
            **options,
        )


def check_process_group(group: Any) -> None:
    """Refuse what is no process group of this process with a `ValueError`."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise ValueError(f"process_group must be a torch.distributed.ProcessGroup with this process, got {group!r}")


def _dealt(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    group: ProcessGroup,
    finite: Sequence[Tensor] | None,
    observers: Sequence[Observer],
    options: Options,
) -> None:
    """One step of replicated parameters."""
    from torch.distributed import all_gather_into_tensor

    rank, ranks, layout = group.rank(), group.size(), options["layout"]
    seen, grads = grads, _advanced(grads, buffers, finite, options)
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
            gradients = matrices(each.batch, seen, layout)
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


def _sharded(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    group: ProcessGroup,
    finite: Sequence[Tensor] | None,
    observers: Sequence[Observer],
    options: Options,
) -> None:
    """One step of parameters whose rows are sharded."""
    from torch.distributed import Work, all_to_all_single

    rank, ranks, layout = group.rank(), group.size(), options["layout"]
    grads = [local_gradient(param, grad) for param, grad in zip(params, grads, strict=True)]
    buffers = [local(buffer) for buffer in buffers]
    grads = _advanced(grads, buffers, finite, options)
    weights = [local(param) for param in params]
    targets = [weight.contiguous() for weight in weights]
    bounds = [shard_rows(param.shape, layout, ranks)[rank] for param in params]
    gradient_rows, buffer_rows, weight_rows = (
        [
            each.reshape(stop - start, -1) if each.numel() else each
            for each, (start, stop) in zip(of, bounds, strict=True)
        ]
        for of in (grads, buffers, targets)
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


def _put_together(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor,
    finite: Sequence[Tensor] | None,
    observers: Sequence[Observer],
    options: Options,
) -> None:
    """One step of a DTensor that is cut in another way: every process takes all of it, and keeps its part."""
    assert is_dtensor(param)
    full = [whole(each) for each in (param, grad, buffer)]

    def named(observe: Observer) -> Observer:
        return lambda seen: observe(replace(seen, parameters=(param,) * len(seen.parameters)))

    root(*[[each] for each in full], finite=finite, observers=[named(each) for each in observers], **options)
    local(param).copy_(part_of(full[0], param))
    local(buffer).copy_(part_of(full[2], param))


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
        options["sets"](batch.shape, batch.device),
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
    for tall in (False, True):
        part = [index for index, chunk in enumerate(chunks) if chunk.place.tall == tall]
        if not part:
            continue
        ours, theirs = _at(weights, part), _at(updates, part)
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


def _at(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [items[index] for index in indices]
