"""Measure the cost of recording: python benchmarks/recording.py [--frames 500] [--steps 1000] [--device cuda]

The benchmark answers three questions by what a user would do, and writes the answers as JSON beside this file:

- How long is the trainer blocked by a frame of 100 layers, each with a histogram and all statistics, already reduced?
  TensorBoard's event files, trackio and wandb offline are measured too if they are installed (the `bench` extra).
- How much longer does a watched training take? The demo's tiny model is trained with and without a recorder, a few
  steps in turns, on the same batches. On CUDA the model has more than 100 million parameters, in a loop that reads
  nothing back, and the benchmark first checks whether any step waits for the device.
- How many bytes does a layer take for a step?
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import CAVEAT, environment, ratio, write_json
from torch.optim import Optimizer

import root_dash
from root_dash.demo.model import GPT
from root_dash.demo.text import standard_library
from root_dash.demo.train import PRESETS, Preset, build_optimizers, train
from root_dash.monitor.frames import Assembler, LayerGroup
from root_dash.monitor.limits.budget import MAX_OVERHEAD, MAX_OVERHEAD_CPU
from root_dash.monitor.limits.cadence import Cadence
from root_dash.monitor.measure import measure
from root_dash.monitor.optimizers.adapter import outliers_of
from root_dash.monitor.quantities.quantity import LayerBatch
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.pending import BatchShape, PendingFrame, Sent, SentArray
from root_dash.monitor.writing.transfer import send
from root_dash.monitor.writing.writer import Writer
from root_dash.optim.calibration.background import Job
from root_dash.records import Layer, Run, histogram_edges, statistic_names
from root_dash.store.store import Store

LAYERS = 100
SHAPE = (128, 128)
ENTRIES = 128 * 128
PAUSE = 0.03  # seconds between frames, as a step would take
CPU = torch.device("cpu")

TURN = 10
"""Number of steps that a training takes in its turn."""

DISTINCT = 24
"""Number of different steps. A longer run repeats them."""

Log = Callable[[int, "Reduced"], object]


@dataclass(frozen=True)
class Reduced:
    """A step as a device reduces it: our tensors, and for the other tools arrays that follow from the tensors."""

    tensors: dict[Sent, torch.Tensor]
    statistics: np.ndarray  # (layers, names)
    counts: np.ndarray  # (layers, 515)


def reduced_steps() -> list[Reduced]:
    """Return heavy-tailed gradients of drifting scale, their momenta and updates, measured as by the recorder."""
    generator = torch.Generator().manual_seed(0)
    momentum = torch.zeros(LAYERS, *SHAPE)
    steps = []
    for step in range(DISTINCT):
        scale = 1e-3 * torch.exp(0.3 * torch.randn(LAYERS, 1, 1, generator=generator) - step / DISTINCT)
        normal, *pair = torch.randn(3, LAYERS, *SHAPE, generator=generator).unbind()
        gradient = normal / torch.stack(pair).square().mean(0).sqrt() * scale  # Student's t, two degrees of freedom
        momentum = 0.95 * momentum + 0.05 * gradient
        base, epsilon = outliers_of(momentum, 0.9)
        update = base / torch.linalg.vector_norm(base, dim=(1, 2), keepdim=True)
        norm = torch.ones(LAYERS)
        positions = tuple(range(LAYERS))
        batch = LayerBatch(positions, gradient, norm, momentum, epsilon, base, update, 1e-3, orthogonalized=True)
        measured = measure(batch, ("statistics", "histograms")).tensors
        measured["histogram"] = {
            name: tensor for name, tensor in measured["histogram"].items() if not name.startswith("momentum")
        }
        tensors: dict[Sent, torch.Tensor] = {
            SentArray(0, quantity, name): tensor
            for quantity, found in measured.items()
            for name, tensor in found.items()
        }
        arrays = {key: {name: tensor.numpy() for name, tensor in found.items()} for key, found in measured.items()}
        frame = Assembler().frame(
            [LayerGroup(batch.positions, SHAPE, arrays)],
            seq=0, step=step, time=0.0, scalars={}, lost=0, cost=0.0,
        )  # fmt: skip
        counts = np.stack([frame.histograms[layer]["gradient"].counts for layer in range(LAYERS)])
        steps.append(Reduced(tensors, frame.statistics, counts))
    return steps


@contextmanager
def ours(folder: Path) -> Iterator[Log]:
    """Log frames as the recorder does."""
    layers = tuple(Layer(f"blocks.{i}.weight", SHAPE, "root", i) for i in range(LAYERS))
    store = Store.create(folder / "runs.db")
    writer = Writer(store.begin(Run("benchmark", "benchmark", time.time()), layers))
    batches = (BatchShape(tuple(range(LAYERS)), SHAPE, None),)

    def log(step: int, reduced: Reduced) -> None:
        writer.put(PendingFrame(step, time.time(), batches, send(reduced.tensors), {}, 0.0))

    yield log
    writer.close(60.0)
    if writer.lost or writer.failures.count:
        raise RuntimeError(f"{writer.lost} frames were lost")
    if len(store.history(1, "grad_norm").steps) != writer.stored:
        raise RuntimeError("frames are missing in the database")
    store.close()


@contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """Log a scalar for each statistic and a histogram of the same counts, with closed outermost bins."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    names, edges = statistic_names("statistics"), closed_edges()

    def log(step: int, reduced: Reduced) -> None:
        for layer, (values, counts) in enumerate(zip(reduced.statistics.tolist(), reduced.counts, strict=True)):
            for name, value in zip(names, values, strict=True):
                writer.add_scalar(f"{layer}/{name}", value, step)
            writer.add_histogram_raw(
                f"{layer}/gradient",
                min=edges[0], max=edges[-1], num=ENTRIES, sum=0.0, sum_squares=1.0,
                bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(), global_step=step,
            )  # fmt: skip

    yield log
    writer.close()


