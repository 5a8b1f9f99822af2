"""Spools that trainers left, and trainers that record to a server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from root_dash.delivery.limits import DeliveryLimits
from root_dash.monitor.layers import watched_layers
from root_dash.monitor.recorder import Recorder
from root_dash.records import Attempt, Frame, Run
from root_dash.sending import remote_sink, sync
from root_dash.store import Store
from tests.delivery.servers import WRITE
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.frames import make_layers
from tests.store.read.test_frames import trained

RUN = Run("u" * 32, "far away", 1.7e9, {"lr": 0.1}, {"masks": 3}, {"name": "ROOT"}, rank=1)
LAYERS = make_layers(6)
HASTY = DeliveryLimits(linger_seconds=0.02, first_pause=0.02, longest_pause=0.1)


def left(folder: Path, frames: int = 4, *, end: bool = True, uid: str = "a" * 32) -> Path:
    """A spool that a trainer left behind."""
    folder.mkdir(exist_ok=True)
    with Store.create(folder / f"{uid}.db") as store:
        recording = store.begin(replace(RUN, uid=uid), LAYERS, Attempt(uid, 1.7e9, host="far"))
        for seq in range(frames):
            recording.append(trained(seq))
        if end:
            recording.end(1.8e9, 3)
    return folder / f"{uid}.db"


def arrived(path: Path, run: int = 1) -> list[Frame]:
    """All frames of a run in the server's database."""
    with Store.open(path) as store:
        return [store.frame(notice.id) for notice in store.frames(run)] if store.runs() else []


def remaining(folder: Path) -> list[str]:
    """What is still in the folder."""
    return sorted(path.name for path in folder.iterdir())


def send(folder: Path, server: str, limits: DeliveryLimits = HASTY) -> list[int]:
    """Send what is left in the folder, and return the number of frames of each spool."""
    return [frames for _, frames in sync(folder, server, WRITE, limits)]


def far(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    server: str,
    folder: Path,
    limits: DeliveryLimits = HASTY,
    token: str = WRITE,
    max_overhead: float | None = None,
) -> Recorder:
    """Watch a model as `root_dash.watch(server=...)` does, with other limits of the delivery."""
    layers, positions = watched_layers(model, optimizers, "*", ())
    run = Run(uuid.uuid4().hex, "far", time.time())
    return Recorder(
        optimizers,
        positions,
        lambda: remote_sink(run, layers, server, token, folder, limits),
        cadence=EVERY_STEP,
        outlier_quantile=0.9,
        max_overhead=max_overhead,
    )


def start(server: str, folder: Path, token: str = WRITE) -> Recorder:
    """Watch a model, train it for five steps, and leave the recorder open."""
    model = Model()
    optimizers = sgd(model)
    run = far(model, optimizers, server, folder, token=token)
    train(model, optimizers, 5, run.log)
    return run
