"""Time whole optimizer steps: python benchmarks/optimizer_step.py [--models d32 gpt124m] [--device cuda]

The benchmark steps the parameters of four models with torch's AdamW (fused) and Muon, with ROOT by the formulas of its
paper (naive_root.py), and with our ROOT with its defaults and without clipping. It prints medians, ratios, and the
targets beside the measured ratios, and writes the results as JSON beside this file. On CUDA it also checks that no step
waits for the device, and times a step captured in a graph.

No network is trained: gradients are Student-t with two degrees of freedom, with heavy tails as real gradients, and are
scaled from round to round. Every contender has its own weights and state, and all see the same gradients.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from naive_root import NaiveROOT
from timing import CAVEAT, CLOCKS, Clock, environment, interleaved, parsed, ratio, seconds, summary, write_json
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from root_dash.optim import ROOT

ADAMW, MUON, NAIVE, OURS, UNCLIPPED = "AdamW fused", "torch Muon", "naive ROOT", "ROOT", "ROOT unclipped"
CALIBRATE_EVERY = 100  # ROOT's default

LONGEST_STEP = 20.0
"""Seconds of a warm-up step. A contender with a longer step is left out, with a note."""
ENOUGH = 40.0
"""Seconds after which no more rounds of a model begin, if three are done."""


@dataclass(frozen=True)
class Model:
    """The shapes of a model's parameters, for matrix optimizers and the rest, and the number of timed rounds."""

    matrices: tuple[tuple[int, int], ...]
    rest: tuple[tuple[int, ...], ...]
    rounds: int


def transformer(d: int, blocks: int, rounds: int) -> Model:
    """Return the seven matrices of each block of a gated transformer of width d: q, k, v, o, gate, up, down."""
    block = ((d, d),) * 4 + ((4 * d, d),) * 2 + ((d, 4 * d),)
    return Model(block * blocks, (), rounds)


def gpt(d: int, blocks: int, vocabulary: int, positions: int, rounds: int) -> Model:
    """Return GPT-2 without biases: q, k, v, o, up, down; the embedding, which is also the head; positions; norms."""
    block = ((d, d),) * 4 + ((4 * d, d), (d, 4 * d))
    return Model(block * blocks, ((vocabulary, d), (positions, d), *(((d,),) * (2 * blocks + 1))), rounds)


MODELS = {
    "d32": transformer(32, 12, rounds=40),
    "d256": transformer(256, 6, rounds=12),
    "d512": transformer(512, 2, rounds=8),
    "gpt124m": gpt(768, 12, 50257, 1024, rounds=3),
}


@dataclass(frozen=True)
class Target:
    """The largest wanted ratio of two contenders' times, on some models and a kind of device."""

    device: str
    models: tuple[str, ...]
    numerator: str
    denominator: str
    at_most: float


TARGETS = (
    Target("cpu", ("d32",), OURS, NAIVE, 1 / 5),
    Target("cpu", ("d256",), OURS, NAIVE, 1 / 2),
    Target("cpu", ("d256", "d512"), OURS, MUON, 1.0),
    Target("cuda", ("gpt124m",), OURS, MUON, 0.5),
)


