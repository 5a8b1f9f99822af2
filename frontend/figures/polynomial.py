"""The singular values of a recorded spectrum after the steps of other Newton-Schulz coefficients, and their error.

The iteration acts on singular values alone. So the result on a recorded spectrum is exact and needs no second run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from root_dash.coefficients.tables import evaluate, normalize_spectrum, resolve
from root_dash.records import Float64Array, History, Layer, Spectrum

Measure = Literal["polar_error", "orthogonality_error"]

STEPS = 5
NULL = 1e-6
"""Share of the largest singular value. A direction with a smaller value is null."""


def muon(sigma: NDArray[np.floating]) -> Float64Array:
    """Return the singular values after Muon's five steps, in the order of `sigma`."""
    values = np.asarray(sigma, np.float64)
    return np.asarray(evaluate(resolve("muon", STEPS), normalize_spectrum(values, "frobenius")), np.float64)


def paper(sigma: NDArray[np.floating], shape: tuple[int, int]) -> Float64Array:
    """Return the singular values after the five steps of the paper's table for the nearest shape, in the same order."""
    values = np.asarray(sigma, np.float64)
    return np.asarray(evaluate(resolve("paper", STEPS, shape), normalize_spectrum(values, "frobenius")), np.float64)


def error(sigma: NDArray[np.floating], measure: Measure) -> float:
    """Return the root mean square distance from 1: of the singular values (polar) or their squares (orthogonality)."""
    if not len(sigma):
        return float("nan")
    away = np.asarray(sigma, np.float64)
    away = away - 1 if measure == "polar_error" else away**2 - 1
    return float(np.sqrt(np.mean(away**2)))


def present(sigma: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the singular values that are not null."""
    return sigma[sigma > NULL * sigma.max()] if len(sigma) and sigma.max() > 0 else sigma[:0]


def orthogonalized(spectrum: Spectrum, *, of_base: bool) -> Float64Array:
    """Return the singular values that the optimizer orthogonalizes: the base's or the momentum's."""
    return np.asarray(spectrum.base if of_base else spectrum.momentum, np.float64)


def errors_on(
    spectra: Iterable[Spectrum], measure: Measure, layer: Layer, *, of_base: bool = True
) -> tuple[History, History]:
    """Return the errors that Muon's and the paper's coefficients would have had on a layer's recorded spectra."""
    taken = [(spectrum.step, present(orthogonalized(spectrum, of_base=of_base))) for spectrum in spectra]
    steps = np.array([step for step, _ in taken], np.int64)
    muons = np.array([error(muon(sigma), measure) for _, sigma in taken], np.float64)
    papers = np.array([error(paper(sigma, (layer.rows, layer.cols)), measure) for _, sigma in taken], np.float64)
    return History("muon", steps, muons), History("paper", steps, papers)
