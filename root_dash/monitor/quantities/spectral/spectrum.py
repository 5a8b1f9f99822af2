"""Spectra of momentum, base and update: exact from Gram matrices, or estimated if the matrices are large.

A Gram matrix is a product that any device computes without stopping; its eigenvalues would stop it. So the device sends
Gram matrices and the writer's thread takes the singular values, in float64. The solver is torch's and not NumPy's,
since torch's can be kept to one thread without touching the others (`writer.on_one_thread`): if all cores train, the
threads of NumPy's solver wait for each other for longer than they compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from root_dash.monitor.quantities.norms import norms
from root_dash.monitor.quantities.orthogonality import short_side
from root_dash.monitor.quantities.quantity import Arrays, HostBatch, HostResult, LayerBatch, Quantity, Tensors, flat
from root_dash.monitor.quantities.spectral import lanczos
from root_dash.records import Float64Array, Spectrum

_Values = tuple[Float64Array, Float64Array, Float64Array]
"""Singular values of M, B and X of L layers: (L, m), or (L, 0) if there is no update."""

_LANCZOS = "lanczos."
"""What the names of the arrays of an estimate begin with."""


@dataclass(frozen=True, slots=True)
class Grams:
    """Gram matrices of L layers on their short side m, each (L, m, m) in float64.

    They are those of the momentum M, the base B and the update X, and B Xᵀ as `cross`. `update` is None if there is no
    update, and `cross` is None unless the update is the base, orthogonalized.
    """

    momentum: Float64Array
    base: Float64Array
    update: Float64Array | None = None
    cross: Float64Array | None = None


def on_device(batch: LayerBatch) -> Tensors:
    """Return Gram matrices (L, m, m) of momentum, base and update, or bidiagonal matrices if they are large.

    `"cross"`, or `"lanczos.orthogonalized"`, is there if the update is the base, orthogonalized.
    """
    momentum, update = batch.momentum, batch.update
    if momentum is None or min(momentum.shape[1:]) < 2:
        return {}
    base = momentum if batch.base is None else batch.base
    orthogonal = update if batch.orthogonalized and batch.of_base else None
    shown = {"momentum": momentum, "base": base} | ({} if update is None else {"update": update})
    if min(momentum.shape[1:]) > batch.limits.exact_side:
        estimates = {f"{_LANCZOS}{name}": lanczos.bidiagonals(matrix) for name, matrix in shown.items()}
        if orthogonal is not None:
            estimates[f"{_LANCZOS}orthogonalized"] = torch.ones_like(momentum[:, 0, 0], dtype=torch.uint8)
        return estimates | {f"{_LANCZOS}norm": norms(*flat(momentum))}
    grams = {name: gram(matrix, matrix) for name, matrix in shown.items()}
    return grams if orthogonal is None else grams | {"cross": gram(base, orthogonal)}


def on_host(layers: HostBatch) -> HostResult:
    """Return the spectra and their statistics."""
    estimated = f"{_LANCZOS}momentum" in layers.arrays
    singular, statistics = (_estimated if estimated else _exact)(layers.arrays, *layers.shape)
    rows = zip(*(values.astype(np.float32) for values in singular), strict=True)
    return HostResult(
        statistics,
        [Spectrum(m.copy(), b.copy(), x.copy(), layers.step, estimated=estimated) for m, b, x in rows],
    )


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return Left Rightᵀ on the short side in float64: (L, rows, cols) twice -> (L, m, m), m = min(rows, cols).

    Squaring halves the digits: in float64, singular values down to 1.5e-8 of the largest survive.
    """
    return short_side(left).double() @ short_side(right).double().mT


def singular_values(gram: Float64Array) -> Float64Array:
    """Return the singular values (L, m), descending, of the matrices that have these Gram matrices (L, m, m).

    The values of a matrix that is not finite are NaN.
    """
    finite = np.isfinite(gram).all((-2, -1))
    values = np.full(gram.shape[:-1], np.nan)
    if finite.any():
        values[finite] = np.sqrt(np.maximum(torch.linalg.eigvalsh(torch.from_numpy(gram[finite])).numpy(), 0.0))[
            ..., ::-1
        ]
    return values


def null_tolerance(sigma_max: Float64Array, rows: int, cols: int) -> Float64Array:
    """Return the bound below which a singular value of a float32 matrix is null: max(rows, cols) ε₃₂ σ₁.

    `numpy.linalg.matrix_rank` uses the same bound.
    """
    return max(rows, cols) * float(np.finfo(np.float32).eps) * sigma_max


def spectral_statistics(singular: Float64Array, rows: int, cols: int) -> dict[str, Float64Array]:
    """Return the statistics of kind `"spectra"` except `polar_error`, each (L,), of descending singular values (L, m).

    `sigma_min` is the smallest value that is not null (`null_tolerance`), so that a dead unit does not read as an
    infinite condition. All are NaN for a zero matrix and for a matrix that is not finite.
    """
    largest = singular[..., 0]
    energy = singular**2
    with np.errstate(invalid="ignore", divide="ignore"):
        share = energy / energy.sum(-1, keepdims=True)
        entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0).sum(-1)
        alive = singular > null_tolerance(largest, rows, cols)[..., None]
        smallest = np.where(alive, singular, np.inf).min(-1)
        values = {
            "sigma_max": largest,
            "sigma_min": smallest,
            "stable_rank": energy.sum(-1) / largest**2,
            "effective_rank": np.exp(entropy),
            "condition": largest / smallest,
        }
    return {name: np.where(largest > 0, value, np.nan) for name, value in values.items()}


