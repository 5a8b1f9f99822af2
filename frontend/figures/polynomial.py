"""What a set of Newton-Schulz coefficients makes of a recorded spectrum.

The iteration acts on singular values alone, so its result on a recorded spectrum is exact and needs no run of its own.
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
"""Singular values below this share of the largest are directions that the tensor does not have."""


def muon(sigma: NDArray[np.floating]) -> Float64Array:
    """The singular values that Muon's five steps give, in the order of those that they are given."""
    values = np.asarray(sigma, np.float64)
    return np.asarray(evaluate(resolve("muon", STEPS), normalize_spectrum(values, "frobenius")), np.float64)


def paper(sigma: NDArray[np.floating], shape: tuple[int, int]) -> Float64Array:
    """The singular values that the paper's table for the nearest shape gives."""
    values = np.asarray(sigma, np.float64)
    return np.asarray(evaluate(resolve("paper", STEPS, shape), normalize_spectrum(values, "frobenius")), np.float64)


def error(sigma: NDArray[np.floating], measure: Measure) -> float:
    """How far from 1 singular values (polar) or their squares (orthogonality) are, root mean square."""
    if not len(sigma):
        return float("nan")
    away = np.asarray(sigma, np.float64)
    away = away - 1 if measure == "polar_error" else away**2 - 1
    return float(np.sqrt(np.mean(away**2)))


def present(sigma: NDArray[np.floating]) -> NDArray[np.floating]:
    """The singular values of the directions that the tensor has."""
    return sigma[sigma > NULL * sigma.max()] if len(sigma) and sigma.max() > 0 else sigma[:0]


def given(spectrum: Spectrum, algorithm: str) -> Float64Array:
    """The spectrum to compare coefficient sets on: of the base, which ROOT orthogonalizes; else of the momentum."""
    return np.asarray(spectrum.base if algorithm == "root" else spectrum.momentum, np.float64)


def errors_of(spectra: Iterable[Spectrum], measure: Measure, layer: Layer) -> tuple[History, History]:
    """The error that Muon's and the paper's coefficients would have had on a layer's recorded spectra."""
    taken = [(spectrum.step, present(given(spectrum, layer.algorithm))) for spectrum in spectra]
    steps = np.array([step for step, _ in taken], np.int64)
    muons = np.array([error(muon(sigma), measure) for _, sigma in taken], np.float64)
    papers = np.array([error(paper(sigma, (layer.rows, layer.cols)), measure) for _, sigma in taken], np.float64)
    return History("muon", steps, muons), History("paper", steps, papers)
