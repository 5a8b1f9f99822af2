"""The demo command: train, record, and show it live in a browser."""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from root_dash.defaults import default_place
from root_dash.demo.model import GPT
from root_dash.demo.sick import FAULTS, make_sick
from root_dash.demo.text import standard_library
from root_dash.demo.train import PRESETS, OptimizerName, State, build_optimizers, train
from root_dash.exceptions import RootDashError
from root_dash.monitor.recorder import Recorder
from root_dash.store import Location, Server
from root_dash.watching import watch

SERVER_SECONDS = 30.0
"""Longest time in seconds for the dashboard to answer for the first time."""


def demo(
    *,
    preset: str = "tiny",
    steps: int | None = None,
    device: str = "auto",
    optimizer: OptimizerName = "root",
    db: Path | str | None = None,
    port: int | None = None,
    serve: bool = True,
    open_browser: bool = True,
    sick: str | None = None,
) -> None:
    """Train a small model, record the training, and show it in a dashboard that runs in a process of its own.

    If the dashboard is shown, the demo ends with Ctrl-C.

    With `sick`, one of `root_dash.demo.sick.FAULTS` begins after a third of the steps. The same command without it is
    the healthy twin: same weights, same batches.

    Raises:
        RootDashError: the preset or the fault is unknown, the number of steps is not positive, the device does not
            exist, the database or the port cannot be used, there is no text to train on, or the loss is no longer
            finite although no fault was asked for.
    """
    chosen = PRESETS.get(preset)
    if chosen is None:
        raise RootDashError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if steps is not None and steps < 1:
        raise RootDashError(f"--steps must be at least 1, got {steps}")
    place = default_place(db)
    target = _device(device)
    total = steps or chosen.steps
    console = Console()
    text = standard_library()
    torch.manual_seed(0)
    model = GPT(chosen.shape).to(target)
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"{preset}: {parameters / 1e6:.2f} M parameters under {optimizer} on {target}, "
        f"{len(text.train) / 1e6:.1f} MB of Python to read, {total:,} steps, recorded into {place}"
    )
    optimizers = build_optimizers(model, optimizer, chosen)
    patients = ExitStack()
    onset = max(1, total // 3)
    if sick is not None:
        patient = patients.enter_context(make_sick(sick, model, optimizers, onset=onset))
        where = "the whole run" if FAULTS[sick].whole_run else patient.layer
        console.print(f"sick from step {onset:,} on, in {where}. {FAULTS[sick].text}")
    config: dict[str, object] = {
        "preset": preset,
        "steps": total,
        "batch": chosen.batch,
        "lr": chosen.lr,
        "parameters": parameters,
    }
    # Without a budget, so that there is something to see at every step. The frames say how much recording costs.
    recorder = watch(
        model,
        optimizers,
        db=db,
        name=f"{preset} · {optimizer}" + (f" · {sick}" if sick else ""),
        config=config,
        cadence=chosen.cadence,
        max_overhead=math.inf,
    )
    with patients, recorder, _dashboard(place, port, console, open_browser) if serve else _no_dashboard() as server:
        try:
            _train(recorder, train(model, optimizers, text, chosen, total, recorder.log, target), total, console)
        except RootDashError as error:
            if sick is None:
                raise
            console.print(f"the fault ended the training: {error}")
        recorder.close()
        lost = f", {recorder.lost} lost" if recorder.lost else ""
        console.print(f"recorded {recorder.stored:,} frames{lost}")
        if server is None:
            console.print(f"look at it: root-dash serve {place}")
        else:
            console.print("the dashboard stays up: Ctrl-C ends it")
            with suppress(KeyboardInterrupt):
                server.wait()
            _ended_within(server, 3)


def _train(recorder: Recorder, steps: Iterator[State], total: int, console: Console) -> None:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=total, numbers="")
        started = time.perf_counter()
        for state in steps:
            numbers = f"loss {state.loss:.3f} · {state.tokens_per_second:,.0f} tokens/s"
            bar.update(task, advance=1, numbers=numbers)
            if state.step % max(1, total // 10) == 0 or state.validation_loss is not None:
                validation = "" if state.validation_loss is None else f"  validation {state.validation_loss:.3f}"
                seconds = time.perf_counter() - started
                bar.console.print(
                    f"step {state.step:>6,}  {seconds:>4.0f} s  loss {state.loss:.3f}{validation} nats/byte"
                )


@contextmanager
def _no_dashboard() -> Iterator[None]:
    yield None


@contextmanager
def _dashboard(
    place: Location, port: int | None, console: Console, open_browser: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `root-dash serve` in a process of its own, so that no viewer takes the trainer's interpreter lock."""
    chosen = port if port is not None else _free_port(8050)
    token = os.environ.get("ROOT_DASH_TOKEN") or secrets.token_urlsafe(24)
    command = [
        sys.executable,
        "-m",
        "root_dash.cli",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(chosen),
        "--no-open",
    ]
    # In the environment, because other users can see the arguments of a process, and a URL may hold a password.
    db = place.secret() if isinstance(place, Server) else str(place)
    environment = os.environ | {"ROOT_DASH_TOKEN": token, "ROOT_DASH_DB": db}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        url = f"http://127.0.0.1:{chosen}"
        _wait_until_up(server, url)
        page = f"{url}/?token={quote(token)}"
        console.print(f"dashboard: {page}", soft_wrap=True)
        if open_browser:
            webbrowser.open(page)
        yield server
    except KeyboardInterrupt:
        # Ctrl-C in a terminal reaches the server as well. A second signal would interrupt its shutdown.
        _ended_within(server, 3)
        raise
    finally:
        server.terminate()
        if not _ended_within(server, 5):
            server.kill()


def _ended_within(server: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, and return whether it has ended in time."""
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RootDashError("the dashboard could not start, for the reason above; --no-serve goes without it")
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=2):  # noqa: S310  # our own loopback address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RootDashError(f"the dashboard did not answer within {SERVER_SECONDS:.0f} s")


def _free_port(preferred: int) -> int:
    """Return the preferred port if it is free, else any free port: a second demo beside the first is no error."""
    for candidate in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise RootDashError("no port is free")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RootDashError(f"--device must be auto or a device that torch has, got {name!r}: {error}") from None
    return device
