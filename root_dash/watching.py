"""The two ways in and out of a recording: `watch` writes one, `open` reads one."""

from __future__ import annotations

import os
import platform
import reprlib
import socket
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from root_dash.exceptions import StoreError
from root_dash.extras import missing_extra
from root_dash.records import Attempt, Layer, Run
from root_dash.store.backends.location import Location, parse
from root_dash.store.failover import FailoverRecording
from root_dash.store.spool import Spool
from root_dash.store.store import Store

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from root_dash.delivery.limits import DeliveryLimits
    from root_dash.monitor.limits.cadence import Cadence
    from root_dash.monitor.ranks.role import RecordingRanks
    from root_dash.monitor.recorder import Recorder
    from root_dash.monitor.wrapped import Wrapper
    from root_dash.monitor.writing.sink import Sink

DEFAULT_DB = "root-dash.db"
DEFAULT_SPOOL = "root-dash-spool"


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
) -> Recorder:
    """Record every step of an optimizer into a database until the returned recorder is closed.

    ```python
    with watch(model, optimizer, db="runs.db", name="gpt-124m") as run:
        for batch in batches:
            loss = train(batch)      # calls optimizer.step()
            run.log(loss=loss)
    ```

    Under ROOT everything of its step is recorded; of any other optimizer the gradients and the momentum, and as its
    update what the weights were moved by, over the learning rate, weight decay included. Several optimizers that share
    a model's parameters may be given as a sequence, in the order in which they step.

    Of what a framework wraps around an optimizer, the optimizer inside is watched: of what Accelerate prepares, and
    with it the Trainer of Hugging Face, or of torchtitan's container of several. A call that the wrapper does not
    pass on, as under gradient accumulation, is no step, and what the wrapper does to the weights by itself is not seen.

    - A step is an optimizer's: under gradient accumulation its gradient is the sum, after clipping the clipped one.
    - Under a `GradScaler` gradients are unscaled, and a step that it skips is none. A fused optimizer skips by itself,
      on the device: such a step counts, and its update is 0.
    - A frozen layer is none. Once it is unfrozen, or added to an optimizer, it is one, from that step on; an event of
      kind "layers" tells. A layer without a gradient is missing from the step.
    - A parameter that several modules share is one layer, under the first of its names.
    - A compiled model's layers bear the names that they have without.
    - A step that is given a closure makes its own gradients: they are recorded, its update is not.

    Where several processes train, the first one records, and elsewhere the recorder does nothing. Under FSDP2, and of
    DTensors in general, all processes have to call this, which is a collective call then: each measures its shards, and
    the first puts them together and records them. What does not add up is missing: the gradient's quantiles, what
    needs the whole momentum where no process has it (AdamW's outliers and spectra), and layers that come later. Each
    process keeps the budget on its own; what is due in all of them is recorded.

    Args:
        model: names the layers.
        optimizer: what steps them: an optimizer of torch, a wrapper that holds it as `optimizer` or several as
            `optimizers`, or a sequence of these. A subclass of torch's `Optimizer` that was set up by its constructor
            is recorded itself, also where it wraps another one.
        db: path of the database, made where it does not exist, or the URL of a PostgreSQL database,
            `postgresql://user:password@host/database`; several runs may share one. ROOT_DASH_DB where none is given,
            else `root-dash.db`.
        name: of the run, for people; the host's name and the time where none is given.
        config: what to keep with the run, JSON values; others are kept as text.
        cadence: the interval of each kind of recording in steps.
        include: globs over the names of the layers to watch, or one.
        exclude: globs over the names of the layers not to watch, or one.
        outlier_quantile: of |M|, at which outliers are counted where the optimizer itself cuts none.
        max_overhead: the share of a step's time that recording may add; where it adds more, the costly kinds are
            recorded less often than `cadence` says, and an event of kind "cadence" tells. Where none is given 0.01 on
            a GPU and 0.03 on a CPU; `math.inf` to keep to the cadence at any cost.
        server: address of a `root-dash serve` elsewhere to record to instead, as `http://host:8050`. Frames wait on
            this machine's disk until they are there, 2 GiB at most: a server that is away costs the training nothing.
        token: its write token; ROOT_DASH_WRITE_TOKEN where none is given.
        spool: the folder where frames wait, made where it does not exist; ROOT_DASH_SPOOL where none is given, else
            `root-dash-spool`. What an earlier run left in it is sent, too.
        ranks: `"first"`, or `"all"` for a run of each process: all have to call this then, too. Not for shards.

    Raises:
        ValueError: no layer is left to watch, an argument is out of its range, an optimizer is given twice, or the
            processes that hold shards watch different layers.
        TypeError: an argument is of another type.
        ImportError: torch is not installed.
        StoreError: the database cannot be made or opened.

    Where it raises, no run was begun and nothing is attached to the optimizers.
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
    for argument, shown, fits, kind in (  # of what may hold a secret the type alone is shown
        ("model", model, isinstance(model, nn.Module), "a torch.nn.Module"),
        ("include", include, _are_globs(include), "a glob or a sequence of globs, each a str"),
        ("exclude", exclude, _are_globs(exclude), "a glob or a sequence of globs, each a str"),
        ("cadence", cadence, isinstance(cadence, Cadence), "a root_dash.monitor.limits.cadence.Cadence"),
        ("name", name, name is None or isinstance(name, str), "a str"),
        ("config", config, config is None or isinstance(config, Mapping), "a mapping"),
        ("outlier_quantile", outlier_quantile, _is_number(outlier_quantile), "a number"),
        ("server", server, server is None or isinstance(server, str), "a str"),
        ("token", type(token), token is None or isinstance(token, str), "a str"),
        ("max_overhead", max_overhead, max_overhead is None or _is_number(max_overhead), "a number"),
        ("spool", spool, spool is None or _is_path(spool), "a path"),
        ("db", type(db), db is None or _is_path(db), "a path or the URL of a PostgreSQL database"),
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
    place = default_place(db) if server is None else None  # says what is wrong with it, before anything is made
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

    def begin() -> Sink:
        if not role.stores:
            return NullSink()
        if server is None:
            assert place is not None
            return _local(run, layers, place)
        # Where it is now: connections are made later too, when the process may have gone to another folder.
        return _remote(run, layers, server, token, default_spool(spool).absolute())

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
    )


def _are_globs(given: object) -> bool:
    return isinstance(given, str) or (isinstance(given, Collection) and all(isinstance(one, str) for one in given))


def _is_number(given: object) -> bool:
    return isinstance(given, float | int) and not isinstance(given, bool)


def _is_path(given: object) -> bool:
    return isinstance(given, str) or (isinstance(given, os.PathLike) and isinstance(os.fspath(given), str))


def _local(run: Run, layers: Sequence[Layer], location: Location) -> Sink:
    """Begin the run in the database at that location; close the database if the run cannot begin."""
    from root_dash.monitor.failures import print_to_stderr

    store = Store.create(location)
    try:
        return FailoverRecording(store, run, layers, print_to_stderr)
    except BaseException:
        store.close()
        raise


def _remote(
    run: Run,
    layers: Sequence[Layer],
    server: str,
    token: str | None,
    folder: Path,
    limits: DeliveryLimits | None = None,
) -> Sink:
    """A spool of the run's own in the folder, and the thread that sends it to the server, and what others left."""
    from root_dash.delivery.client import IngestClient
    from root_dash.delivery.delivery import Delivery, leftovers
    from root_dash.delivery.sender import Sender, SpoolSink
    from root_dash.delivery.spool_lock import lock_spool

    token = default_token(token)
    IngestClient(server, token).close()  # says what is wrong with either, before anything is made

    def begin(layers: Sequence[Layer]) -> tuple[Sink, Sender]:
        attempt = Attempt(uuid.uuid4().hex, time.time(), pid=os.getpid(), host=platform.node())
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_spool(folder / f"{attempt.uid}.db", new=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StoreError(f"frames cannot wait in the folder {folder}: {reason}") from None
        if lock is None:  # nobody else knows the name
            raise StoreError(f"frames cannot wait in the folder {folder}: its filesystem takes no locks")
        try:
            store = Spool.create(lock.path)
            try:
                recording = store.begin(run, layers, attempt)
                client = IngestClient(server, token)
                delivery = Delivery(lock, store, client, limits)
                sender = Sender(delivery, leftovers(folder, client, limits), client, limits)
            except BaseException:
                store.close()
                raise
        except BaseException:
            lock.delete()  # it is tried again, under another name
            raise
        return recording, sender

    return SpoolSink(begin, layers)


def sync(
    folder: str | os.PathLike[str] | None, server: str, token: str | None, limits: DeliveryLimits | None = None
) -> Iterator[tuple[Path, int]]:
    """Send the spools that runs left in a folder, the oldest first; each one's path and frames once they are there.

    Spools of runs that still train are left to them. A run that was killed ends with its last frame.

    Raises:
        ValueError: the server's address or the token is none.
        RootDashError: the server does not answer or refuses the frames, which stay where they are.
    """
    from root_dash.delivery.client import IngestClient
    from root_dash.delivery.delivery import deliver, leftovers

    client = IngestClient(server, default_token(token))
    try:
        for delivery in leftovers(default_spool(folder), client, limits):
            try:
                yield delivery.path, deliver(delivery)
            finally:
                delivery.close()
    finally:
        client.close()


def open(path: str | os.PathLike[str] | None = None) -> Store:  # the public name: `root_dash.open`
    """Open a recording for reading: every verb of the store returns NumPy arrays in frozen records.

    Works while a run writes to it. It takes a path, or the URL of a PostgreSQL database; without one it opens
    ROOT_DASH_DB, else `root-dash.db`.

    Raises:
        ValueError: it is a URL of something else than PostgreSQL.
        StoreNotFound: there is no file at that path, or it cannot be read; the server cannot be reached.
        StoreForeign: it is not a root-dash database.
    """
    return Store.open(default_place(path))


def default_spool(given: str | os.PathLike[str] | None) -> Path:
    """The folder that was given, else ROOT_DASH_SPOOL, else `root-dash-spool`."""
    return Path(given or os.environ.get("ROOT_DASH_SPOOL") or DEFAULT_SPOOL)


def default_token(given: str | None) -> str:
    """The token that was given, else ROOT_DASH_WRITE_TOKEN.

    Raises:
        ValueError: there is neither.
    """
    token = given or os.environ.get("ROOT_DASH_WRITE_TOKEN")
    if not token:
        raise ValueError("server needs the write token that `root-dash serve` prints: token, or ROOT_DASH_WRITE_TOKEN")
    return token


def default_place(given: str | os.PathLike[str] | None) -> Location:
    """The place of what was given, else of ROOT_DASH_DB, else of `root-dash.db`: a path where it is now.

    Connections are made later too, when the process may have gone to another folder.

    Raises:
        ValueError: it is a URL of something else than PostgreSQL.
    """
    place = parse(given or os.environ.get("ROOT_DASH_DB") or DEFAULT_DB)
    return place.absolute() if isinstance(place, Path) else place
