"""The two ways in and out of a recording: `watch` writes one, `open` reads one."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from root_dash.records import Run
from root_dash.store.store import Store

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from root_dash.monitor.cadence import Cadence
    from root_dash.monitor.watch import Recorder

DEFAULT_DB = "root-dash.db"


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    db: str | os.PathLike[str] = DEFAULT_DB,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    cadence: Cadence | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    outlier_quantile: float = 0.9,
) -> Recorder:
    """Record every step of an optimizer into a SQLite file until the returned recorder is closed.

    ```python
    with watch(model, optimizer, db="runs.db", name="gpt-124m") as run:
        for batch in batches:
            loss = train(batch)      # calls optimizer.step()
            run.log(loss=loss)
    ```

    Under ROOT everything of its step is recorded; of any other optimizer the gradients and the momentum. Several
    optimizers that share a model's parameters may be given as a sequence, in the order in which they step.

    Args:
        model: names the layers.
        optimizer: what steps them.
        db: path of the database, made where it does not exist; several runs may share one.
        name: of the run, for people; the host's name and the time where none is given.
        config: what to keep with the run, JSON values; others are kept as text.
        cadence: the interval of each kind of recording in steps.
        include: globs over layer names to watch.
        exclude: globs over layer names not to watch.
        outlier_quantile: of |M|, at which outliers are counted where the optimizer itself cuts none.

    Raises:
        ValueError: no layer is left to watch, or the quantile is not in (0, 1].
        StoreError: the database cannot be made or opened.
    """
    from torch.optim import Optimizer

    from root_dash.monitor.cadence import Cadence
    from root_dash.monitor.layers import describe_optimizers, watched_layers
    from root_dash.monitor.watch import Recorder

    if not 0.0 < outlier_quantile <= 1.0:
        raise ValueError(f"outlier_quantile must be in (0, 1], got {outlier_quantile}")
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    cadence = cadence or Cadence()
    layers, positions = watched_layers(model, optimizers, include, exclude)
    started_at = time.time()
    run = Run(
        uid=uuid.uuid4().hex,
        name=name or f"{socket.gethostname()} {time.strftime('%Y-%m-%d %H:%M', time.localtime(started_at))}",
        started_at=started_at,
        config=dict(config or {}),
        cadence=asdict(cadence),
        optimizer=describe_optimizers(optimizers),
    )
    sink = Store.create(Path(db)).begin(run, layers)
    return Recorder(optimizers, positions, sink, cadence=cadence, outlier_quantile=outlier_quantile)


def open(path: str | os.PathLike[str] = DEFAULT_DB) -> Store:  # the public name: `root_dash.open`
    """Open a recording for reading: every verb of the store returns NumPy arrays in frozen records.

    Works while a run writes to it.

    Raises:
        StoreNotFound: there is no file at that path, or it cannot be read.
        StoreForeign: it is not a root-dash database.
    """
    return Store.open(Path(path))
