"""Fit coefficient sets to a recorded run and judge them on its spectra: the body of `root-dash calibrate`.

An iteration acts on singular values alone, so the error of any coefficient set follows from a recorded spectrum. The
module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from root_dash.coefficients.fit import fit, polar_error
from root_dash.coefficients.tables import Coefficients, Name, Normalization, resolve
from root_dash.exceptions import RootDashError
from root_dash.records.algorithms import traits_of
from root_dash.store import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

STEPS = 5
"""Iterations of every coefficient set."""

PUBLISHED: tuple[tuple[Name, Normalization], ...] = (
    ("robust", "schatten8"),
    ("muon", "frobenius"),
    ("paper", "frobenius"),
    ("polar_express", "frobenius"),
)
"""Published coefficient sets to compare with the fitted sets, each with the norm for which the set is made."""

_SHARED_LIMIT = 1.3
"""Largest output of a single triple for all steps. No such triple is both steep at zero and within 1.06."""

_MOST_SPECTRA = 64
"""Largest number of spectra to fit to, evenly spread over the steps. More spectra of the same run change nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """The coefficient sets of a shape, (m, n) with m <= n, and their mean polar errors on the run's spectra."""

    shape: tuple[int, int]
    layers: int
    fitted_to: int
    """Number of spectra to which both sets were fitted, all from the earlier half of the recorded steps."""
    judged_on: int
    """Number of spectra, all from the later half, over which the errors are averaged."""
    adaptive: tuple[Coefficients, ...]
    """The set with a triple per iteration and the Schatten-8 norm."""
    adanewton: tuple[Coefficients, ...]
    """The set in the paper's form: a single triple for all iterations and the Frobenius norm."""
    errors: dict[str, float]
    """The mean polar error of each set by its name. The fitted sets come last."""


def report(store: Store, run_id: int) -> list[Row]:
    """Return one row per matrix shape of a run, the largest first.

    Only layers count whose update was orthogonalized: layers that ROOT or Muon stepped.

    Raises:
        NotRecorded: there is no such run.
        RootDashError: the run recorded fewer than two steps' spectra of any shape.
    """
    shapes: dict[tuple[int, int], list[tuple[int, NDArray[np.float64]]]] = {}
    layers: dict[tuple[int, int], int] = {}
    optimizer = store.run(run_id).optimizer
    for layer in store.layers(run_id):
        if not layer.is_matrix or traits_of(optimizer, layer.algorithm).orthogonalizes is None:
            continue
        shape = (min(layer.rows, layer.cols), max(layer.rows, layer.cols))
        found = [
            (spectrum.step, spectrum.base.astype(np.float64)) for spectrum in store.spectra(layer.id, max_points=10_000)
        ]
        usable = [(step, base) for step, base in found if len(base) and np.isfinite(base).all() and base.any()]
        shapes.setdefault(shape, []).extend(usable)
        layers[shape] = layers.get(shape, 0) + 1
    rows = []
    for shape in sorted(shapes, reverse=True):
        steps = sorted({step for step, _ in shapes[shape]})
        if len(steps) < 2:
            continue
        middle = steps[len(steps) // 2]
        spectra = sorted(shapes[shape], key=lambda recorded: recorded[0])
        earlier = [base for step, base in spectra if step < middle]
        later = [base for step, base in spectra if step >= middle]
        rows.append(_row(shape, layers[shape], earlier, later))
    if not rows:
        raise RootDashError(f"run {run_id} recorded the spectra of no matrix at two steps: nothing to fit and judge")
    return rows


def render(rows: Sequence[Row]) -> RenderableType:
    """Return a table of the errors, the smallest of each row in bold, and the fitted sets, ready to paste."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("shape", "layers", *rows[0].errors, box=None, pad_edge=False, title="mean polar error, later half")
    for row in rows:
        best = min(row.errors.values())
        cells = (Text(f"{error:.4f}", "bold" if error == best else "") for error in row.errors.values())
        table.add_row(_shape_text(row.shape), str(row.layers), *cells)
    sets = []
    for row in rows:
        sets.append(f"\n{_shape_text(row.shape)}: fitted to {row.fitted_to} spectra, judged on {row.judged_on}")
        sets.append(f"adaptive: ns_coefficients=\n{_numbers(row.adaptive)}")
        sets.append(f'adanewton: normalization="frobenius", ns_coefficients=\n{_numbers(row.adanewton[:1])}')
    return Group(table, Text("\n".join(sets)))


def _row(
    shape: tuple[int, int], layers: int, earlier: Sequence[NDArray[np.float64]], later: Sequence[NDArray[np.float64]]
) -> Row:
    chosen = [earlier[i] for i in sorted({round(x) for x in np.linspace(0, len(earlier) - 1, _MOST_SPECTRA)})]
    # Each spectrum is weighted by the error of the starting set. Otherwise the hardest spectrum would dominate.
    adaptive = fit(chosen, steps=STEPS, weights=_weights(chosen, "robust", "schatten8")).coefficients
    adanewton = fit(
        chosen,
        steps=STEPS,
        shared=True,
        normalization="frobenius",
        limit=_SHARED_LIMIT,
        weights=_weights(chosen, "muon", "frobenius"),
    ).coefficients
    errors: dict[str, float] = {
        name: fmean(polar_error(resolve(name, STEPS, shape), base, normalization) for base in later)
        for name, normalization in PUBLISHED
    }
    errors["adanewton"] = fmean(polar_error(adanewton, base, "frobenius") for base in later)
    errors["adaptive"] = fmean(polar_error(adaptive, base) for base in later)
    return Row(shape, layers, len(chosen), len(later), adaptive, adanewton, errors)


def _weights(spectra: Sequence[NDArray[np.float64]], name: Name, normalization: Normalization) -> list[float]:
    """Return a weight for each spectrum: the inverse square of the named set's error on the spectrum."""
    start = resolve(name, STEPS)
    return [1 / max(polar_error(start, base, normalization), 1e-3) ** 2 for base in spectra]


def _shape_text(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _numbers(triples: Sequence[Coefficients]) -> str:
    """Return triples as Python and JSON write them, a triple on each line. A single triple has no list around it."""
    lines = [json.dumps([round(number, 5) for number in triple]) for triple in triples]
    return lines[0] if len(lines) == 1 else "[" + ",\n ".join(lines) + "]"
