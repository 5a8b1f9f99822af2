"""What a batch of equal-shaped layers went through in a step, measured: an observation in, small tensors out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from root_dash.monitor import statistics
from root_dash.monitor.lanczos import bidiagonals
from root_dash.optim.observation import Observation
from root_dash.optim.outliers import split, threshold
from root_dash.records import Kind

EXACT_UP_TO = 512
"""The short side up to which spectra are exact, by Gram matrices and their eigenvalues.

On one thread the spectra of a layer of 512 x 1024 take 150 ms so and 120 ms estimated, those of 1024 x 2048 take 940 ms
and 330 ms; and four Gram matrices of 1024 x 1024 are half of what the writer's queue holds.
"""

Timed = Callable[[Kind], AbstractContextManager[object]]


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
        weight_norm=statistics.norms(kept(observation.weight).flatten(1)),
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
    return torch.stack([torch.linalg.vector_norm(p.detach(), dtype=torch.float64).float() for p in parameters])


def measure(batch: Batch, kinds: Collection[Kind], timed: Timed = lambda kind: nullcontext()) -> Measurement:
    """Measure what the kinds ask of a batch, each kind in the context that `timed` makes for it."""
    tensors: dict[str, Tensor] = {}
    for kind, measured in _MEASURED.items():
        if kind in kinds:
            with timed(kind):
                tensors |= measured(batch)
    rows, cols = batch.gradient.shape[1:]
    return Measurement(batch.positions, (rows, cols), tensors)


def _histograms(batch: Batch) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, entries in _entries(batch):
        counts, nan, inf = statistics.histogram_counts(entries)
        tensors[f"histograms.{name}"] = counts.int()
        tensors[f"histograms.{name}.nonfinite"] = torch.stack([nan, inf], -1)
    return tensors


def _quantiles(batch: Batch) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, entries in _entries(batch):
        tensors[f"quantiles.{name}"], tensors[f"quantiles.{name}.count"] = statistics.quantiles(entries)
    return tensors


def _entries(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The entries of gradient and momentum, (L, n), in any order."""
    yield "gradient", batch.gradient.flatten(1)
    if batch.momentum is not None:
        (momentum,) = _flat(batch.momentum)
        yield "momentum", momentum


def _masks(batch: Batch) -> dict[str, Tensor]:
    if batch.momentum is None or batch.threshold is None or min(batch.momentum.shape[1:]) < 2:
        return {}
    momentum = batch.momentum.flatten(1)
    largest, values = statistics.largest_entries(momentum)
    return {
        "masks.threshold": batch.threshold.float(),
        "masks.packed": statistics.packed_bits(statistics.outlier_mask(momentum, batch.threshold)),
        "masks.largest": largest,
        "masks.largest_values": values.float(),
    }


def _statistics(batch: Batch) -> dict[str, Tensor]:
    gradient = batch.gradient.flatten(1)
    sums = statistics.gradient_sums(gradient) | {"weight_norm": batch.weight_norm}
    if batch.momentum is not None:
        sums |= statistics.momentum_sums(gradient, batch.momentum.flatten(1))
    if batch.momentum is not None and batch.threshold is not None and batch.base is not None:
        momentum, base = _flat(batch.momentum, batch.base)
        sums |= statistics.outlier_sums(momentum, base) | {"threshold": batch.threshold.float()}
    if batch.update is not None:
        lr = batch.lr if isinstance(batch.lr, Tensor) else torch.tensor(batch.lr)
        sums |= {"update_norm": statistics.norms(*_flat(batch.update)), "lr": lr.double()}
        if batch.orthogonalized:
            sums["orthogonality_error"] = statistics.orthogonality_error(batch.update)
    return {f"statistics.{name}": tensor for name, tensor in sums.items()}


def _spectra(batch: Batch) -> dict[str, Tensor]:
    momentum = batch.momentum
    if momentum is None or min(momentum.shape[1:]) < 2:
        return {}
    base = momentum if batch.base is None else batch.base
    if min(momentum.shape[1:]) > EXACT_UP_TO:
        shown = {"momentum": momentum, "base": base, "update": batch.update}
        estimates = {f"lanczos.{name}": bidiagonals(matrix) for name, matrix in shown.items() if matrix is not None}
        return estimates | {"lanczos.norm": statistics.norms(*_flat(momentum))}
    grams = {"spectra.momentum": statistics.gram(momentum, momentum), "spectra.base": statistics.gram(base, base)}
    if batch.update is not None:
        grams["spectra.update"] = statistics.gram(batch.update, batch.update)
    if batch.update is not None and batch.orthogonalized:
        grams["spectra.cross"] = statistics.gram(base, batch.update)
    return grams


def _flat(*tensors: Tensor) -> list[Tensor]:
    """Tensors (L, rows, cols) as (L, n), all in the one order of the entries in which the first lies in memory.

    ROOT keeps tall matrices lying: as they stand in the weights, they would be copied.
    """
    lying = tensors[0].mT.is_contiguous()
    return [(tensor.mT if lying else tensor).flatten(1) for tensor in tensors]


_MEASURED: dict[Kind, Callable[[Batch], dict[str, Tensor]]] = {
    "statistics": _statistics,
    "histograms": _histograms,
    "quantiles": _quantiles,
    "spectra": _spectra,
    "masks": _masks,
}
