"""The way into a recording: `root_dash.watch` records the steps of an optimizer.

The module cannot be called `watch.py`: once imported, it would hide the function `root_dash.watch` behind its own name.
"""

from __future__ import annotations

import reprlib
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from root_dash.alerts import AlertingSink, Alerts
from root_dash.defaults import default_place, default_spool, default_webhook, is_path
from root_dash.exceptions import missing_extra
from root_dash.health import Health
from root_dash.records import Layer, Run
from root_dash.records.verdict import Verdict
from root_dash.sending import remote_sink
from root_dash.store.backends.location import Location
from root_dash.store.failover import FailoverRecording
from root_dash.store.store import Store

if TYPE_CHECKING:
    import os

    from torch import nn
    from torch.optim import Optimizer

    from root_dash.delivery.webhook import Webhook
    from root_dash.monitor.limits.cadence import Cadence
    from root_dash.monitor.ranks.role import RecordingRanks
    from root_dash.monitor.recorder import Recorder
    from root_dash.monitor.wrapped import Wrapper
    from root_dash.monitor.writing.sink import Sink


def watch(
    model: nn.Module,
    optimizer: Optimizer | Wrapper | Sequence[Optimizer | Wrapper],
    *,
    db: str | os.PathLike[str] | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    cadence: Cadence | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    outlier_quantile: float = 0.9,
    max_overhead: float | None = None,
    ranks: RecordingRanks = "first",
    server: str | None = None,
    token: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    on_verdict: Callable[[Verdict], object] | None = None,
    webhook: str | None = None,
) -> Recorder:
    """Record the steps of an optimizer into a database until the returned recorder is closed.

    ```python
    with watch(model, optimizer, db="runs.db", name="gpt-124m") as run:
        for batch in batches:
            loss = train(batch)      # calls optimizer.step()
            run.log(loss=loss)
    ```

    Under ROOT the recorder stores everything of the step. For any other optimizer the recorder stores the gradients,
    the momentum and the update: the change of the weights divided by the learning rate, weight decay included. If
    several optimizers share a model's parameters, give them as a sequence, in the order in which they step.

    If a framework wraps the optimizer, the optimizer inside is watched: in what Accelerate prepares, and so in Hugging
    Face's Trainer, and in torchtitan's container of several optimizers. A call that the wrapper does not pass on, as
    during gradient accumulation, is not a step. Changes of the weights by the wrapper itself are not recorded.

    - A step is a step of the optimizer. Its gradient is the sum under gradient accumulation, and clipped if clipped.
    - Under a `GradScaler` the gradients are unscaled, and a step that the scaler skips is not recorded. A fused
      optimizer skips on the device: such a step is recorded, with an update of 0.
    - A frozen parameter is not a layer. A parameter that is unfrozen, or added to an optimizer, becomes a layer, and an
      event of kind "layers" says so. A layer without a gradient is missing from the step.
    - A parameter that several modules share is a single layer, under the first of its names.
    - The layers of a compiled model have the names of the model that is not compiled.
    - If a step is given a closure, the gradients that the closure computes are recorded, but not the update.

    If several processes train, the first process records, and the recorder of any other process does nothing. Under
    FSDP2, and for DTensors in general, `watch` is a collective call: every process has to call it. Each process then
    measures its shards, and the first process merges and records them. Values that cannot be merged are missing: the
    quantiles of the gradient, layers that appear later, and what needs the whole momentum if no process has the whole
    momentum (the outliers and spectra of AdamW). Each process keeps to the budget by itself. A kind is recorded at a
    step if the kind is due in every process.

    Args:
        model: the module whose parameters name the layers.
        optimizer: an optimizer of torch, a wrapper with an attribute `optimizer` or `optimizers`, or a sequence of
            these. If an instance of torch's `Optimizer` was set up by its constructor, the instance itself is recorded,
            even if the instance wraps another optimizer.
        db: path of the database or URL of a PostgreSQL database, `postgresql://user:password@host/database`. A missing
            file is made. Several runs may share a database. If None, ROOT_DASH_DB, else `root-dash.db`.
        name: name of the run, for people. If None, the name of the host and the time.
        config: JSON values to keep with the run. A value of another type is kept as text.
        cadence: interval in steps of each kind of recording.
        include: a glob, or globs, over the names of the layers to watch.
        exclude: a glob, or globs, over the names of the layers not to watch.
        outlier_quantile: quantile of |M| beyond which an entry counts as an outlier, if the optimizer itself has no
            threshold.
        max_overhead: share of a step's time that recording may add. If recording adds more, the costly kinds and what
            is logged are recorded less often than `cadence` says, and an event of kind "cadence" says so. Sentinels
            come before the budget. If None, 0.01 on a GPU and 0.03 on a CPU. `math.inf` keeps to the cadence at any
            cost.
        ranks: `"first"`, or `"all"` to record a run for each process. With `"all"`, every process has to call `watch`,
            and no parameter may be sharded.
        server: address of a `root-dash serve` on another machine that records instead, such as `http://host:8050`.
            Frames wait on this machine's disk until the server has them, at most 2 GiB of them, so that a server that
            is away costs the training nothing.
        token: write token of the server. If None, ROOT_DASH_WRITE_TOKEN.
        spool: folder in which frames wait. A missing folder is made. If None, ROOT_DASH_SPOOL, else `root-dash-spool`.
            Frames that an earlier run left in the folder are sent, too.
        on_verdict: a function that is called with every verdict of the diagnosis when it begins, gets worse or ends, in
            a thread of its own. What it raises is counted and shown once.
        webhook: address that is sent a message when a verdict begins, in the form of Slack, Mattermost and Discord. If
            None, ROOT_DASH_WEBHOOK.

    Returns:
        The recorder, a context manager that closes itself.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range, no layer is left to watch, an optimizer is given twice, or the
            processes that hold shards watch different layers.
        ImportError: torch is not installed.
        StoreError: the database, or the folder in which frames wait, cannot be made or opened.

    If `watch` raises an error, no run was begun and nothing is attached to the optimizers.
    """
    try:
        from torch import nn
    except ImportError:
        raise ImportError(missing_extra("root_dash.watch", "torch", "torch")) from None

    from root_dash.monitor.layers import describe_optimizers, watched_layers
    from root_dash.monitor.limits.cadence import Cadence
    from root_dash.monitor.new_layers import NewLayerFinder
    from root_dash.monitor.ranks.role import role_of_this_process, text_of_first_rank
    from root_dash.monitor.recorder import Recorder, closed_recorder
    from root_dash.monitor.wrapped import unwrapped
    from root_dash.monitor.writing.sink import NullSink

    cadence = Cadence() if cadence is None else cadence
    for argument, shown, fits, kind in (  # if a value may hold a secret, only its type is shown
        ("model", model, isinstance(model, nn.Module), "a torch.nn.Module"),
        ("include", include, _are_globs(include), "a glob or a sequence of globs, each a str"),
        ("exclude", exclude, _are_globs(exclude), "a glob or a sequence of globs, each a str"),
        ("cadence", cadence, isinstance(cadence, Cadence), "a root_dash.Cadence"),
        ("name", name, name is None or isinstance(name, str), "a str"),
        ("config", config, config is None or isinstance(config, Mapping), "a mapping"),
        ("ranks", ranks, isinstance(ranks, str), "a str"),
        ("outlier_quantile", outlier_quantile, _is_number(outlier_quantile), "a number"),
        ("server", server, server is None or isinstance(server, str), "a str"),
        ("token", type(token), token is None or isinstance(token, str), "a str"),
        ("max_overhead", max_overhead, max_overhead is None or _is_number(max_overhead), "a number"),
        ("spool", spool, spool is None or is_path(spool), "a path"),
        ("on_verdict", on_verdict, on_verdict is None or callable(on_verdict), "a function"),
        ("webhook", type(webhook), webhook is None or isinstance(webhook, str), "a str"),
        ("db", type(db), db is None or is_path(db), "a path or the URL of a PostgreSQL database"),
    ):
        if not fits:
            raise TypeError(f"{argument} must be {kind}, got {reprlib.repr(shown)}")
    optimizers = unwrapped(optimizer)
    if db is not None and server is not None:
        raise ValueError("give db or server, not both: a server keeps its own database")
    if not 0.0 < outlier_quantile <= 1.0:
        raise ValueError(f"outlier_quantile must be in (0, 1], got {outlier_quantile}")
    if max_overhead is not None and not max_overhead > 0.0:
        raise ValueError(f"max_overhead must be greater than 0, got {max_overhead}")
    hook = _webhook(default_webhook(webhook))
    place = default_place(db) if server is None else None  # refuses a wrong db before anything is made
    layers, positions = watched_layers(model, optimizers, include, exclude)
    role = role_of_this_process(ranks, layers, positions)
    if not role.records:
        return closed_recorder()
    started_at, uid = time.time(), uuid.uuid4().hex
    name = name or f"{socket.gethostname()} {time.strftime('%Y-%m-%d %H:%M', time.localtime(started_at))}"
    if ranks == "all":
        uid, name = text_of_first_rank(f"{uid} {name}").split(" ", 1)
    run = Run(
        uid=f"{uid}-rank{role.rank}" if role.rank else uid,
        name=name,
        rank=role.rank,
        started_at=started_at,
        config=dict(config or {}),
        cadence=asdict(cadence),
        optimizer=describe_optimizers(optimizers),
    )
    new_layers = NewLayerFinder(optimizers, layers, lambda: watched_layers(model, optimizers, include, exclude))

    alerts = Alerts(run, on_verdict, hook)

    def begin() -> Sink:
        if not role.stores:
            return NullSink()
        if server is None:
            assert place is not None
            return AlertingSink(_local_sink(run, layers, place, alerts), alerts)
        # An absolute path, because the process may have changed its working folder when a connection is opened.
        sink = remote_sink(run, layers, server, token, default_spool(spool).absolute())
        return AlertingSink(sink, alerts, layers)

    return Recorder(
        optimizers,
        role.positions,
        begin,
        cadence=cadence,
        outlier_quantile=outlier_quantile,
        max_overhead=max_overhead,
        link=role.link,
        forwards=not role.stores,
        new_layers=new_layers if role.link is None else None,
        alerts=alerts,
        seed=zlib.crc32(uid.encode()) if role.seed is None else role.seed,
        names=[layer.name for layer in layers],
    )


def _are_globs(given: object) -> bool:
    """Return whether an argument is a glob or a collection of globs."""
    return isinstance(given, str) or (isinstance(given, Collection) and all(isinstance(glob, str) for glob in given))


def _is_number(given: object) -> bool:
    """Return whether an argument is a number and not a truth value."""
    return isinstance(given, float | int) and not isinstance(given, bool)


def _webhook(address: str | None) -> Webhook | None:
    """Return the webhook at an address. Who has none pays for no HTTP client."""
    if address is None:
        return None
    from root_dash.delivery.webhook import Webhook

    return Webhook(address)


def _local_sink(run: Run, layers: Sequence[Layer], location: Location, alerts: Alerts) -> Sink:
    """Return a sink that stores the run in a database. If the run cannot begin, the database is closed again."""
    from root_dash.monitor.failures import print_to_stderr

    store = Store.create(location, judge=Health)
    try:
        return FailoverRecording(store, run, layers, print_to_stderr, alerts.tell)
    except BaseException:
        store.close()
        raise
