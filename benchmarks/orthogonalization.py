"""Measure the distance of five steps of each set from the polar factor: python benchmarks/orthogonalization.py

For each dtype of the products, spectrum, set and shape there are three numbers: the polar error ‖X − UVᵀ‖ / ‖UVᵀ‖, the
orthogonality error ‖X Xᵀ − I‖ / √m and the largest singular value of X, with U and V of the matrix in float64. "fitted"
is the set that `fit.fit` fits to the spectra of two other matrices of the same kind and shape. "default" is the dtype
that ROOT chooses. Then the matrices of a step in small transformers are timed, beside torch.optim.Muon's function. The
tables are also written as JSON beside this file, in a section per device and number of threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from timing import CAVEAT, CLOCKS, environment, interleaved, parsed, ratio, summary, write_json
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from root_dash.coefficients.fit import FINE_LIMIT, FINE_NOISE, LIMIT, NOISE, fit
from root_dash.coefficients.tables import CONTRACTING, MUON, ROBUST, Coefficients, Normalization, resolve
from root_dash.optim.newton_schulz.orthogonalize import newton_schulz
from root_dash.optim.newton_schulz.plan import is_fine, plan

Shape: TypeAlias = tuple[int, int]
Make: TypeAlias = Callable[[Shape, torch.Generator], Tensor]

STEPS = 5
SHAPES: tuple[Shape, ...] = ((512, 512), (512, 768), (512, 2048), (512, 4096))
LARGE: Shape = (2048, 2048)  # in the default dtype and on two spectra alone, to save time
SMALL: tuple[Shape, ...] = ((128, 128), (128, 256))  # for float16, which CPUs multiply slowly
FEW: tuple[Shape, ...] = ((512, 512), (512, 2048))  # for pure float32 and bfloat16
DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SETS = ("cubic", "quintic", "muon", "paper", "polar_express", "robust", "fitted")
# The matrices of a step of a transformer of this width: (count, rows, columns).
LISTS: dict[int, tuple[tuple[int, int, int], ...]] = {
    256: ((24, 256, 256), (18, 256, 1024)),
    512: ((8, 512, 512), (6, 512, 2048)),
}
# Dense bfloat16 TFLOP/s as the maker states them.
PEAKS = {"A100": 312, "H100 PCIe": 756, "H100": 989, "H200": 989, "B200": 2250, "RTX 4090": 165}


def gaussian(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return independent standard normal entries."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def log_uniform(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return singular values evenly spaced on a logarithmic scale from 1 to 1e-3, with random singular vectors."""
    return _with(10.0 ** -torch.linspace(0, 3, min(shape), dtype=torch.float64), shape, generator)


