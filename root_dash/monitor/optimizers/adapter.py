"""What the recorder asks of an optimizer. One file per optimizer answers; `optimizers.registry` chooses the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.quantities.quantity import LayerBatch, MeasureLimits
from root_dash.optim.matrices.shards import local
from root_dash.optim.outliers.threshold import split, threshold
from root_dash.records import Event, Kind
from root_dash.records.algorithms import AlgorithmTraits, Orthogonalized, Target, checked_target

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class RecorderHooks:
    """What an adapter may call on the recorder that it serves. No call raises, or waits for anything.

    Args:
        positions: the place of each watched parameter among the run's layers.
        outlier_quantile: the quantile of |M| at which outliers are counted if the optimizer takes none itself.
        limits: how much is copied, and measured at a time.
        due: returns the kinds to record in the current step.
        prepare: calls a function with the kinds that are due, if any, before the step; its time on the given device is
            charged to the recording.
        measure: measures the batches that a function returns, if anything is due.
        note: records the event that a function returns.
        step: returns the number of the current step, from 1.
    """

    positions: Mapping[Tensor, int]
    outlier_quantile: float
    limits: MeasureLimits
    due: Callable[[], frozenset[Kind]]
    prepare: Callable[[Callable[[frozenset[Kind]], object], torch.device], None]
    measure: Callable[[Callable[[], Iterator[LayerBatch]]], None]
    note: Callable[[Callable[[], Event]], None]
    step: Callable[[], int]


class Adapter:
    """How an optimizer is observed, and what a run records of it.

    A subclass names the optimizers that it knows in `adapts` and attaches itself in `attach`. An optimizer that aims at
    another map of singular values than the polar factor says so in an attribute `target_map` of its own, or the
    subclass does in `target`: see `root_dash.records.algorithms.Target`.
    """

    label: str | None = None
    """The optimizer's name for people; None for its class's name."""
    orthogonalizes: Orthogonalized | None = None
    """The tensor that the optimizer orthogonalizes, if any."""
    target: Target = "polar"
    """The map of singular values that the optimizer aims at."""
    hidden: tuple[str, ...] = ("params", "param_names", "step")
    """Entries of a parameter group that are no options: its parameters and its state."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @classmethod
    def adapts(cls, optimizer: Optimizer) -> bool:
        """Return whether this adapter knows the optimizer."""
        raise NotImplementedError

    def attach(self, hooks: RecorderHooks) -> Iterator[Any]:
        """Observe the optimizer; yield each hook's handle, so that hooks before a refused one can be removed."""
        raise NotImplementedError

    def algorithm(self, group: Mapping[str, Any]) -> str:
        """Return the name under which the layers of a parameter group are recorded."""
        return str(group.get("algorithm", type(self.optimizer).__name__.lower()))

    def traits(self, group: Mapping[str, Any]) -> AlgorithmTraits:
        """Return what a run records of the algorithm of a parameter group.

        Raises:
            ValueError: the optimizer's `target_map` is not a map of singular values.
        """
        target = checked_target(getattr(self.optimizer, "target_map", self.target))
        return AlgorithmTraits(self.label or type(self.optimizer).__name__, self.orthogonalizes, target)

    def matrices(self, parameter: Tensor, group: Mapping[str, Any]) -> Sequence[tuple[int, ...]]:
        """Return the shapes of the matrices that the optimizer takes a parameter apart into; none if it is one."""
        return ()

    def scheduled(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options of a parameter group that schedules change, under their common names, as far as known."""
        momentum = group["momentum"] if "momentum" in group else next(iter(group.get("betas") or ()), None)
        return {"lr": group.get("lr"), "weight_decay": group.get("weight_decay"), "momentum": momentum}

    def held(self, parameter: Tensor, group: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Yield what this process holds of each matrix of a parameter: the matrix's index, and a view of the weights.

        A matrix of which the process holds nothing is left out, or has no entries.
        """
        yield 0, local(parameter).detach()

    def cut(self, tensor: Tensor, group: Mapping[str, Any]) -> Sequence[Tensor]:
        """Return the matrices of a parameter's gradient, in the order of `matrices`."""
        return (tensor,)


def chunks(items: Sequence[Item], entries: int, limits: MeasureLimits) -> Iterator[Sequence[Item]]:
    """Yield items of so many entries each, as many at a time as the limits allow, and at least one."""
    count = max(1, limits.entries // max(1, entries))
    for start in range(0, len(items), count):
        yield items[start : start + count]


def outliers_of(momentum: Tensor, outlier_quantile: float) -> tuple[Tensor, Tensor]:
    """Return base and threshold of momenta (L, rows, cols) at a quantile of |M|: (L, rows, cols) and (L,)."""
    epsilon = threshold(momentum, outlier_quantile)
    return split(momentum, epsilon), epsilon
