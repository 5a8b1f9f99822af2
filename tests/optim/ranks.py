"""What the processes of the distributed tests run: every scenario once, with real collectives, results into a file.

`python -m tests.optim.ranks RANK WORLD FOLDER` is one process. Beside what the ranks computed, rank 0 computes what a
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
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from root_dash.optim import ROOT, Observation
from root_dash.optim.calibration import Change
from root_dash.optim.faults import NonFinite
from root_dash.optim.observation import ShardObservation

STEPS = 6
SECONDS = 240


class Model(nn.Module):
    """Every kind of parameter: square, tall, wide and fused matrices, kernels, experts, an embedding and vectors.

    No dimension is divisible by 2 and by 3; some first dimensions are smaller than 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.kernel = nn.Conv1d(16, 10, 2, padding="same")
        self.up = nn.Linear(10, 16)
        self.up_again = nn.Linear(10, 16, bias=False)
        self.square = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.experts = nn.Parameter(torch.randn(2, 8, 16) / 4)
        self.odd = nn.Linear(8, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.kernel(self.embedding(tokens).mT).mT
        x = torch.tanh(self.up(x) + self.up_again(x))
        for layer in self.square:
            x = x + torch.tanh(layer(x))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.mT, -1) @ v
        x = torch.tanh(torch.einsum("btd,eod->bto", x, self.experts))
        loss: Tensor = self.head(torch.tanh(self.odd(x))).square().mean()
        return loss


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Five groups: plain, which is calibrated every two steps, fused, experts, one by one, AdamW."""
    named = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    special: dict[str, dict[str, Any]] = {
        "qkv.weight": {"split_sizes": (16, 16, 16)},
        "experts": {"batch_ndim": 1},
        "odd.weight": {"foreach": False},
    }
    adamw = [name for name, p in named.items() if p.ndim < 2 or name in ("embedding.weight", "head.weight")]
    plain = [name for name in named if name not in special and name not in adamw]
    return [
        {"params": [named[name] for name in plain], "calibrate_every": 2},
        *[{"params": [named[name]], **options} for name, options in special.items()],
        {"params": [named[name] for name in adamw], "algorithm": "adamw", "lr": 0.01},
    ]


def optimizer(model: nn.Module, **options: Any) -> ROOT:
    return ROOT(groups(model), lr=0.02, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, whole: a collective call."""
    return {name.removeprefix("module."): whole(p).clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> list[Tensor]:
    """All gradients, whole: a collective call."""
    return [whole(p.grad).clone() for p in model.parameters() if p.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def momenta(model: nn.Module, optimizer: ROOT) -> dict[str, Tensor]:
    return {
        f"{name.removeprefix('module.')}.{key}": whole(value).clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
    }


def tokens(step: int, rank: int) -> Tensor:
    """A batch of each rank's own."""
    return torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(100 * step + rank))


def drawn(shapes: Sequence[Sequence[int]], step: int) -> list[Tensor]:
    """Gradients that every rank draws alike."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(*shape, generator=generator) ** 3 for shape in shapes]


def give(params: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    """Whole gradients to parameters, cut as these are."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = cut(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad.clone()


def cut(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


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
    """What a single process makes of the gradients; rank 0 tells."""
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
    """A list that grows by every set that is adopted."""
    changes: list[Change] = []
    optimizer.register_change_observer(changes.append)
    return changes


def trained(model: nn.Module, optimizer: ROOT, rank: int, *, watched: bool) -> dict[str, Any]:
    """Train on data of each rank's own."""
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
    """Three steps on drawn gradients, and what a single process makes of them."""
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
    """Options, and the ways in which DTensors can be cut."""
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
        results[f"dealt {number}"] = stepped(
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
    """A NaN in the last row of one parameter of three, which the last rank that has any holds."""
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
    """Ranks that fit otherwise than each other, as those with other processors may: here to another mixture."""
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
    """What becomes of the process group."""
    ours = ROOT([nn.Parameter(torch.ones(4, 6))], process_group=dist.group.WORLD)
    ours.load_state_dict(ours.state_dict())
    return {
        "kept": ours.process_group is dist.group.WORLD,
        "deepcopy": copy.deepcopy(ours).process_group,
        "pickle": pickle.loads(pickle.dumps(ours)).process_group,  # noqa: S301
        "keys": sorted(ours.param_groups[0]),
    }


def checkpointed(rank: int, mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Three steps in a world of two, saved; three more in a world of three that loads it; six in a single process."""
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