class Arena:
    """A model's gradients, and the contenders, each of which steps a copy of the weights."""

    def __init__(self, model: Model, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._seed = [0.02 * torch.randn(s, generator=generator, device=device) for s in model.matrices + model.rest]
        self._matrices = len(model.matrices)
        self._gradients = [heavy_tailed(weight.shape, generator, device) for weight in self._seed]
        self._factor = 1.0

    def contenders(self) -> Iterator[tuple[str, list[Optimizer]]]:
        """Yield the name of each contender, and the optimizers of its step."""
        matrices, rest = self.weights()
        yield ADAMW, [AdamW(matrices + rest, fused=True)]
        matrices, rest = self.weights()
        yield MUON, [Muon(matrices), *beside(rest)]
        matrices, rest = self.weights()
        yield NAIVE, [NaiveROOT(matrices), *beside(rest)]
        yield OURS, [self.ours()]
        yield UNCLIPPED, [self.ours(outlier_quantile=1.0)]

    def ours(self, **options: Any) -> ROOT:
        """Return our ROOT with all of the model's parameters."""
        matrices, rest = self.weights()
        groups: list[dict[str, Any]] = [{"params": matrices}]
        if rest:
            groups.append({"params": rest, "algorithm": "adamw"})
        return ROOT(groups, **options)

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return new copies of the matrices and of the rest, with the shared gradients."""
        parameters: list[Tensor] = []
        for weight, gradient in zip(self._seed, self._gradients, strict=True):
            parameters.append(nn.Parameter(weight.clone()))
            parameters[-1].grad = gradient
        return parameters[: self._matrices], parameters[self._matrices :]

    def scale_gradients(self, round_: int) -> None:
        """Change the size of the gradients for a round; every fourth round has the same size."""
        factor = (1.0, 1.5, 0.75, 1.25)[round_ % 4]
        torch._foreach_mul_(self._gradients, factor / self._factor)
        self._factor = factor


def beside(rest: list[Tensor]) -> list[Optimizer]:
    """Return the AdamW for the parameters besides the matrices."""
    return [AdamW(rest, fused=True)] if rest else []


def heavy_tailed(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return Student-t entries with two degrees of freedom, times 1e-3: a normal by the root of an exponential."""
    normal = torch.randn(shape, generator=generator, device=device)
    return normal.mul_(torch.empty_like(normal).exponential_(generator=generator).rsqrt_()).mul_(1e-3)


def step_of(optimizers: list[Optimizer]) -> Callable[[], None]:
    """Return a function that steps all optimizers."""

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    return step


def measure(name: str, device: torch.device, rounds: int | None, clock: Clock) -> dict[str, Any]:
    """Time a model, print the results and return them."""
    model = MODELS[name]
    arena = Arena(model, device)
    steps: dict[str, Callable[[], None]] = {}
    left_out: dict[str, float] = {}
    ours: list[Optimizer] = []
    for contender, optimizers in arena.contenders():
        step = step_of(optimizers)
        took = seconds(step, device, clock)  # also allocates the state
        if took > LONGEST_STEP:
            left_out[contender] = took
            continue
        steps[contender] = step
        if contender == OURS:
            ours = optimizers
    if model.rounds > 3:
        interleaved(steps, 2, device, arena.scale_gradients, clock)
    times = interleaved(steps, rounds or model.rounds, device, arena.scale_gradients, clock, enough=ENOUGH)

    entries = sum(map(math.prod, model.matrices + model.rest)) / 1e6
    print(f"\n{name}: {len(model.matrices)} matrices and {len(model.rest)} others, {entries:.1f} M entries")
    result = {"rounds": len(times[MUON]), **table(times)}
    for contender, took in left_out.items():
        print(f"  {contender}: left out after a warm-up step of {took:.0f} s")
    result["left_out_after_seconds"] = left_out
    for optimizer in ours:
        assert isinstance(optimizer, ROOT)
        result["calibration_ms_per_step"] = calibration(optimizer, device, clock, result["ms"][OURS]["median"])
    result["targets"] = verdicts(name, device, times)
    return result


def table(times: dict[str, list[float]]) -> dict[str, Any]:
    """Print each contender's times, and its ratios to Muon and to the naive ROOT if these were measured."""
    milliseconds: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {}
    print(f"  {'':<16}{'ms':>10}{'quartiles':>20}{'/ Muon':>9}{'/ naive':>9}")
    for contender, values in times.items():
        ms = {key: 1e3 * value for key, value in summary(values).items()}
        milliseconds[contender] = ms
        spread = f"{ms['low']:.2f} - {ms['high']:.2f}"
        line = f"  {contender:<16}{ms['median']:>10.2f}{spread:>20}"
        for other in (MUON, NAIVE):
            if other in times:
                quotient = ratio(times, contender, other)
                ratios[f"{contender} / {other}"] = quotient
                line += f"{quotient['median']:>9.3f}"
        print(line)
    return {"ms": milliseconds, "ratios": ratios}


def calibration(optimizer: ROOT, device: torch.device, clock: Clock, step_ms: float) -> float:
    """Return the milliseconds that calibration adds to a step. No timed step calibrates.

    A call of `calibrate` waits for the fits of the call before; the first two calls have few fits to wait for. So all
    work is counted, though in training the work runs beside the steps.
    """
    optimizer.calibrate()
    optimizer.calibrate()
    each = seconds(optimizer.calibrate, device, clock)
    per_step = 1e3 * each / CALIBRATE_EVERY
    share = per_step / step_ms
    print(f"  calibrating every {CALIBRATE_EVERY} steps, all its work: {per_step:.2f} ms a step, {share:.1%} of it")
    return per_step


def verdicts(name: str, device: torch.device, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the targets for this model on this device, each with the measured ratio."""
    found = []
    for target in TARGETS:
        if device.type != target.device or name not in target.models:
            continue
        claim = f"{target.numerator} / {target.denominator}"
        if target.numerator not in times or target.denominator not in times:
            print(f"  target {claim} <= {target.at_most:.2f}: not measured")
            continue
        measured = ratio(times, target.numerator, target.denominator)
        met = measured["median"] <= target.at_most
        print(
            f"  target {claim} <= {target.at_most:.2f}: {measured['median']:.3f} "
            f"(quartiles {measured['low']:.3f} - {measured['high']:.3f}), {'met' if met else 'NOT met'}"
        )
        found.append({"ratio": claim, "at_most": target.at_most, "measured": measured, "met": met})
    return found


def cuda_checks(name: str, device: torch.device) -> dict[str, Any]:
    """Check that no step waits for the device, and compare a captured step with an eager step."""
    arena = Arena(MODELS[name], device)
    eager = arena.ours()
    eager.step()  # allocates the state
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            eager.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize(device)
    print("  three steps under torch.cuda.set_sync_debug_mode('error'): none waits for the device")

    captured, twin = arena.ours(capturable=True), arena.ours(capturable=True)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # allocates the state and warms the libraries up, as capture demands
        for _ in range(3):
            captured.step()
    torch.cuda.current_stream(device).wait_stream(side)
    for _ in range(3):
        twin.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # recorded, not run
    times = interleaved({"graph": graph.replay, "eager": twin.step}, 20, device)
    pairs = zip(parameters_of(captured), parameters_of(twin), strict=True)
    difference = max(float((one - other).abs().max()) for one, other in pairs)
    result: dict[str, Any] = {
        "host_syncs": 0,
        "graph_ms": 1e3 * summary(times["graph"])["median"],
        "graph_to_eager": ratio(times, "graph", "eager"),
        "graph_max_difference": difference,
    }
    print(
        f"  captured in a graph: {result['graph_ms']:.2f} ms, {result['graph_to_eager']['median']:.3f} of the same "
        f"step eagerly; after 23 steps of either the weights differ by {difference:.1e} at most"
    )
    return result


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Whole optimizer steps, side by side.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="timed rounds per model; by default each has its own number")
    parser.add_argument("--no-json", action="store_true", help="do not change the JSON beside the script")
    arguments = parsed(parser)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none")
    device = torch.device(arguments.device)
    content: dict[str, Any] = {**environment(device), "clock": arguments.clock}
    print(
        f"{content['device']}, {content['threads']} threads, torch {content['torch']}, load {content['load']}, "
        f"{arguments.clock} clock"
    )
    content["models"] = {}
    for name in arguments.models:
        content["models"][name] = measure(name, device, arguments.rounds, CLOCKS[arguments.clock])
        if device.type == "cuda":
            content["models"][name]["cuda"] = cuda_checks(name, device)
    print(f"\n{CAVEAT}")
    if not arguments.no_json:
        print(f"written to {write_json(__file__, device.type, content).name}")


if __name__ == "__main__":
    main()
