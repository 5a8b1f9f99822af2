"""ROOT on more than one process: one process orthogonalizes each matrix, and the others get the update.

Replicated parameters (DistributedDataParallel): all processes keep and advance the whole momentum, so a checkpoint is
the same as from a single process. The matrices are assigned to the processes by cost, and the updates are gathered.

Sharded parameters (FSDP2, and hybrid sharding): each process keeps and advances the rows of the momentum that belong
to its rows of the parameter. The rows of M are sent to the owner of each matrix. The owner has the whole matrix, so the
threshold and the norm are exact. The rows of X are sent back. A matrix that lies whole on one process, as experts often
do, is never sent. DTensors that are sharded otherwise, as by tensor parallelism, are gathered and stepped by every
process.

Communication overlaps with work on the matrices before and after. All processes have to call `step` alike, with
gradients for the same parameters, as under DistributedDataParallel and FSDP2. Observers may differ between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

from root_dash.optim.distributed.rounds import step_replicated, step_sharded
from root_dash.optim.matrices.batches import matrix_shape
from root_dash.optim.matrices.shards import full_tensor, is_dtensor, local, local_gradient, local_part, row_group
from root_dash.optim.observation import Observation, Observer, ShardObservation, ShardObserver
from root_dash.optim.update.adamw import adamw
from root_dash.optim.update.root_step import StepTensors, pick, root
from root_dash.optim.update.step_options import StepOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def root_over_ranks(
    tensors: StepTensors,
    options: StepOptions,
    process_group: ProcessGroup | None,
    observers: Sequence[Observer] = (),
    shard_observers: Sequence[ShardObserver] = (),
) -> None:
    """Take one step of ROOT on parameters that other processes hold too: as copies (`process_group`), or as DTensors.

    All processes of the group, or of the DTensors' mesh, have to call this function with the same parameters in the
    same order. `finite` must be the same for all shards of a parameter: `shards.agree`.
    """
    plain: list[int] = []
    by_rows: dict[str, tuple[ProcessGroup, list[int]]] = {}
    otherwise: list[int] = []
    for index, param in enumerate(tensors.params):
        if not is_dtensor(param):
            plain.append(index)
        elif (group := row_group(param)) is None:
            otherwise.append(index)
        else:
            by_rows.setdefault(group.group_name, (group, []))[1].append(index)
    if process_group is None or process_group.size() == 1:
        root(tensors.pick(plain), options, observers)
    elif plain:
        step_replicated(tensors.pick(plain), process_group, options, observers)
    for group, indices in by_rows.values():
        step_sharded(tensors.pick(indices), group, options, observers, shard_observers)
    for index in otherwise:
        _step_gathered(tensors.pick([index]), options, observers)


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
    """Take one step of AdamW. If parameters are DTensors, each process steps its shards and shows them."""
    is_shard = [is_dtensor(param) for param in params]
    for shards in (False, True):
        part = [index for index, found in enumerate(is_shard) if found == shards]
        here = [local(param) for param in pick(params, part)]
        parameter_of = dict(zip(here, pick(params, part), strict=True))
        adamw(
            here,
            [local_gradient(params[index], grads[index]) for index in part],
            [local(average) for average in pick(exp_avgs, part)],
            [local(average) for average in pick(exp_avg_sqs, part)],
            pick(steps, part),
            finite=finite and pick(finite, part),
            observers=[_as_shards(observe, parameter_of) for observe in shard_observers] if shards else observers,
            **options,
        )


def _as_shards(observe: ShardObserver, parameter_of: Mapping[Tensor, Tensor]) -> Observer:
    """Return an observer of local tensors, which shows `observe` the shards of their DTensors."""

    def observer(seen: Observation) -> None:
        assert seen.gradient is not None
        assert seen.weight is not None
        tensors = zip(seen.parameters, seen.gradient, seen.weight, seen.momentum, seen.update, strict=True)
        shards = [
            ShardObservation(
                parameter=parameter_of[here],
                piece=0,
                algorithm=seen.algorithm,
                shape=matrix_shape(parameter_of[here].shape),
                gradient=gradient,
                weight=weight,
                momentum=momentum,
                update=update,
                lr=seen.lr,
            )
            for here, gradient, weight, momentum, update in tensors
            if here.numel()
        ]
        if shards:
            observe(shards)

    return observer


def check_process_group(group: Any) -> None:
    """Raise TypeError unless `group` is None or a process group with this process."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup with this process, got {group!r}")


def _step_gathered(tensors: StepTensors, options: StepOptions, observers: Sequence[Observer]) -> None:
    """Take one step of a DTensor that is not sharded by rows: every process steps all of it, and keeps its shard."""
    (param,), (grad,), (buffer,) = tensors.params, tensors.grads, tensors.buffers
    assert is_dtensor(param)
    full = StepTensors([full_tensor(param)], [full_tensor(grad)], [full_tensor(buffer)], tensors.finite)

    def named(observe: Observer) -> Observer:
        return lambda seen: observe(replace(seen, parameters=(param,) * len(seen.parameters)))

    root(full, options, [named(observe) for observe in observers])
    for stepped, original in ((full.params[0], param), (full.buffers[0], buffer)):
        local(original).copy_(local_part(stepped, param))
