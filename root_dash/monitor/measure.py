"""What a batch of equal-shaped layers went through in a step, measured: an observation in, small tensors out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from root_dash.kernels import moments
from root_dash.monitor.quantities import distribution
from root_dash.monitor.quantities import sums as statistics
from root_dash.monitor.quantities.lanczos import bidiagonals
from root_dash.optim.matrices.shards import counted_here, is_dtensor
from root_dash.optim.observation import Observation, ShardObservation
from root_dash.optim.outliers.threshold import split, threshold
from root_dash.records import Kind

EXACT_UP_TO = 512
"""The short side up to which spectra are exact, by Gram matrices and their eigenvalues.

On one thread the spectra of a layer of 512 x 1024 take 150 ms so and 120 ms estimated, those of 1024 x 2048 take 940 ms
and 330 ms; and four Gram matrices of 1024 x 1024 are half of what the writer's queue holds.
"""

AT_ONCE = 2**24
"""Entries of layers of one shape that are measured together, unless one layer has more.

So what is made on the way, and let go, does not grow with the model: of float32 it was ten times as much as the weights
that are measured together. Each layer's numbers are its own, and the same.
"""

Timed = Callable[[Kind], AbstractContextManager[object]]
Short = Callable[[Kind, torch.OutOfMemoryError], object]
"""Hears of a kind for which the device had no memory left."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Tensors measured of L layers of one shape; `positions` are their places in the model's order.

    `tensors` still live on the device; their names and shapes are what `frames.Assembler` reads.
    """

    positions: tuple[int, ...]
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]
    entries: int | None = None
    """How many entries of each layer were measured, where it was a shard; None: all of them."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of L layers of one shape at one step, each tensor (L, rows, cols).

    `momentum`, `base` and `update` are None where the optimizer has none or does not offer it. Gradient and norm are
    None where a process sees sharded matrices whole, and `shard_of` is the shape of the matrices where these are what
    it holds of them.
    """

    positions: tuple[int, ...]
    gradient: Tensor | None
    weight_norm: Tensor | None
    momentum: Tensor | None = None
    threshold: Tensor | None = None
    base: Tensor | None = None
    update: Tensor | None = None
    lr: float | Tensor = 0.0
    orthogonalized: bool = False
    of_base: bool = True
    """Whether what was orthogonalized is the base, and so the polar error one of the update."""
    shard_of: tuple[int, int] | None = None

    @property
    def seen(self) -> Tensor:
        """The gradient or, where there is none, the momentum: of the batch's shape, on its device."""
        tensor = self.momentum if self.gradient is None else self.gradient
        assert tensor is not None
        return tensor


def batches_of(observation: Observation, positions: Mapping[Tensor, int], outlier_quantile: float) -> Iterator[Batch]:
    """What ROOT's observation shows of the watched parameters, `AT_ONCE`.

    Where the optimizer itself cuts no outliers (its AdamW groups), the threshold that would be is computed at
    `outlier_quantile`, so that every matrix has a mask to inspect.
    """
    sharded = observation.gradient is None
    watched = [
        row
        for row, parameter in enumerate(observation.parameters)
        if parameter in positions and (sharded or _shown_once(parameter))
    ]
    for rows in chunks(watched, observation.momentum[0].numel()):
        yield _batch_of(observation, rows, positions, outlier_quantile)


def _batch_of(
    observation: Observation, rows: Sequence[int], positions: Mapping[Tensor, int], outlier_quantile: float
) -> Batch:
    def kept(tensor: Tensor) -> Tensor:
        # Row by row: indexing with a list would copy the list to the device and wait for it.
        consecutive = rows[-1] - rows[0] < len(rows)
        return tensor[rows[0] : rows[-1] + 1] if consecutive else stacked(tensor)

    def stacked(matrices: Sequence[Tensor] | Tensor) -> Tensor:
        return torch.stack([matrices[row] for row in rows])

    momentum = kept(observation.momentum)
    base = None if observation.base is None else kept(observation.base)
    epsilon = None if observation.threshold is None else kept(observation.threshold)
    if epsilon is None and base is None and observation.algorithm != "root":
        base, epsilon = outliers_of(momentum, outlier_quantile)
    return Batch(
        positions=tuple(positions[observation.parameters[row]] + observation.pieces[row] for row in rows),
        gradient=None if observation.gradient is None else stacked(observation.gradient),
        weight_norm=None
        if observation.weight is None
        else statistics.norms_of([observation.weight[row] for row in rows]),
        momentum=momentum,
        threshold=epsilon,
        base=base,
        update=kept(observation.update),
        lr=observation.lr,
        orthogonalized=observation.algorithm == "root",
    )


