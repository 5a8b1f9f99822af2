"""What the processes of the recording tests run: `python -m tests.monitor.ranks.processes SCENARIO RANK WORLD FOLDER`.

What is recorded is in the folder's databases, what a process has to say beside it in its JSON file.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

import root_dash
from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.ranks import role
from root_dash.monitor.ranks.exchange import RankLimits, RankReceiver, RankSender
from root_dash.monitor.recorder import Recorder
from tests.monitor.training import EVERY_STEP
from tests.optim.distributed.sharding import cut, drawn, give, model, optimizer, tokens, weights

STEPS = 3
SECONDS = 300

Said = dict[str, Any]
Build = Callable[[nn.Module], list[Optimizer]]

BUILDS: dict[str, Build] = {
    "root": lambda model: [optimizer(model)],
    "adamw": lambda model: [AdamW(model.parameters(), lr=1e-3)],
}


def counts(run: Recorder) -> list[int]:
    return [run.step, run.stored, run.lost, run.failures]


def train(model: nn.Module, optimizers: Sequence[Optimizer], shapes: Sequence[Sequence[int]], log: Any = None) -> None:
    """Steps on gradients that every process draws alike."""
    for step in range(STEPS):
        give(list(model.parameters()), drawn(shapes, step))
        for each in optimizers:
            each.step()
        if log is not None:
            log(loss=float(step))


def recorded(model: nn.Module, build: Build, db: Path, shapes: Sequence[Sequence[int]]) -> Recorder:
    optimizers = build(model)
    watched = root_dash.watch(model, optimizers, db=db, name=db.stem, cadence=EVERY_STEP, max_overhead=math.inf)
    with watched as run:
        train(model, optimizers, shapes, run.log)
    return run


def fsdp(world: int) -> nn.Module:
    """Rows over all processes: uneven, and of the smallest parameters none on the last."""
    ours, mesh = model(), init_device_mesh("cpu", (world,))
    for part in (*ours.square, ours):
        fully_shard(part, mesh=mesh)
    return ours


def hybrid(world: int) -> nn.Module:
    """Every process holds all: copies of the only shard."""
    ours = model()
    fully_shard(ours, mesh=init_device_mesh("cpu", (world, 1), mesh_dim_names=("replicate", "shard")))
    return ours


def columns(world: int) -> nn.Module:
    """Matrices by their second dimension, as tensor parallelism cuts; vectors are copies."""
    ours, mesh = model(), init_device_mesh("cpu", (world,))
    for module in ours.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement: Placement = Shard(1) if parameter.ndim > 1 else Replicate()
            module.register_parameter(name, nn.Parameter(cut(parameter.detach(), mesh, [placement])))
    return ours


def alone(world: int) -> nn.Module:
    """Shard over a mesh of this process alone."""
    ours = model()
    fully_shard(ours, mesh=init_device_mesh("cpu", (world, 1), mesh_dim_names=("others", "shard"))["shard"])
    return ours


CUTS: dict[str, Callable[[int], nn.Module]] = {"fsdp": fsdp, "hybrid": hybrid, "columns": columns}

CHOICES = {2: ("fsdp-root", "fsdp-adamw", "hybrid-root", "columns-root"), 3: ("fsdp-root", "fsdp-adamw")}
"""What is trained on how many processes: how it is cut, and by which optimizer."""


def shards(rank: int, world: int, folder: Path) -> Said:
    """Ways to cut and optimizers, watched and not; and what a single process records of the same."""
    said: Said = {}
    shapes = [p.shape for p in model().parameters()]
    for choice in CHOICES[world]:
        way, name = choice.split("-")
        ours, theirs = CUTS[way](world), CUTS[way](world)
        run = recorded(ours, BUILDS[name], folder / f"{choice}.db", shapes)
        train(theirs, BUILDS[name](theirs), shapes)
        mine, unwatched = weights(ours), weights(theirs)
        same = all(torch.equal(mine[key], unwatched[key]) for key in mine)
        said[choice] = {"counts": counts(run), "same": same}
    single = alone(world)
    if rank == 0:
        several, role._several_processes = role._several_processes, lambda: False  # as far as the recorder knows
        for name, build in BUILDS.items():
            recorded(model(), build, folder / f"single-{name}.db", shapes)
        recorded(single, BUILDS["root"], folder / "alone-root.db", shapes)
        role._several_processes = several
    return said


def replicas(rank: int, world: int, folder: Path) -> Said:
    """DistributedDataParallel: recorded by the first, and by all; and processes that have nothing in common."""
    said: Said = {}
    for which in ("first", "all"):
        ours = DistributedDataParallel(model())
        root = optimizer(ours, process_group=dist.group.WORLD)
        db = folder / f"{which}.db"
        with root_dash.watch(ours, root, db=db, name="ddp", cadence=EVERY_STEP, ranks=which) as run:
            for step in range(STEPS):
                root.zero_grad()
                loss = ours(tokens(step, rank))
                loss.backward()
                root.step()
                run.log(loss=loss.detach(), rank=rank)
        said[which] = counts(run)
    apart = model()
    steps = SGD(apart.parameters(), lr=1e-2)
    with root_dash.watch(apart, steps, db=folder / "all.db", name="apart", cadence=EVERY_STEP, ranks="all") as run:
        for step in range(STEPS):
            give(
                list(apart.parameters()),
                [grad * (rank + 1) for grad in drawn([p.shape for p in apart.parameters()], step)],
            )
            steps.step()
    said["apart"] = counts(run)
    return said


def refusals(rank: int, world: int, folder: Path) -> Said:
    """What cannot be recorded together."""
    ours = fsdp(world)
    steps = AdamW(ours.parameters())
    said: Said = {}
    for name, options in (
        ("all", {"ranks": "all"}),
        ("unknown", {"ranks": "some"}),
        ("others", {"exclude": "head.*" if rank else "norm.*"}),
    ):
        try:
            root_dash.watch(ours, steps, db=folder / "refused.db", **options)  # type: ignore[arg-type]
        except ValueError as error:
            said[name] = str(error)
    return said


def group(value: float) -> LayerGroup:
    return LayerGroup((0,), (2, 3), {"x": {"y": np.full(3, value)}}, 3)


def exchange(rank: int, world: int, folder: Path) -> Said:
    """Parts that come in time, that are missing, that come too late; and more than may wait."""
    pair = dist.new_group(backend="gloo")
    assert pair is not None
    if rank == 1:
        sender = RankSender(pair)
        for step in (1, 2, 4, 5, 6):
            sender.join(step, [group(step)] if step != 2 else [])
        dist.barrier()
        for step in (9, 10):  # by the time that the second is taken, the first has been heard
            sender.join(step, [group(step)])
        dist.barrier()
        sender.close()
        return {}
    limits = RankLimits(waiting_bytes=1)
    receiver = RankReceiver(pair, [1], limits)
    said: Said = {}

    def join(step: int) -> None:
        joined = receiver.join(step, [])
        said[str(step)] = [joined.lost, [event.text for event in joined.events]]

    for step in (1, 2, 3, 4):
        join(step)
    join(6)
    receiver.limits = replace(limits, patience_seconds=0.2)
    join(7)
    join(8)
    dist.barrier()
    dist.barrier()
    receiver.limits = limits
    join(9)
    join(10)
    receiver.close()
    return said


def closing(rank: int, world: int, folder: Path) -> Said:
    """The first closes while the second is in the middle of sending parts of 8 MiB: which of these went."""
    pair = dist.new_group(backend="gloo")
    assert pair is not None
    large = LayerGroup((0,), (2, 3), {"x": {"y": np.zeros(2**20)}}, 3)
    said: Said = {}
    if rank == 1:
        sender = RankSender(pair)
        said["lost"] = [sender.join(step, [large]).lost for step in range(6)]
        sender.close()
    else:
        receiver = RankReceiver(pair, [1])
        said["joined"] = receiver.join(0, []).lost
        receiver.close()
        said["threads"] = sum(thread.name.startswith("root-dash-rank") for thread in threading.enumerate())
    dist.barrier()
    return said


def killed(rank: int, world: int, folder: Path) -> Said:
    """The second process dies in the middle; the first goes on with what is here of the parameters."""
    ours = fsdp(world)
    shapes = [p.shape for p in ours.parameters()]
    steps = AdamW(ours.parameters(), lr=1e-3)
    run = root_dash.watch(ours, steps, db=folder / "killed.db", cadence=EVERY_STEP, max_overhead=math.inf)
    for step in range(8):
        if rank == 1 and step == 4:
            while run.active and run.pending:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        give(list(ours.parameters()), drawn(shapes, step))
        steps.step()
        run.log(loss=float(step))
    run.close()
    return {"counts": counts(run)}


def destroyed(rank: int, world: int, folder: Path) -> Said:
    """The user takes the process groups down before the recorder is closed."""
    ours = fsdp(world)
    shapes = [p.shape for p in ours.parameters()]
    steps = AdamW(ours.parameters(), lr=1e-3)
    run = root_dash.watch(ours, steps, db=folder / "destroyed.db", cadence=EVERY_STEP, max_overhead=math.inf)
    train(ours, [steps], shapes, run.log)
    dist.destroy_process_group()
    run.close()
    return {"counts": counts(run)}


SCENARIOS: dict[str, Callable[[int, int, Path], Said]] = {
    scenario.__name__: scenario for scenario in (shards, replicas, refusals, exchange, closing, killed, destroyed)
}


def main(names: str, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(SECONDS * 0.75)  # before the test gives up
    dist.init_process_group(
        "gloo", f"file://{folder}/store", timeout=timedelta(seconds=SECONDS / 2), rank=rank, world_size=world
    )
    said: Said = {}
    for name in names.split(","):
        said[name] = SCENARIOS[name](rank, world, folder)
        (folder / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
