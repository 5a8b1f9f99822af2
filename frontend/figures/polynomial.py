"""What a set of Newton-Schulz coefficients makes of a recorded spectrum.

The iteration acts on singular values alone, so its result on a recorded spectrum is exact and needs no run of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from root_dash.optim.coefficients import evaluate, normalize_spectrum, resolve
from root_dash.records import Float64Array, History, Spectrum

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


def errors_of(
    spectra: Iterable[Spectrum], measure: Measure, shape: tuple[int, int]
) -> tuple[History, History, History]:
    """The error of the recorded updates, and what Muon's and the paper's coefficients would have had instead."""
    rows = [
        (
            spectrum.step,
            error(spectrum.update, measure),
            error(muon(present(spectrum.momentum)), measure),
            error(paper(present(spectrum.momentum), shape), measure),
        )
        for spectrum in spectra
    ]
    steps = np.array([row[0] for row in rows], np.int64)
    own, muons, papers = (np.array([row[i] for row in rows], np.float64) for i in (1, 2, 3))
    return History(measure, steps, own), History("muon", steps, muons), History("paper", steps, papers)