@contextmanager
def wandb(folder: Path) -> Iterator[Log]:
    """Log a step by one call, offline. wandb has room for 511 of the 515 bins."""
    module = importlib.import_module("wandb")
    run = module.init(mode="offline", dir=str(folder), settings=module.Settings(silent=True))

    def log(step: int, reduced: Reduced) -> None:
        run.log(flat(reduced, lambda pair: module.Histogram(np_histogram=(pair[0][2:-2], pair[1][2:-2]))), step=step)

    yield log
    run.finish()


@contextmanager
def trackio(folder: Path) -> Iterator[Log]:
    """Log a step by one call. trackio keeps a histogram as a list of values, so the counts are such a list."""
    os.environ["TRACKIO_DIR"] = str(folder)
    module = importlib.import_module("trackio")
    module.init(project="benchmark", embed=False)

    def log(step: int, reduced: Reduced) -> None:
        module.log(flat(reduced, lambda pair: pair[0].tolist()), step=step)

    yield log
    module.finish()


def flat(reduced: Reduced, histogram: Callable[[tuple[Any, Any]], object]) -> dict[str, object]:
    """Return a step as a mapping of names to numbers and histograms."""
    names, edges = statistic_names("statistics"), closed_edges()
    logged: dict[str, object] = {}
    for layer, (values, counts) in enumerate(zip(reduced.statistics.tolist(), reduced.counts, strict=True)):
        logged |= {f"{layer}/{name}": value for name, value in zip(names, values, strict=True)}
        logged[f"{layer}/gradient"] = histogram((counts, edges))
    return logged


def closed_edges() -> np.ndarray:
    """Return the edges of our histograms with finite outermost edges."""
    edges = histogram_edges().copy()
    edges[0], edges[-1] = 2 * edges[1], 2 * edges[-2]
    return edges


WAYS: Mapping[str, Callable[[Path], Any]] = {
    "root-dash": ours, "TensorBoard": tensorboard, "trackio": trackio, "wandb offline": wandb,
}  # fmt: skip


def blocked(frames: int) -> dict[str, Any]:
    """Return the trainer's milliseconds per frame and the bytes per layer and step, for each way that is installed."""
    steps = reduced_steps()
    results: dict[str, Any] = {}
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            took = []
            try:
                with way(Path(folder)) as log:
                    for step in range(1, frames + 1):
                        reduced = steps[step % DISTINCT]
                        started = time.perf_counter()
                        log(step, reduced)
                        took.append(1e3 * (time.perf_counter() - started))
                        time.sleep(PAUSE)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        p50, p99 = np.percentile(took[1:], [50, 99])
        results[name] = {"p50_ms": p50, "p99_ms": p99, "bytes_per_layer_and_step": size / frames / LAYERS}
        size_each = size / frames / LAYERS
        print(f"{name:14} blocked {p50:7.2f} ms p50 {p99:7.2f} ms p99 {size_each:6.0f} bytes a layer and step")
    return results


