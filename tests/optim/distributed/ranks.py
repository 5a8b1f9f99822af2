"""The program of the distributed tests' processes: it runs every scenario with real collectives and writes results.

`python -m tests.optim.distributed.ranks RANK WORLD FOLDER` is one process. Beside what the ranks computed, rank 0
computes what a
single process would have, from the very gradients.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from root_dash.optim import ROOT, Observation
from root_dash.optim.calibration.online import Change
from root_dash.optim.matrices.nonfinite import NonFinite
from root_dash.optim.observation import ShardObservation
from tests.optim.distributed.sharding import (
    cut,
    drawn,
    give,
    gradients,
    model,
    momenta,
    optimizer,
    tokens,
    weights,
    whole,
)

STEPS = 6
SECONDS = 300


class Watch:
    """What an optimizer shows, by parameter and piece, at the last step."""

    def __init__(self, model: nn.Module, optimizer: ROOT) -> None:
        self.names: dict[Tensor, str] = {p: name.removeprefix("module.") for name, p in model.named_parameters()}
        self.seen: dict[tuple[str, int], dict[str, Tensor]] = {}
        optimizer.register_observer(self)

    def __call__(self, shown: Observation) -> None:
        for row, (p, piece) in enumerate(zip(shown.parameters, shown.pieces, strict=True)):
            fields = ("gradient", "weight", "momentum", "threshold", "base", "update")
            values = {name: getattr(shown, name) for name in fields}
            self.seen[self.names[p], piece] = {n: v[row].clone() for n, v in values.items() if v is not None}


class ShardWatch:
    """What an optimizer shows of this rank's shards, by parameter and piece, at the last step."""

    def __init__(self, model: nn.Module, optimizer: ROOT) -> None:
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.seen: dict[tuple[str, int], dict[str, Tensor]] = {}
        optimizer.register_shard_observer(self)

    def __call__(self, shards: Sequence[ShardObservation]) -> None:
        for shard in shards:
            values = {name: getattr(shard, name) for name in ("gradient", "weight", "momentum", "update")}
            key = (self.names[shard.parameter], shard.piece)
            self.seen[key] = {n: v.clone() for n, v in values.items() if v is not None}


def alone(history: Sequence[Sequence[Tensor]], rank: int, **options: Any) -> dict[str, Any]:
    """Step a single process on the gradients, on rank 0, and send its results to all ranks."""
    if rank:
        return {}
    reference = model()
    single = optimizer(reference, **options)
    watch, changes = Watch(reference, single), changes_of(single)
    for grads in history:
        give(list(reference.parameters()), grads)
        single.step()
    return {
        "single": weights(reference),
        "single momenta": momenta(reference, single),
        "single seen": watch.seen,
        "single changes": changes,
    }


def changes_of(optimizer: ROOT) -> list[Change]:
    """Return a list to which every adopted set is appended."""
    changes: list[Change] = []
    optimizer.register_change_observer(changes.append)
    return changes


def trained(model: nn.Module, optimizer: ROOT, rank: int, *, watched: bool) -> dict[str, Any]:
    """Train each rank on its own data."""
    start = model.module if isinstance(model, DistributedDataParallel) else model
    watch = Watch(start, optimizer) if watched else None
    changes, history = changes_of(optimizer), []
    for step in range(STEPS):
        optimizer.zero_grad()
        model(tokens(step, rank)).backward()
        history.append(gradients(start))
        optimizer.step()
    return {
        "weights": weights(start),
        "momenta": momenta(start, optimizer),
        "seen": watch.seen if watch else {},
        "changes": changes,
        **alone(history, rank),
    }


