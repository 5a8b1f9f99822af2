"""Parameters that are sharded over processes: DTensors, as FSDP2 and tensor parallelism make them.

A DTensor is recognized by its attributes, so that a program without DTensors does not import torch's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor, or the data of a parameter, is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor on this process: all of it, or a DTensor's shard, perhaps without entries."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def cut_alike(parameter: Tensor, tensor: Tensor) -> bool:
    """Return whether a process holds the same part of both: what lies elsewhere would need communication."""
    if not is_dtensor(parameter) or not is_dtensor(tensor):
        return is_dtensor(parameter) == is_dtensor(tensor)
    return parameter.placements == tensor.placements


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or all shards of a DTensor put together: a collective call of all its ranks."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def local_gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the shard of the gradient that matches the parameter's shard here: a collective call if they differ."""
    if is_dtensor(parameter) and is_dtensor(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def sharded_dims(tensor: Tensor) -> list[int]:
    """Return the dimensions along which a tensor is cut over processes; none of a tensor that is no DTensor."""
    placements = tensor.placements if is_dtensor(tensor) else ()
    return [getattr(placement, "dim", 0) for placement in placements if not placement.is_replicate()]


def row_group(tensor: DTensor) -> ProcessGroup | None:
    """Return the processes over which a DTensor is sharded by rows, as under FSDP2; None for any other sharding.

    Further dimensions of the mesh may hold copies, as in hybrid sharding.
    """
    from torch.distributed.tensor import Replicate, Shard

    cut = [dim for dim, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if len(cut) != 1 or type(tensor.placements[cut[0]]) is not Shard or not tensor.placements[cut[0]].is_shard(0):
        return None
    return tensor.device_mesh.get_group(cut[0])


def local_part(full: Tensor, like: DTensor) -> Tensor:
    """Return this process's shard of a plain tensor that all processes have, sharded as `like`; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def counted_here(tensor: DTensor, *, whole: bool) -> bool:
    """Return whether this process adds its part of a DTensor to a sum over all processes.

    Of several copies of a shard the first one counts. If all processes of the mesh have the `whole` tensor, the first
    process counts.
    """
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    places = zip(coordinate, tensor.placements, strict=True)
    return all(index == 0 for index, placement in places if whole or placement.is_replicate())


def agree(flags: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return, for each tensor, whether the flag is true for all its shards: a collective call for DTensors.

    `flags` are booleans of no dimension about the shards of this process. The host does not wait for the device.
    """
    out = list(flags)
    shared: dict[str, tuple[ProcessGroup, list[int]]] = {}
    for index, tensor in enumerate(tensors):
        if is_dtensor(tensor):
            for dim, placement in enumerate(tensor.placements):
                if not placement.is_replicate():
                    group = tensor.device_mesh.get_group(dim)
                    shared.setdefault(group.group_name, (group, []))[1].append(index)
    for group, indices in shared.values():
        together = torch.stack([out[i] for i in indices]).int()
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MIN, group=group)
        for index, flag in zip(indices, together.bool().unbind(), strict=True):
            out[index] = flag
    return out


def process_groups(tensors: Sequence[Tensor], process_group: ProcessGroup | None) -> list[ProcessGroup]:
    """Return all groups of several processes that share the tensors: `process_group`, and the groups of DTensors."""
    found = {} if process_group is None else {process_group.group_name: process_group}
    for tensor in tensors:
        if is_dtensor(tensor):
            for dim in range(tensor.device_mesh.ndim):
                group = tensor.device_mesh.get_group(dim)
                found.setdefault(group.group_name, group)
    return [group for group in found.values() if group.size() > 1]


def broadcast_first(values: Tensor, device: torch.device, groups: Sequence[ProcessGroup]) -> Tensor:
    """Return the values of the first process, sent through a device of the groups: a collective call."""
    sent = values.to(device)
    for group in groups:
        torch.distributed.broadcast(sent, group=group, group_src=0)
    return sent
