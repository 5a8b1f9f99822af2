"""Spools that trainers left, and trainers that record to a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import root_dash
from root_dash.monitor.recorder import Recorder
from root_dash.records import Attempt, Frame, Run
from root_dash.sending import sync
from root_dash.store import Store
from tests.delivery.servers import WRITE
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.frames import make_layers
from tests.store.read.test_frames import trained

RUN = Run("u" * 32, "far away", 1.7e9, {"lr": 0.1}, {"masks": 3}, {"name": "ROOT"}, rank=1)
LAYERS = make_layers(6)


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


def send(folder: Path, server: str) -> list[int]:
    """Send what is left in the folder; the frames of each spool."""
    return [frames for _, frames in sync(folder, server, WRITE)]


def start(server: str, folder: Path, token: str = WRITE) -> Recorder:
    """Watch a model, train it for five steps, and leave the recorder open."""
    model = Model()
    optimizers = sgd(model)
    run = root_dash.watch(model, optimizers, server=server, token=token, spool=folder, name="far", cadence=EVERY_STEP)
    train(model, optimizers, 5, run.log)
    return run
