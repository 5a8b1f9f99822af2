"""Compare ways to the 0.9-quantile of |M| by time and error: python benchmarks/quantile.py

All ways run in the same process on the same Student-t entries with two degrees of freedom, also on a CUDA device if
there is one. Times include the computation of |M| if a way needs |M|. "faster" is the speed relative to the authors'
way, the median over the rounds. "error" is relative to the authors' threshold, and "none" if all bits are equal. The
table is also written as JSON beside this file, in a section per device, number of threads and clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from timing import CAVEAT, CLOCKS, Clock, environment, interleaved, parsed, ratio, results, seconds, summary, write_json
from torch import Tensor

from root_dash.optim.outliers.threshold import threshold

QUANTILE = 0.9
# (count, rows, columns): two large matrices, then the batches of equal shapes in small transformers.
SHAPES = (
    (1, 512, 2048),
    (1, 2048, 8192),
    (14, 512, 512),
    (6, 512, 2048),
    (24, 256, 256),
    (18, 256, 1024),
    (84, 32, 64),
)
SLOW = 2.5  # seconds; a way whose call takes longer is called once

Way: TypeAlias = Callable[[Tensor], Tensor]


def authors(M: Tensor) -> Tensor:
    """Select two entries and interpolate, a matrix at a time, as the authors' script does."""
    thresholds = []
    for matrix in M:
        flat = matrix.abs().flatten()
        position = QUANTILE * (len(flat) - 1)
        below = int(position)
        lower, upper = flat.kthvalue(below + 1).values, flat.kthvalue(below + 2).values
        thresholds.append(lower.lerp(upper, position - below))
    return torch.stack(thresholds)


def torch_quantile(M: Tensor) -> Tensor:
    """Call PyTorch's own function, which sorts up to 2^24 entries."""
    return torch.quantile(M.abs().flatten(1), QUANTILE, dim=1)


def topk(M: Tensor) -> Tensor:
    """Select the largest tenth, and interpolate between its two smallest entries."""
    flat = M.abs().flatten(1)
    position = QUANTILE * (flat.shape[1] - 1)
    below = int(position)
    largest = flat.topk(flat.shape[1] - below, dim=1, sorted=False).values
    lower, upper = largest.topk(2, dim=1, largest=False).values.unbind(1)
    return lower.lerp(upper, position - below)


AUTHORS = "two kthvalue"
WAYS: dict[str, Way] = {
    AUTHORS: authors,
    "torch.quantile": torch_quantile,
    "topk": topk,
    "exact": lambda M: threshold(M, QUANTILE, "exact"),
    "histogram": lambda M: threshold(M, QUANTILE, "histogram"),
    "sampled": lambda M: threshold(M, QUANTILE, "sampled"),
}


def student(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return entries with heavy tails, as in momenta."""
    generator = torch.Generator().manual_seed(0)
    normal, one, other = (torch.randn(shape, generator=generator) for _ in range(3))
    return normal.div_(one.square_().add_(other.square_()).div_(2).sqrt_()).to(device)


def compare(M: Tensor, clock: Clock) -> dict[str, dict[str, Any]]:
    """Return time, ratio and error of every way."""
    results = {name: way(M) for name, way in WAYS.items()}
    calls = {name: partial(way, M) for name, way in WAYS.items()}
    once = seconds(calls["torch.quantile"], M.device, clock)
    if once >= SLOW:
        del calls["torch.quantile"]
    times = interleaved(calls, 15, M.device, clock=clock, enough=1)
    return {
        name: {
            "seconds": summary(times[name]) if name in times else {"median": once},
            "faster": ratio(times, AUTHORS, name)
            if name in times
            else {"median": summary(times[AUTHORS])["median"] / once},
            "error": float(((result - results[AUTHORS]).abs() / results[AUTHORS]).max()),
            "same_bits": torch.equal(result, results[AUTHORS]),
        }
        for name, result in results.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Ways to a quantile, side by side.")
    arguments = parsed(parser)
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = torch.device(kind)
        about = environment(device)
        section = kind if kind == "cuda" else f"cpu, threads: {about['threads']}, {arguments.clock} clock"
        print(f"{about['device']} ({section}), torch {about['torch']}")
        measured = {}
        for shape in SHAPES:
            label = " x ".join(map(str, shape))
            print(f"{label:<20}{'ms':>10}{'faster':>10}{'error':>10}", flush=True)
            measured[label] = compare(student(shape, device), CLOCKS[arguments.clock])
            for way, row in measured[label].items():
                error = "none" if row["same_bits"] else f"{row['error']:.1e}"
                print(f"  {way:<18}{row['seconds']['median'] * 1e3:>10.3f}{row['faster']['median']:>9.1f}x{error:>10}")
        write_json(__file__, section, {**about, "quantile": QUANTILE, "shapes": measured})
    print(f"written to {results(__file__).name}. {CAVEAT}")


if __name__ == "__main__":
    main()
