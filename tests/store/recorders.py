"""Recorders whose database waits only briefly for the lock of another process."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from root_dash.monitor.failures import print_to_stderr
from root_dash.monitor.layers import watched_layers
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.sink import Sink
from root_dash.records import Run
from root_dash.store import Limits, Store
from root_dash.store.failover import FailoverRecording


def impatient(
    path: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    lock_seconds: float,
    max_overhead: float | None = None,
    name: str = "run",
) -> Recorder:
    """Watch a model as `root_dash.watch` does, into a database that waits `lock_seconds` for a lock."""
    layers, positions = watched_layers(model, optimizers, "*", ())
    run = Run(uuid.uuid4().hex, name, 1.7e9)

    def begin() -> Sink:
        store = Store.create(path, Limits(lock_seconds=lock_seconds))
        return FailoverRecording(store, run, layers, print_to_stderr)

    return Recorder(
        list(optimizers), positions, begin, cadence=Cadence(), outlier_quantile=0.9, max_overhead=max_overhead
    )