def chunks(items: Sequence[T], entries: int) -> Iterator[Sequence[T]]:
    """Items of so many entries each, as many at a time as `AT_ONCE` allows, and one at least."""
    count = max(1, AT_ONCE // max(1, entries))
    for start in range(0, len(items), count):
        yield items[start : start + count]


def batches_of_shards(shards: Sequence[ShardObservation], positions: Mapping[Tensor, int]) -> Iterator[Batch]:
    """What ROOT shows of this process's shards of the watched parameters, in batches of equal shape."""
    watched = [shard for shard in shards if shard.parameter in positions]
    alike: dict[tuple[object, ...], list[ShardObservation]] = {}
    for shard in watched:
        gradient = shard.gradient
        alike.setdefault((shard.shape, gradient.shape, gradient.dtype, gradient.device), []).append(shard)
    for held in (held for all_alike in alike.values() for held in chunks(all_alike, all_alike[0].gradient.numel())):
        first = held[0]
        yield Batch(
            positions=tuple(positions[shard.parameter] + shard.piece for shard in held),
            gradient=torch.stack([shard.gradient for shard in held]),
            weight_norm=statistics.norms_of([shard.weight for shard in held]),
            momentum=torch.stack([shard.momentum for shard in held]),
            update=None
            if first.update is None
            else torch.stack([shard.update for shard in held if shard.update is not None]),
            lr=first.lr,
            shard_of=first.shape,
        )


def _shown_once(parameter: Tensor) -> bool:
    """Whether what all processes are shown of a parameter is this one's to record."""
    return not is_dtensor(parameter) or counted_here(parameter, whole=True)


def outliers_of(momentum: Tensor, outlier_quantile: float) -> tuple[Tensor, Tensor]:
    """Base and threshold of momenta (L, rows, cols) at a quantile of |M|: (L, rows, cols) and (L,)."""
    epsilon = threshold(momentum, outlier_quantile)
    return split(momentum, epsilon), epsilon


def _raise(kind: Kind, error: torch.OutOfMemoryError) -> None:
    raise error


def measure(
    batch: Batch, kinds: Collection[Kind], timed: Timed = lambda kind: nullcontext(), short: Short = _raise
) -> Measurement:
    """Measure what the kinds ask of a batch, each kind in the context that `timed` makes for it.

    Of shards only what adds up. The lightest kinds come first: where the device has no memory for one, it and what
    would come after it are left out, and `short` hears of it.
    """
    tensors: dict[str, Tensor] = {}
    for kind, measured in _MEASURED.items():
        if kind in kinds and (batch.shard_of is None or kind in ADDITIVE):
            try:
                with timed(kind):
                    tensors |= measured(batch)
            except torch.OutOfMemoryError as error:
                short(kind, error)
                break
    rows, cols = batch.seen.shape[1:]
    if batch.shard_of is not None:
        return Measurement(batch.positions, batch.shard_of, tensors, rows * cols)
    return Measurement(batch.positions, (rows, cols), tensors)


def _histograms(batch: Batch) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if batch.gradient is None:
        return tensors  # the shards are counted
    for name, entries in _entries(batch):
        counts, nan, inf = distribution.histogram_counts(entries)
        tensors[f"histograms.{name}"] = counts.int()
        tensors[f"histograms.{name}.nonfinite"] = torch.stack([nan, inf], -1)
    return tensors


def _quantiles(batch: Batch) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, entries in _entries(batch):
        tensors[f"quantiles.{name}"], tensors[f"quantiles.{name}.count"] = distribution.quantiles(entries)
    return tensors


def _entries(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The entries of gradient and momentum, (L, n), in any order."""
    if batch.gradient is not None:
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
    sums = _sums(batch)
    if batch.gradient is not None and batch.weight_norm is not None:
        sums["weight_norm"] = batch.weight_norm
    if batch.momentum is not None and batch.threshold is not None and batch.base is not None:
        sums["threshold"] = batch.threshold.float()
    if batch.update is not None:
        lr = batch.lr if isinstance(batch.lr, Tensor) else torch.tensor(batch.lr)
        sums |= {"update_norm": statistics.norms(*_flat(batch.update)), "lr": lr.double().reshape(())}
        if batch.orthogonalized:
            sums["orthogonality_error"] = statistics.orthogonality_error(batch.update)
    return {f"statistics.{name}": tensor for name, tensor in sums.items()}


def _sums(batch: Batch) -> dict[str, Tensor]:
    """Of gradient and momentum, in one pass where a device has a kernel for it."""
    gradient = None if batch.gradient is None or batch.weight_norm is None else batch.gradient.flatten(1)
    epsilon = None if batch.momentum is None or batch.base is None else batch.threshold
    if (gradient is not None or epsilon is not None) and moments.takes(batch.gradient, batch.momentum):
        momentum = None if batch.momentum is None else batch.momentum.flatten(1)
        return moments.sums(gradient, momentum, epsilon)
    sums: dict[str, Tensor] = {}
    if gradient is not None:
        sums |= statistics.gradient_sums(gradient)
        if batch.momentum is not None:
            units = batch.shard_of is not None
            sums |= statistics.momentum_sums(gradient, batch.momentum.flatten(1), units=units)
    if epsilon is not None and batch.momentum is not None and batch.base is not None:
        sums |= statistics.outlier_sums(*_flat(batch.momentum, batch.base))
    return sums


def _spectra(batch: Batch) -> dict[str, Tensor]:
    momentum = batch.momentum
    if momentum is None or min(momentum.shape[1:]) < 2:
        return {}
    base = momentum if batch.base is None else batch.base
    if min(momentum.shape[1:]) > EXACT_UP_TO:
        shown = {"momentum": momentum, "base": base, "update": batch.update}
        estimates = {f"lanczos.{name}": bidiagonals(matrix) for name, matrix in shown.items() if matrix is not None}
        if batch.update is not None and batch.orthogonalized and batch.of_base:
            estimates["lanczos.orthogonalized"] = torch.ones_like(momentum[:, 0, 0], dtype=torch.uint8)
        return estimates | {"lanczos.norm": statistics.norms(*_flat(momentum))}
    grams = {"spectra.momentum": statistics.gram(momentum, momentum), "spectra.base": statistics.gram(base, base)}
    if batch.update is not None:
        grams["spectra.update"] = statistics.gram(batch.update, batch.update)
    if batch.update is not None and batch.orthogonalized and batch.of_base:
        grams["spectra.cross"] = statistics.gram(base, batch.update)
    return grams


def _flat(*tensors: Tensor) -> list[Tensor]:
    """Tensors (L, rows, cols) as (L, n), all in the one order of the entries in which the first lies in memory.

    ROOT keeps tall matrices lying: as they stand in the weights, they would be copied.
    """
    lying = tensors[0].mT.is_contiguous()
    return [(tensor.mT if lying else tensor).flatten(1) for tensor in tensors]


ADDITIVE: tuple[Kind, ...] = ("statistics", "histograms")
"""The kinds that are added up over shards: the others need the whole matrix, or its order statistics."""

_MEASURED: dict[Kind, Callable[[Batch], dict[str, Tensor]]] = {
    "statistics": _statistics,
    "histograms": _histograms,
    "quantiles": _quantiles,
    "masks": _masks,
    "spectra": _spectra,
}
