"""Timing of contenders side by side, for all benchmarks.

The contenders of a benchmark take turns, a call each per round, and each round begins with another contender. So what
slows the machine for some seconds slows all contenders, and no contender always finds the caches of the same other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch

CAVEAT = (
    "Caveat: the cores are shared with others and the times drift with them. Quote the ratios: the two sides of each "
    "were timed within the same round."
)


Clock: TypeAlias = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""The clocks for devices other than CUDA. The CPU's clock counts all threads of the process, also spinning threads."""


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command's arguments, with `--threads`, which are set, and `--clock`."""
    parser.add_argument("--threads", type=int, help="of torch on the CPU; by default torch chooses")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="on the CPU; cpu counts this process alone: with --threads 1, other work on the cores matters little",
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def seconds(call: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Return the seconds of a call; on CUDA by events, from an idle device to the end of the launched work."""
    if device.type != "cuda":
        start = clock()
        call()
        return clock() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    before_round: Callable[[int], object] = lambda _: None,
    clock: Clock = time.perf_counter,
    *,
    enough: float = math.inf,
) -> dict[str, list[float]]:
    """Return the seconds of every call by contender, a call per round. The call of `before_round` is not timed.

    After `enough` seconds the rounds end early, but not before the third.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    start = time.perf_counter()
    for round_ in range(rounds):
        if round_ >= 3 and time.perf_counter() - start > enough:
            break
        before_round(round_)
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(contenders[name], device, clock))
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratio(times: Mapping[str, list[float]], numerator: str, denominator: str) -> dict[str, float]:
    """Return the median and the quartiles of the ratio of two contenders' times over the rounds."""
    return summary([above / below for above, below in zip(times[numerator], times[denominator], strict=True)])


def environment(device: torch.device) -> dict[str, Any]:
    """Return date, versions, device, threads and load of a measurement."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def device_name(device: torch.device) -> str:
    """Return the maker's name of the device, if the system tells the name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def results(script: str) -> Path:
    """Return the file that a script writes its results to."""
    return Path(__file__).parent / "results" / f"{Path(script).stem}.json"


def write_json(script: str, section: str, content: Mapping[str, Any]) -> Path:
    """Replace a section in the results of a script, `results/NAME.json`. Other sections stay."""
    path = results(script)
    sections = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**sections, section: content}, indent=1) + "\n")
    return path