def power_law(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return singular values 1, 1/2, 1/3, ..., with random singular vectors."""
    return _with(1 / torch.arange(1, min(shape) + 1, dtype=torch.float64), shape, generator)


def student(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return Student-t entries with two degrees of freedom, of which a few are very large."""
    exponential = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    return gaussian(shape, generator) / exponential.sqrt()


def student_clipped(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return Student-t entries clipped at the 0.9-quantile of the absolute values, as ROOT clips."""
    matrix = student(shape, generator)
    limit = matrix.abs().quantile(0.9)
    return matrix.clamp(-limit, limit)


def _with(sigma: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    left = torch.linalg.qr(gaussian((shape[0], len(sigma)), generator)).Q
    right = torch.linalg.qr(gaussian((shape[1], len(sigma)), generator)).Q
    return (left * sigma) @ right.mT


SPECTRA: dict[str, Make] = {
    "Gaussian": gaussian,
    "1 to 1e-3": log_uniform,
    "1/i": power_law,
    "Student-t": student,
    "Student-t, clipped": student_clipped,
}


def coefficients(name: str, shape: Shape, make: Make, fine: bool) -> tuple[tuple[Coefficients, ...], Normalization]:
    """Return a set and its normalization, for arithmetic that is fine (`plan.is_fine`) or not."""
    if name == "cubic":
        return ((1.5, -0.5, 0.0),) * STEPS, "frobenius"
    if name == "quintic":
        return (CONTRACTING,) * STEPS, "frobenius"
    if name == "robust":
        return resolve(name, STEPS, fine=fine), "schatten8"
    if name == "fitted":
        others = [make(shape, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
        return fit(
            [torch.linalg.eigvalsh(M @ M.mT).clamp(min=0).sqrt().numpy() for M in others],
            limit=FINE_LIMIT if fine else LIMIT,
            noise=FINE_NOISE if fine else NOISE,
        ).coefficients, "schatten8"
    return resolve(name, STEPS, shape), "frobenius"


def measures(update: Tensor, factor: Tensor) -> dict[str, float]:
    """Return the three numbers of a cell."""
    X = update.double()
    squares = torch.linalg.eigvalsh(X @ X.mT)
    return {
        "polar_error": float((X - factor).norm() / factor.norm()),
        "orthogonality_error": float((squares - 1).norm()) / len(squares) ** 0.5,
        "largest_singular_value": float(squares[-1].sqrt()),
    }


def labels(shape: Shape) -> tuple[str, ...]:
    """Return the dtypes in which a shape is measured."""
    if shape in SMALL:
        return ("float16",)
    return ("default", "float32", "bfloat16") if shape in FEW else ("default",)


def _is_fine(shape: Shape, dtype: torch.dtype | None, device: torch.device) -> bool:
    return is_fine(plan(min(shape), max(shape), STEPS, dtype, "auto", torch.float32, device.type))


def accuracy(device: torch.device) -> dict[str, Any]:
    """Return the numbers by dtype, spectrum, set and shape."""
    results: dict[str, Any] = {}
    for spectrum, make in SPECTRA.items():
        shapes = SHAPES + SMALL + ((LARGE,) if spectrum in ("Gaussian", "1 to 1e-3") else ())
        for shape in shapes:
            matrix = make(shape, torch.Generator().manual_seed(0)).float()
            squares, u = torch.linalg.eigh(matrix.double() @ matrix.double().mT)
            factor = (u / squares.sqrt()) @ (u.mT @ matrix.double())
            names = [name for name in SETS if name != "fitted" or shape != LARGE]
            arithmetic = {label: _is_fine(shape, DTYPES[label], device) for label in labels(shape)}
            sets = {
                fine: {name: coefficients(name, shape, make, fine) for name in names}
                for fine in set(arithmetic.values())
            }
            for label, fine in arithmetic.items():
                for name, (triples, normalization) in sets[fine].items():
                    update = newton_schulz(
                        matrix.to(device), triples, normalization=normalization, dtype=DTYPES[label]
                    ).update
                    by_shape = results.setdefault(label, {}).setdefault(spectrum, {}).setdefault(name, {})
                    by_shape[f"{shape[0]}x{shape[1]}"] = measures(update.cpu(), factor)
    return results


def print_accuracy(results: dict[str, Any]) -> None:
    """Print a table per dtype."""
    for label, by_spectrum in results.items():
        columns = list(next(iter(by_spectrum.values()))["robust"])
        print(f"\n{label + ': polar / orthogonality error / largest σ':<54}" + "".join(f"{c:>20}" for c in columns))
        for spectrum, by_set in by_spectrum.items():
            for name, cells in by_set.items():
                print(f"{spectrum:<22}{name:<14}" + " " * 18 + "".join(f"{_cell(cells.get(c)):>20}" for c in columns))


def _cell(numbers: dict[str, float] | None) -> str:
    if numbers is None:
        return ""
    polar, orthogonality, largest = numbers.values()
    return f"{_short(polar)}/{_short(orthogonality)}/{largest:.2f}"


def _short(number: float) -> str:
    return f"{number:.4f}" if number < 0.01 else f"{number:.3f}"


def speed(device: torch.device, clock: str) -> dict[str, Any]:
    """Return the seconds for the lists, of ours in batches and of Muon's function for each matrix, and their ratio."""
    results: dict[str, Any] = {}
    for width, shapes in LISTS.items():
        batches = [torch.randn(shape, device=device) for shape in shapes]
        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda batches=batches: [newton_schulz(batch, ROBUST).update for batch in batches],
            "muon": lambda batches=batches: [
                _zeropower_via_newtonschulz(matrix, MUON, STEPS, 1e-7) for batch in batches for matrix in batch
            ],
        }
        for call in contenders.values():
            call()
        times = interleaved(contenders, 15, device, clock=CLOCKS[clock], enough=10)
        results[str(width)] = {name: summary(values) for name, values in times.items()}
        results[str(width)]["ours / muon"] = ratio(times, "ours", "muon")
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        if peak := next((peak for name, peak in PEAKS.items() if name in device_name), None):
            flops = sum(L * STEPS * (4 * m * m * n + 2 * m**3) for L, m, n in shapes)
            results[str(width)]["share_of_peak"] = flops / results[str(width)]["ours"]["median"] / (peak * 1e12)
    return results


def print_speed(results: dict[str, Any], clock: str) -> None:
    """Print milliseconds and ratios."""
    print(f"\n{clock + ' time':<34}{'ours':>10}{'muon':>10}{'ours / muon':>13}")
    for width, row in results.items():
        shapes = ", ".join(f"{L} of {m}x{n}" for L, m, n in LISTS[int(width)])
        ours, muon = (row[name]["median"] * 1e3 for name in ("ours", "muon"))
        print(f"{shapes:<34}{ours:>7.1f} ms{muon:>7.1f} ms{row['ours / muon']['median']:>13.2f}")
        if "share_of_peak" in row:
            print(f"  {row['share_of_peak']:.0%} of the matrix units' peak, counting what the standard form multiplies")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Polar errors of the coefficient sets, and the time they take.")
    parser.add_argument("--speed", action="store_true", help="the times alone")
    arguments = parsed(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    if not arguments.speed:
        results = accuracy(device)
        print_accuracy(results)
        write_json(__file__, f"accuracy, {device.type}", {**environment(device), "results": results})
    times = speed(device, arguments.clock)
    print_speed(times, arguments.clock)
    section = f"time, {device.type}, {torch.get_num_threads()} threads, {arguments.clock} clock"
    path = write_json(__file__, section, {**environment(device), "results": times})
    if device.type != "cuda":
        print("No CUDA device here: the share of the matrix units' peak was not measured.")
    print(f"{CAVEAT}\n{time.perf_counter() - start:.0f} s, written to {path.name}")


if __name__ == "__main__":
    main()
