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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.distributed
from torch import Tensor

from root_dash.optim.distributed.rounds import Options, Part, at, dealt, sharded
from root_dash.optim.matrices.batches import matrix_shape, whole
from root_dash.optim.matrices.shards import is_dtensor, local, local_gradient, part_of, row_group
from root_dash.optim.observation import Observation, Observer, ShardObservation, ShardObserver
from root_dash.optim.update.adamw import adamw
from root_dash.optim.update.root_step import root

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def root_over_ranks(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    process_group: ProcessGroup | None,
    finite: Sequence[Tensor] | None = None,
    observers: Sequence[Observer] = (),
    shard_observers: Sequence[ShardObserver] = (),
    **options: Unpack[Options],
) -> None:
    """`root` of parameters of which others hold the same, `process_group`, or other parts, as DTensors.

    All processes of the group, or of the DTensors' mesh, have to call it with the same parameters in the same order.
    `finite` must be the same for all parts of a parameter: `shards.agreed`.
    """
    everything = Part(params, grads, momentum_buffers, finite)
    plain: list[int] = []
    by_rows: dict[str, tuple[ProcessGroup, list[int]]] = {}
    otherwise: list[int] = []
    for index, param in enumerate(params):
        if not is_dtensor(param):
            plain.append(index)
        elif (group := row_group(param)) is None:
            otherwise.append(index)
        else:
            by_rows.setdefault(group.group_name, (group, []))[1].append(index)
    if process_group is None or process_group.size() == 1:
        part = everything.at(plain)
        root(part.params, part.grads, part.buffers, finite=part.finite, observers=observers, **options)
    elif plain:
        dealt(everything.at(plain), process_group, observers, options)
    for group, indices in by_rows.values():
        sharded(everything.at(indices), group, observers, shard_observers, options)
    for index in otherwise:
        _put_together(everything.at([index]), observers, options)


def adamw_over_ranks(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    finite: Sequence[Tensor] | None = None,
    observers: Sequence[Observer] = (),
    shard_observers: Sequence[ShardObserver] = (),
    **options: Any,
) -> None:
    """`adamw` of parameters of which some may be DTensors: their parts are stepped where they are, and so observed."""
    cut = [is_dtensor(param) for param in params]
    for shards in (False, True):
        part = [index for index, each in enumerate(cut) if each == shards]
        here = [local(param) for param in at(params, part)]
        whose = dict(zip(here, at(params, part), strict=True))
        adamw(
            here,
            [local_gradient(params[index], grads[index]) for index in part],
            [local(average) for average in at(exp_avgs, part)],
            [local(average) for average in at(exp_avg_sqs, part)],
            at(steps, part),
            finite=finite and at(finite, part),
            observers=[_by_shards(each, whose) for each in shard_observers] if shards else observers,
            **options,
        )


def _by_shards(observe: ShardObserver, whose: Mapping[Tensor, Tensor]) -> Observer:
    """An observer of what is here of DTensors, given these, that shows it as their shards."""

    def observer(seen: Observation) -> None:
        assert seen.gradient is not None
        assert seen.weight is not None
        tensors = zip(seen.parameters, seen.gradient, seen.weight, seen.momentum, seen.update, strict=True)
        shards = [
            ShardObservation(
                whose[here],
                0,
                seen.algorithm,
                matrix_shape(whose[here].shape),
                gradient,
                weight,
                momentum,
                update,
                seen.lr,
            )
            for here, gradient, weight, momentum, update in tensors
            if here.numel()
        ]
        if shards:
            observe(shards)

    return observer


def check_process_group(group: Any) -> None:
    """Refuse what is no process group of this process with a `ValueError`."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise ValueError(f"process_group must be a torch.distributed.ProcessGroup with this process, got {group!r}")


def _put_together(part: Part, observers: Sequence[Observer], options: Options) -> None:
    """One step of a DTensor that is cut in another way: every process takes all of it, and keeps its part."""
    (param,), (buffer,) = part.params, part.buffers
    assert is_dtensor(param)
    full = [[whole(each)] for each in (param, *part.grads, buffer)]

    def named(observe: Observer) -> Observer:
        return lambda seen: observe(replace(seen, parameters=(param,) * len(seen.parameters)))

    root(*full, finite=part.finite, observers=[named(each) for each in observers], **options)
    for (stepped,), of in ((full[0], param), (full[2], buffer)):
        local(of).copy_(part_of(stepped, param))
