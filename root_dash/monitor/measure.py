"""What a batch of equal-shaped layers went through in a step, measured: an observation in, small tensors out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from root_dash.monitor import statistics
from root_dash.monitor.lanczos import bidiagonals
from root_dash.optim.observation import Observation
from root_dash.optim.outliers import split, threshold
from root_dash.records import Kind, statistic_names

EXACT_UP_TO = 512
"""The short side up to which spectra are exact, by Gram matrices and their eigenvalues.

On one thread the spectra of a layer of 512 x 1024 take 150 ms so and 120 ms estimated, those of 1024 x 2048 take 940 ms
and 330 ms; and four Gram matrices of 1024 x 1024 are half of what the writer's queue holds.
"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Tensors measured of L layers of one shape; `positions` are their places in the model's order.

    `tensors` still live on the device; their names and shapes are what `frames.Assembler` reads.
    """

    positions: tuple[int, ...]
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of L layers of one shape at one step, each tensor (L, rows, cols).

    `momentum`, `base` and `update` are None where the optimizer has none or does not offer it.
    """

    positions: tuple[int, ...]
    gradient: Tensor
    weight_norm: Tensor
    momentum: Tensor | None = None
    threshold: Tensor | None = None
    base: Tensor | None = None
    update: Tensor | None = None
    lr: float | Tensor = 0.0
    orthogonalized: bool = False


def batch_of(observation: Observation, positions: Mapping[Tensor, int], outlier_quantile: float) -> Batch | None:
    """The batch that ROOT's observation shows of the watched parameters; None where none of them is, or where sharded.

    Where the optimizer itself cuts no outliers (its AdamW groups), the threshold that would be is computed at
    `outlier_quantile`, so that every matrix has a mask to inspect.
    """
    parameters = observation.parameters
    rows = [row for row, parameter in enumerate(parameters) if parameter in positions]
    if not rows:
        return None
    if observation.gradient is None or observation.weight is None:
        # Of a sharded parameter each process holds some rows, and one shows the momentum: not recorded.
        return None

    def kept(tensor: Tensor) -> Tensor:
        # Row by row: indexing with a list would copy the list to the device and wait for it.
        return tensor if len(rows) == len(parameters) else torch.stack([tensor[row] for row in rows])

    momentum = kept(observation.momentum)
    base = None if observation.base is None else kept(observation.base)
    epsilon = None if observation.threshold is None else kept(observation.threshold)
    if epsilon is None and base is None and observation.algorithm != "root":
        base, epsilon = outliers_of(momentum, outlier_quantile)
    return Batch(
        positions=tuple(positions[parameters[row]] + observation.pieces[row] for row in rows),
        gradient=kept(observation.gradient),
        weight_norm=weight_norms(kept(observation.weight)),
        momentum=momentum,
        threshold=epsilon,
        base=base,
        update=kept(observation.update),
        lr=observation.lr,
        orthogonalized=observation.algorithm == "root",
    )


def outliers_of(momentum: Tensor, outlier_quantile: float) -> tuple[Tensor, Tensor]:
    """Base and threshold of momenta (L, rows, cols) at a quantile of |M|: (L, rows, cols) and (L,)."""
    epsilon = threshold(momentum, outlier_quantile)
    return split(momentum, epsilon), epsilon


def weight_norms(parameters: Iterable[Tensor]) -> Tensor:
    """Frobenius norms of L parameters: (L,)."""
    return torch.cat([statistics.norms(p.detach().reshape(1, -1)) for p in parameters])


def measure(batch: Batch, kinds: Collection[Kind]) -> Measurement:
    """Measure what the kinds ask of a batch."""
    tensors: dict[str, Tensor] = {}
    rows, cols = batch.gradient.shape[1:]
    matrix = min(rows, cols) >= 2
    flat_gradient = batch.gradient.flatten(1)
    lying = None if batch.momentum is None else _lying(batch.momentum).flatten(1)
    if "statistics" in kinds:
        tensors["statistics"] = _statistics(batch, flat_gradient)
    for tensor, entries in (("gradient", flat_gradient), ("momentum", lying)):
        if entries is not None and "histograms" in kinds:
            counts, nan, inf = statistics.histogram_counts(entries)
            tensors[f"histograms.{tensor}"] = counts.int()
            tensors[f"histograms.{tensor}.nonfinite"] = torch.stack([nan, inf], -1)
        if entries is not None and "quantiles" in kinds:
            values, count = statistics.quantiles(entries)
            tensors[f"quantiles.{tensor}"] = values
            tensors[f"quantiles.{tensor}.count"] = count
    if batch.momentum is None or not matrix:
        return Measurement(batch.positions, (rows, cols), tensors)
    if "spectra" in kinds:
        tensors |= _spectra(batch, batch.momentum)
    if "masks" in kinds and batch.threshold is not None:
        flat_momentum = batch.momentum.flatten(1)
        tensors["masks.threshold"] = batch.threshold.float()
        tensors["masks.packed"] = statistics.packed_bits(statistics.outlier_mask(flat_momentum, batch.threshold))
        tensors["masks.largest"], values = statistics.largest_entries(flat_momentum)
        tensors["masks.largest_values"] = values.float()
    return Measurement(batch.positions, (rows, cols), tensors)


def _statistics(batch: Batch, flat_gradient: Tensor) -> Tensor:
    columns = statistics.gradient_statistics(flat_gradient) | {"weight_norm": batch.weight_norm}
    if batch.momentum is not None:
        columns |= statistics.momentum_statistics(flat_gradient, batch.momentum.flatten(1))
    if batch.momentum is not None and batch.threshold is not None and batch.base is not None:
        momentum, base = _lying(batch.momentum).flatten(1), _lying(batch.base).flatten(1)
        columns |= statistics.outlier_statistics(momentum, base, batch.threshold)
    if batch.update is not None:
        columns |= statistics.update_statistics(_lying(batch.update).flatten(1), batch.weight_norm, batch.lr)
        if batch.orthogonalized:
            columns["orthogonality_error"] = statistics.orthogonality_error(batch.update)
    missing = torch.full_like(batch.weight_norm, torch.nan)
    return torch.stack([columns.get(name, missing).float() for name in statistic_names("statistics")], -1)


def _spectra(batch: Batch, momentum: Tensor) -> dict[str, Tensor]:
    base = momentum if batch.base is None else batch.base
    if min(momentum.shape[1:]) > EXACT_UP_TO:
        shown = {"momentum": momentum, "base": base, "update": batch.update}
        estimates = {f"lanczos.{name}": bidiagonals(matrix) for name, matrix in shown.items() if matrix is not None}
        return estimates | {"lanczos.norm": statistics.norms(_lying(momentum).flatten(1))}
    grams = {"spectra.momentum": statistics.gram(momentum, momentum), "spectra.base": statistics.gram(base, base)}
    if batch.update is not None:
        grams["spectra.update"] = statistics.gram(batch.update, batch.update)
    if batch.update is not None and batch.orthogonalized:
        grams["spectra.cross"] = statistics.gram(base, batch.update)
    return grams


def _lying(matrices: Tensor) -> Tensor:
    """Matrices (L, rows, cols) with the long side as rows' length, where only the entries matter and not their order.

    ROOT keeps its matrices so, and a tall one stood up again is not contiguous: flattening it would copy it.
    """
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
