"""Recordings for a server elsewhere: the sink of a new recording, and the delivery of what earlier runs left here."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from root_dash.defaults import default_spool, default_token
from root_dash.exceptions import StoreError
from root_dash.records import Attempt, Layer, Run
from root_dash.store.spool import Spool

if TYPE_CHECKING:
    from root_dash.delivery.limits import DeliveryLimits
    from root_dash.delivery.sender import Sender
    from root_dash.monitor.writing.sink import Sink


def remote_sink(
    run: Run,
    layers: Sequence[Layer],
    server: str,
    token: str | None,
    folder: Path,
    limits: DeliveryLimits | None = None,
) -> Sink:
    """Return a sink that keeps a run's frames in a spool of its own and sends them to a server from a thread.

    The thread also sends the spools that earlier runs left in `folder`, an absolute path. A missing folder is made.

    Raises:
        ValueError: the server's address or the token is wrong. The check comes before anything is made.
        StoreError: the folder or the spool cannot be made, or the filesystem has no locks.
    """
    from root_dash.delivery.client import IngestClient
    from root_dash.delivery.delivery import Delivery, leftovers
    from root_dash.delivery.sender import Sender, SpoolSink
    from root_dash.delivery.spool_lock import lock_spool

    token = default_token(token)
    IngestClient(server, token).close()  # checks both, before anything is made

    def begin(layers: Sequence[Layer]) -> tuple[Sink, Sender]:
        attempt = Attempt(uuid.uuid4().hex, time.time(), pid=os.getpid(), host=platform.node())
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_spool(folder / f"{attempt.uid}.db", new=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StoreError(f"frames cannot wait in the folder {folder}: {reason}") from None
        if lock is None:  # no other process knows the new name, so no other process can hold the lock
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
            lock.delete()  # the next try takes another name
            raise
        return recording, sender

    return SpoolSink(begin, layers)


def sync(
    folder: str | os.PathLike[str] | None, server: str, token: str | None, limits: DeliveryLimits | None = None
) -> Iterator[tuple[Path, int]]:
    """Send the spools that runs left in a folder, the oldest first. The spool of a run that still trains stays.

    A run that was killed ends with its last frame. If `folder` or `token` is None, the environment or the default
    decides. An address of a server is `http://host:8050`.

    Yields:
        The path of each spool and the number of its frames, once the server has all of them.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: the server's address or the token is wrong.
        RootDashError: the server does not answer, or refuses the frames. The frames then stay in the folder.
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
