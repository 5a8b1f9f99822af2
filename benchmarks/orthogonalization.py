"""How far from the polar factor each coefficient set ends: python benchmarks/orthogonalization.py

Prints one row per spectrum and set, the polar error ‖X − UVᵀ‖ / ‖UVᵀ‖ against an SVD in float64 for each shape, and
writes the same numbers as JSON beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from root_dash.optim.coefficients import Normalization, resolve
from root_dash.optim.orthogonalize import orthogonalize

ROWS = 512
COLS = (512, 768, 2048, 4096)
SETS: tuple[tuple[str, Normalization], ...] = (("robust", "schatten8"), ("muon", "frobenius"), ("paper", "frobenius"))


def gaussian(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal entries."""
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64)


def spread(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Singular values log-uniform from 1 to 1e-3 between random singular vectors."""
    left = torch.linalg.qr(gaussian(rows, rows, generator)).Q
    right = torch.linalg.qr(gaussian(cols, rows, generator)).Q
    made: Tensor = left * 10.0 ** (-3 * torch.rand(rows, generator=generator, dtype=torch.float64)) @ right.mT
    return made


def polar_error(matrix: Tensor, name: str, normalization: Normalization) -> float:
    """Of five float32 steps with a set, against the SVD of the matrix as the steps see it."""
    matrix = matrix.float()
    update = orthogonalize(matrix, resolve(name, 5, tuple(matrix.shape)), normalization=normalization).double()  # type: ignore[arg-type]
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return float(torch.linalg.matrix_norm(update - u @ v) / torch.linalg.matrix_norm(u @ v))


def main() -> None:
    """Measure, print, write."""
    results: dict[str, dict[str, list[float]]] = {}
    print(f"{'polar error, 5 steps':<26}" + "".join(f"{f'{ROWS}x{cols}':>11}" for cols in COLS))
    spectra: tuple[tuple[str, Callable[..., Tensor]], ...] = (("Gaussian", gaussian), ("1 to 1e-3", spread))
    for spectrum, make in spectra:
        matrices = [make(ROWS, cols, torch.Generator().manual_seed(0)) for cols in COLS]
        for name, normalization in SETS:
            errors = [polar_error(matrix, name, normalization) for matrix in matrices]
            results.setdefault(spectrum, {})[name] = errors
            print(f"{f'{spectrum}, {name}':<26}" + "".join(f"{error:>11.4f}" for error in errors))
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"torch": torch.__version__, "columns": COLS, "polar_error": results}, indent=1) + "\n")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
