"""Timing contenders side by side: what the benchmarks share.

The contenders of a benchmark take turns, one call each per round, and each round begins with the next of them: whatever
slows the machine down for some seconds slows all of them, and no one always finds the caches as the same one left them.
"""

from __future__ import annotations

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
"""What time is taken from off CUDA. The CPU's counts all threads of the process, those that spin for others too."""


def seconds(call: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long a call takes; on CUDA by its events, from an idle device to the end of what was launched."""
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
    """The seconds of every call, by contender; the n-th of each are of one round. What comes before is not timed.

    After `enough` seconds the rounds end early, though not before the third.
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
    """The median and the quartiles, which say how noisy it was."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratio(times: Mapping[str, list[float]], numerator: str, denominator: str) -> dict[str, float]:
    """The median and the quartiles over the rounds of one contender's time by another's."""
    return summary([above / below for above, below in zip(times[numerator], times[denominator], strict=True)])


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader of the numbers has to know of where they come from."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def device_name(device: torch.device) -> str:
    """The name that the device's maker gave it, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_json(script: str, section: str, content: Mapping[str, Any]) -> Path:
    """Put the content into the JSON beside a script, in place of the section of that name; other sections stay."""
    path = Path(script).with_suffix(".json")
    sections = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**sections, section: content}, indent=1) + "\n")
    return path