def replicated(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    ours = DistributedDataParallel(model())
    return trained(ours, optimizer(ours, process_group=dist.group.WORLD), rank, watched=rank == 0)


def sharded(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    ours = model()
    for part in (*ours.square, ours):
        fully_shard(part, mesh=mesh)
    root = optimizer(ours)
    shards = ShardWatch(ours, root)
    result = trained(ours, root, rank, watched=True)
    empty = {name: p.to_local().numel() == 0 for name, p in ours.named_parameters() if isinstance(p, DTensor)}
    return {**result, "empty": empty, "shards": shards.seen}


def stepped(params: list[nn.Parameter], shapes: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
    """Take three steps on drawn gradients, and the same steps in a single process."""
    generator = torch.Generator().manual_seed(9)
    singles = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]
    with torch.no_grad():
        for p, single in zip(params, singles, strict=True):
            p.copy_(cut(single.detach(), p.device_mesh, p.placements) if isinstance(p, DTensor) else single)
    distributed = ROOT(params, **options)
    options.pop("process_group", None)
    reference = ROOT(singles, **options)
    for step in range(3):
        grads = drawn(shapes, step)
        give(params, grads)
        give(singles, grads)
        distributed.step()
        reference.step()
    return {
        "weights": {str(i): whole(p) for i, p in enumerate(params)},
        "single": {str(i): p.detach() for i, p in enumerate(singles)},
        "momenta": {str(i): whole(distributed.state[p]["momentum_buffer"]) for i, p in enumerate(params)},
        "single momenta": {str(i): reference.state[p]["momentum_buffer"] for i, p in enumerate(singles)},
    }


def placed(shapes: Sequence[Sequence[int]], mesh: DeviceMesh, placements: Sequence[Placement]) -> list[nn.Parameter]:
    return [nn.Parameter(cut(torch.zeros(*shape), mesh, placements)) for shape in shapes]


SHAPES = [(8, 12), (12, 8), (8, 12), (2, 6), (10, 4, 2), (0, 4)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "maximize": True, "foreach": False, "lr": torch.tensor(0.01)},
    {"nonfinite": "skip", "outlier_quantile": 1.0, "adjust_lr_fn": "original"},
]


def choices(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Check every option with every way to shard DTensors."""
    world, results = mesh.size(), {}
    both = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    cuts: dict[str, tuple[DeviceMesh, list[Placement]]] = {
        "rows": (mesh, [Shard(0)]),
        "hybrid": (both, [Replicate(), Shard(0)]),
        "columns": (mesh, [Shard(1)]),
        "copies": (mesh, [Replicate()]),
        "twice": (both, [Shard(0), Shard(1)]),
    }
    for number, options in enumerate(OPTIONS):
        group = {"process_group": dist.group.WORLD}
        results[f"replicated {number}"] = stepped(
            [nn.Parameter(torch.zeros(*s)) for s in SHAPES], SHAPES, **options, **group
        )
        for name, (where, placements) in cuts.items():
            results[f"{name} {number}"] = stepped(placed(SHAPES, where, placements), SHAPES, **options)
    groups = [dist.new_group([each]) for each in range(world)]
    results["alone in its group"] = stepped(
        [nn.Parameter(torch.zeros(*s)) for s in SHAPES], SHAPES, process_group=groups[rank]
    )
    one = [(8, 12)]
    results["one for all"] = stepped([nn.Parameter(torch.zeros(8, 12))], one, process_group=dist.group.WORLD)
    return results


def faults(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Put a NaN into the last row of one of three parameters, on the last rank that has rows."""
    shapes: list[tuple[int, ...]] = [(4, 6), (10, 4), (7,)]
    results: dict[str, Any] = {}
    choices: tuple[NonFinite, ...] = ("skip", "raise")
    for choice in choices:
        params = [nn.Parameter(cut(each, mesh, [Shard(0)])) for each in drawn(shapes, 7)]
        groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:], "algorithm": "adamw"}]
        ours = ROOT(groups, nonfinite=choice)
        before, raised, kept = [], [], []
        for step in range(3):
            grads = drawn(shapes, step)
            if step:
                grads[0 if step == 1 else 2][-1] = torch.nan
            give(params, grads)
            before.append([whole(p).clone() for p in params])
            kept.append([{k: whole(v).clone() for k, v in ours.state[p].items()} for p in params])
            try:
                ours.step()
            except FloatingPointError as error:
                raised.append(str(error))
        results[choice] = {
            "before": before,
            "after": [whole(p).clone() for p in params],
            "kept": kept,
            "state": [{k: whole(v).clone() for k, v in ours.state[p].items()} for p in params],
            "raised": raised,
            "skipped": [group.get("skipped") for group in ours.param_groups],
        }
    return results


def disagreeing(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Let ranks find different fits, as different processors may: each rank fits to another mixture."""
    shapes, results = [(10, 16)], {}
    for name, group in (("replicas", dist.group.WORLD), ("shards", None), ("alone", None)):
        plain = [nn.Parameter(torch.zeros(*shape)) for shape in shapes]
        params = placed(shapes, mesh, [Shard(0)]) if name == "shards" else plain
        ours = ROOT(params, calibrate_every=1, calibration_mixture=(1, rank), process_group=group)
        changes = changes_of(ours)
        for step in range(4):
            give(params, drawn(shapes, step))
            ours.step()
        results[name] = {"changes": changes, "weights": {str(i): whole(p) for i, p in enumerate(params)}}
    return results


def copied(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Report the process group of loaded, copied and pickled optimizers."""
    ours = ROOT([nn.Parameter(torch.ones(4, 6))], process_group=dist.group.WORLD)
    ours.load_state_dict(ours.state_dict())
    return {
        "kept": ours.process_group is dist.group.WORLD,
        "deepcopy": copy.deepcopy(ours).process_group,
        "pickle": pickle.loads(pickle.dumps(ours)).process_group,  # noqa: S301
        "keys": sorted(ours.param_groups[0]),
    }


def checkpointed(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Save three steps of two processes, load them in three for three more steps, and take six in a single process."""
    ours = model()
    shapes = [p.shape for p in ours.parameters()]
    fully_shard(ours, mesh=mesh)
    root = optimizer(ours, nonfinite="skip")
    if rank == 0:
        Watch(ours, root)
    first, changes = mesh.size() == 2, changes_of(root)
    if not first:
        load(ours, root, folder.parent / "checkpoint")
    for step in range(3) if first else range(3, 6):
        give(list(ours.parameters()), drawn(shapes, step))
        root.step()
    if first:
        state_dict_saver.save(checkpoint(ours, root), checkpoint_id=folder.parent / "checkpoint")
    history = [drawn(shapes, step) for step in range(6)]
    return {
        "weights": weights(ours),
        "momenta": momenta(ours, root),
        "changes": changes,
        **alone(history, rank, nonfinite="skip"),
    }


def checkpoint(model: nn.Module, optimizer: ROOT) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


def load(model: nn.Module, optimizer: ROOT, path: Path) -> None:
    state = checkpoint(model, optimizer)
    state_dict_loader.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


SCENARIOS: tuple[Callable[[int, DeviceMesh, Path], dict[str, Any]], ...] = (
    replicated,
    sharded,
    choices,
    faults,
    disagreeing,
    copied,
    checkpointed,
)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", timeout=timedelta(seconds=SECONDS / 2), rank=rank, world_size=world
    )
    mesh = init_device_mesh("cpu", (world,))
    results = {scenario.__name__: scenario(rank, mesh, folder) for scenario in SCENARIOS}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