def overhead(steps: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of the same training, unwatched and watched, and the ratios.

    The trainings take turns of `TURN` steps, so that what slows the machine for a minute slows all of them. A turn ends
    when the device is idle, when the calibrations are done, which a single thread does for all trainings, and if the
    training is watched, when its last frame is stored.
    """
    limit = MAX_OVERHEAD_CPU if device.type == "cpu" else MAX_OVERHEAD
    ways: dict[str, float | None] = {"unwatched": None, "watched, no budget": math.inf, "watched": limit}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    trainings: dict[str, Iterator[object]] = {}
    recorders: dict[str, Recorder] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, budget in ways.items():
            preset, model, optimizers = training(device)
            log: Callable[..., None] = lambda **_: None  # noqa: E731
            if budget is not None:
                path = Path(folder) / f"{len(recorders)}.db"
                recorder = root_dash.watch(model, optimizers, db=path, cadence=Cadence(), max_overhead=budget)
                recorders[name], log = recorder, recorder.log
            # The benchmark leaves out the last step of `train`, which validates.
            trainings[name] = (
                train(model, optimizers, standard_library(), preset, steps + 3, log, device)
                if device.type == "cpu"
                else unread(model, optimizers, preset, log, device)
            )
            for _ in range(2):
                next(trainings[name])  # warm-up
        settle(device)
        gc.collect()  # otherwise the garbage of the imports would cost one of the first turns 0.15 s
        for turn in range(steps // TURN):
            order = list(ways)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                started, spent = time.perf_counter(), time.process_time()
                for _ in range(TURN):
                    next(trainings[name])
                settle(device)
                while name in recorders and recorders[name].pending:
                    time.sleep(1e-4)
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - spent)
        for recorder in recorders.values():
            recorder.close()
    results: dict[str, Any] = {"unwatched_step_ms": 1e3 * statistics.median(wall["unwatched"]) / TURN}
    for name, recorder in recorders.items():
        results[name] = {
            "overhead_by_its_own_measure": recorder.overhead,
            "stored": recorder.stored,
            "failures": recorder.failures,
            "cadence": asdict(recorder.cadence),
        }
        for clock, seconds in (("wall", wall), ("cpu", cpu)):
            whole = sum(seconds[name]) / sum(seconds["unwatched"])
            results[name][clock] = {"whole": whole, **ratio(seconds, name, "unwatched")}
        shown = {clock: results[name][clock] for clock in ("wall", "cpu")}
        print(
            f"{name:20}",
            *(f"{k} x{v['whole']:.3f} (turns {v['low']:.3f} to {v['high']:.3f})" for k, v in shown.items()),
            f"{results[name]['failures']} failures, {recorder.cadence}",
        )
    return results


def training(device: torch.device) -> tuple[Preset, GPT, list[Optimizer]]:
    """Return the tiny model and its optimizers, or on CUDA a model of 106 million parameters."""
    preset = PRESETS["tiny"]
    if device.type == "cuda":
        preset = replace(PRESETS["gpu"], shape=replace(PRESETS["gpu"].shape, depth=15))
    torch.manual_seed(0)
    model = GPT(preset.shape).to(device)
    return preset, model, build_optimizers(model, "root", preset)


def unread(
    model: GPT, optimizers: Sequence[Optimizer], preset: Preset, log: Callable[..., None], device: torch.device
) -> Iterator[None]:
    """Yield after each step of a loop that reads nothing back, so that the processor can run ahead of the device."""
    generator = torch.Generator().manual_seed(1)
    text = standard_library()
    batches = [
        [part.to(device) for part in text.batch(preset.batch, preset.shape.context, generator)] for _ in range(DISTINCT)
    ]
    while True:
        for inputs, targets in batches:
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(inputs)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            log(loss=loss.detach())
            yield


def settle(device: torch.device) -> None:
    """Wait for the device and for the calibrations."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    Job(lambda: None).result()


def waits(device: torch.device) -> dict[str, int]:
    """Return the number of watched steps that waited for the device, by cadence. Such a step raises an error."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cadence in (("default cadence", Cadence()), ("every kind in every step", Cadence(1, 1, 1, 1, 1))):
            preset, model, optimizers = training(device)
            path = Path(folder) / f"{len(found)}.db"
            with root_dash.watch(model, optimizers, db=path, cadence=cadence, max_overhead=math.inf) as recorder:
                steps = unread(model, optimizers, preset, recorder.log, device)
                next(steps)  # allocates the state
                settle(device)
                torch.cuda.set_sync_debug_mode("error")
                try:
                    for _ in range(12):
                        next(steps)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                found[name] = recorder.failures  # errors in the hook are counted as failures
            print(f"{name}: {found[name]} failures in 12 steps that may not wait, {recorder.stored} stored")
    return found


def main() -> None:
    """Answer the three questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=500, help="of 100 layers; 0: none")
    parser.add_argument("--steps", type=int, default=1000, help="of each way to train; 0: none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that torch trains on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that the training is on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(CAVEAT)
    if arguments.frames:
        content = {"environment": environment(CPU), "layers": LAYERS, "frames": arguments.frames}
        write_json(__file__, "blocked", content | {"ways": blocked(arguments.frames)})
    if arguments.steps:
        device = torch.device(arguments.device)
        content = {"environment": environment(device), "steps": arguments.steps, "turn": TURN}
        if device.type == "cuda":
            content["waits"] = waits(device)
        section = "overhead" if device.type == "cpu" else "overhead, cuda"
        write_json(__file__, section, content | overhead(arguments.steps, device))


if __name__ == "__main__":
    main()