def estimated_statistics(
    momentum: Float64Array, update: Float64Array | None, norm: Float64Array, rows: int, cols: int
) -> dict[str, Float64Array]:
    """Return the statistics of kind `"spectra"`, each (L,), of estimated singular values (L, m) and exact norms (L,).

    An estimate knows neither the smallest singular value nor the condition: both are NaN. Its polar error is the
    distance of the update to its own polar factor: the least distance that it can have to the polar factor of a base of
    full rank. If the base has a lower rank, the exact error leaves the null directions out and this error counts them:
    0.73 instead of 0.44 at rank 322 of 560.
    """
    values = spectral_statistics(momentum, rows, cols)
    unknown = np.full(len(momentum), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        stable = np.where(momentum[:, 0] > 0, (norm / momentum[:, 0]) ** 2, np.nan)
    polar = unknown if update is None else np.sqrt(((update - 1.0) ** 2).mean(-1))
    return values | {"sigma_min": unknown, "condition": unknown, "stable_rank": stable, "polar_error": polar}


def base_and_polar_error(grams: Grams, rows: int, cols: int) -> tuple[Float64Array, Float64Array]:
    """Return the bases' descending singular values (L, m), and ‖X − UVᵀ‖_F / ‖UVᵀ‖_F (L,), NaN without an update.

    UVᵀ is the polar factor of the base on its range. With B Bᵀ = Q Λ Qᵀ it is Q Λ^(-1/2) Qᵀ B over the eigenvalues that
    are not null. So ⟨X, UVᵀ⟩ = Σ λᵢ^(-1/2) (Qᵀ B Xᵀ Q)ᵢᵢ, and the distance follows without forming either matrix.
    """
    errors = np.full(grams.base.shape[0], np.nan)
    if grams.update is None or grams.cross is None:
        return singular_values(grams.base), errors
    base = np.full(grams.base.shape[:-1], np.nan)
    finite = np.isfinite(grams.base).all((-2, -1)) & np.isfinite(grams.cross).all((-2, -1))
    if not finite.any():
        return base, errors
    solved = torch.linalg.eigh(torch.from_numpy(grams.base[finite]))
    values, vectors = solved.eigenvalues.numpy(), solved.eigenvectors.numpy()
    singular = np.sqrt(np.maximum(values, 0.0))
    base[finite] = singular[..., ::-1]
    alive = singular > null_tolerance(singular[..., -1], rows, cols)[..., None]
    rank = alive.sum(-1)
    projected = _diagonals(vectors, grams.cross[finite])
    inner = np.where(alive, projected / np.where(alive, singular, 1.0), 0.0).sum(-1)
    update_energy = np.trace(grams.update[finite], axis1=-2, axis2=-1)
    squared = np.maximum(update_energy - 2.0 * inner + rank, 0.0)
    errors[finite] = np.where(rank > 0, np.sqrt(squared / np.maximum(rank, 1)), np.nan)
    return base, errors


def _diagonals(vectors: Float64Array, cross: Float64Array) -> Float64Array:
    """Return the diagonals (L, m) of Qᵀ C Q for L matrices Q and C (L, m, m)."""
    q, c = torch.from_numpy(vectors), torch.from_numpy(cross)
    diagonals: Float64Array = ((c @ q) * q).sum(-2).numpy()
    return diagonals


def _exact(arrays: Arrays, rows: int, cols: int) -> tuple[_Values, dict[str, Float64Array]]:
    grams = Grams(arrays["momentum"], arrays["base"], arrays.get("update"), arrays.get("cross"))
    momentum, (base, errors) = singular_values(grams.momentum), base_and_polar_error(grams, rows, cols)
    update = np.empty((len(momentum), 0)) if grams.update is None else singular_values(grams.update)
    return (momentum, base, update), spectral_statistics(momentum, rows, cols) | {"polar_error": errors}


def _estimated(arrays: Arrays, rows: int, cols: int) -> tuple[_Values, dict[str, Float64Array]]:
    names = [name for name in ("momentum", "base", "update") if f"{_LANCZOS}{name}" in arrays]
    values = {name: lanczos.singular_values(arrays[f"{_LANCZOS}{name}"], min(rows, cols)) for name in names}
    momentum, base = values["momentum"], values["base"]
    orthogonal = values.get("update") if f"{_LANCZOS}orthogonalized" in arrays else None
    statistics = estimated_statistics(momentum, orthogonal, arrays[f"{_LANCZOS}norm"], rows, cols)
    return (momentum, base, values.get("update", np.empty((len(momentum), 0)))), statistics


SPECTRUM = Quantity(
    "spectrum",
    "spectra",
    on_device,
    on_host,
    statistics=("sigma_max", "sigma_min", "stable_rank", "effective_rank", "condition", "polar_error"),
)
