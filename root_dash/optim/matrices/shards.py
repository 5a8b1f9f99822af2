"""Parameters that are cut over processes: which they are, what of them is here, and what all parts must agree on.

They are DTensors, as FSDP2 and tensor parallelism make them. A DTensor is known by its attributes, so that who has
none does not wait for the import of torch's class.
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
    """Whether a tensor, or what a parameter holds, is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, the very memory of it: all, or a DTensor's shard, maybe without entries."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    """What of the gradient belongs to the parameter's part here: a collective call if it lies elsewhere."""
    if is_dtensor(parameter) and is_dtensor(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def row_group(tensor: DTensor) -> ProcessGroup | None:
    """The processes among which a DTensor is cut once and along its first dimension, as FSDP2 cuts; else None.

    Further dimensions of its mesh may hold copies, as those of hybrid sharding do.
    """
    from torch.distributed.tensor import Replicate, Shard

    cut = [dim for dim, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if len(cut) != 1 or type(tensor.placements[cut[0]]) is not Shard or not tensor.placements[cut[0]].is_shard(0):
        return None
    return tensor.device_mesh.get_group(cut[0])


def part_of(whole: Tensor, like: DTensor) -> Tensor:
    """The part here of a plain tensor that all processes have, cut as `like` is; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def counted_here(tensor: DTensor, *, whole: bool) -> bool:
    """Whether what this process has of a DTensor is to be counted where that of all is added up.

    Of several copies of a shard it is the first; of what all processes of the mesh see `whole`, that of the first.
    """
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    places = zip(coordinate, tensor.placements, strict=True)
    return all(index == 0 for index, placement in places if whole or placement.is_replicate())


def agreed(flags: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Booleans about what is here of each tensor, made to hold of all of it: a collective call for DTensors.

    Nothing waits for the device.
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


def groups_of(tensors: Sequence[Tensor], process_group: ProcessGroup | None) -> list[ProcessGroup]:
    """All groups of more than one process that hold the same tensors, `process_group`, or have parts of DTensors."""
    found = {} if process_group is None else {process_group.group_name: process_group}
    for tensor in tensors:
        if is_dtensor(tensor):
            for dim in range(tensor.device_mesh.ndim):
                group = tensor.device_mesh.get_group(dim)
                found.setdefault(group.group_name, group)
    return [group for group in found.values() if group.size() > 1]


def of_the_first(values: Tensor, device: torch.device, groups: Sequence[ProcessGroup]) -> Tensor:
    """The values that the first process of all has, sent by way of a device of the groups: a collective call."""
    sent = values.to(device)
    for group in groups:
        torch.distributed.broadcast(sent, group=group, group_src=0)
    return sent
