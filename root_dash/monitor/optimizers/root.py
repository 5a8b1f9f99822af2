"""ROOT, which shows each step to its observers: momentum, threshold, base and update while they are alive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from root_dash.monitor.optimizers.adapter import Adapter, RecorderHooks, chunks, outliers_of
from root_dash.monitor.quantities.norms import norms_apart
from root_dash.monitor.quantities.quantity import LayerBatch
from root_dash.optim.calibration.online import Change
from root_dash.optim.distributed.schedule import overlap, piece_rows, shard_rows
from root_dash.optim.matrices.layout import PLAIN, Layout, pieces
from root_dash.optim.matrices.shards import counted_here, is_dtensor, local, row_group, sharded_dims
from root_dash.optim.observation import Observation, ShardObservation
from root_dash.optim.root import ROOT
from root_dash.records import Event
from root_dash.records.algorithms import AlgorithmTraits

ORTHOGONALIZED = "root"
"""The name of ROOT's groups of matrices; the other groups are stepped by its AdamW."""


class RootAdapter(Adapter):
    """The adapter of ROOT, which orthogonalizes the base of each matrix and steps all else by AdamW."""

    label = "ROOT"
    orthogonalizes = "base"
    hidden = (*Adapter.hidden, "turn", "skipped", "calibration")

    @classmethod
    def adapts(cls, optimizer: Optimizer) -> bool:
        """Return whether the optimizer is a ROOT."""
        return isinstance(optimizer, ROOT)

    def attach(self, hooks: RecorderHooks) -> Iterator[Any]:
        """Register the observers of steps, of shards and of new coefficient sets."""
        assert isinstance(self.optimizer, ROOT)
        yield self.optimizer.register_observer(
            lambda observation: hooks.measure(lambda: batches_of(observation, hooks)), lambda: bool(hooks.due())
        )
        yield self.optimizer.register_shard_observer(
            lambda shards: hooks.measure(lambda: batches_of_shards(shards, hooks))
        )
        yield self.optimizer.register_change_observer(lambda change: hooks.note(lambda: _event(change)))
        refusals = 0

        def refused(error: FloatingPointError) -> None:
            nonlocal refusals
            refusals += 1
            # A program may catch the error and go on for ever: told are the 1st, the 2nd, the 4th, the 8th, ...
            if refusals & (refusals - 1) == 0:
                times = f" ({refusals} times so far)" if refusals > 1 else ""
                hooks.note(lambda: Event("refused", f"no step was taken: {error}{times}", hooks.step(), time.time()))

        yield self.optimizer.register_refusal_observer(refused)

    def traits(self, group: Mapping[str, Any]) -> AlgorithmTraits:
        """Return the traits of ROOT or, for its other groups, of AdamW."""
        return super().traits(group) if self.algorithm(group) == ORTHOGONALIZED else AlgorithmTraits("AdamW")

    def matrices(self, parameter: Tensor, group: Mapping[str, Any]) -> Sequence[tuple[int, ...]]:
        """Return the shapes of the experts, heads and fused projections that the group's layout names."""
        return Layout.of(group).shapes(parameter.shape) if self.algorithm(group) == ORTHOGONALIZED else ()

    def scheduled(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return learning rate, weight decay and momentum; the first of AdamW's decay rates is its momentum."""
        adamw = self.algorithm(group) != ORTHOGONALIZED
        return dict(super().scheduled(group)) | ({"momentum": group["betas"][0]} if adamw else {})

    def held(self, parameter: Tensor, group: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Yield what this process holds of each expert, head and fused projection.

        Nothing is yielded of a parameter whose blocks of rows are cut otherwise than along its first dimension.
        """
        layout = Layout.of(group) if self.algorithm(group) == ORTHOGONALIZED else PLAIN
        here = local(parameter).detach()
        whole = layout.batch_ndim + (layout.split_sizes is not None or layout.num_heads is not None)
        if layout == PLAIN:
            yield 0, here
        elif all(dim >= whole for dim in sharded_dims(parameter)):
            yield from enumerate(pieces(here, layout))
        elif is_dtensor(parameter) and (ranks := row_group(parameter)) is not None and here.numel():
            first, last = shard_rows(parameter.shape, layout, ranks.size())[ranks.rank()]
            matrix = here.reshape(last - first, -1)
            for piece, rows in enumerate(piece_rows(parameter.shape, layout)):
                if shared := overlap(rows, (first, last)):
                    yield piece, matrix[shared[0] - first : shared[1] - first]

    def cut(self, tensor: Tensor, group: Mapping[str, Any]) -> Sequence[Tensor]:
        """Return the experts, heads and fused projections of a gradient, in the order of `matrices`."""
        return pieces(tensor, Layout.of(group)) if self.algorithm(group) == ORTHOGONALIZED else (tensor,)


def batches_of(observation: Observation, hooks: RecorderHooks) -> Iterator[LayerBatch]:
    """Yield what ROOT's observation shows of the watched parameters, as many layers at a time as the limits allow.

    ROOT's AdamW groups take no outliers. Their threshold is computed at the recorder's quantile, so that every matrix
    has a mask to inspect.
    """
    sharded = observation.gradient is None
    watched = [
        row
        for row, parameter in enumerate(observation.parameters)
        if parameter in hooks.positions and (sharded or _shown_once(parameter))
    ]
    for rows in chunks(watched, observation.momentum[0].numel(), hooks.limits):
        yield _batch(observation, rows, hooks)


def batches_of_shards(shards: Sequence[ShardObservation], hooks: RecorderHooks) -> Iterator[LayerBatch]:
    """Yield what ROOT shows of this process's shards of the watched parameters, in batches of equal shape."""
    watched = [shard for shard in shards if shard.parameter in hooks.positions]
    alike: dict[tuple[object, ...], list[ShardObservation]] = {}
    for shard in watched:
        gradient = shard.gradient
        alike.setdefault((shard.shape, gradient.shape, gradient.dtype, gradient.device), []).append(shard)
    for equal in alike.values():
        for held in chunks(equal, equal[0].gradient.numel(), hooks.limits):
            updates = [shard.update for shard in held if shard.update is not None]
            yield LayerBatch(
                positions=tuple(hooks.positions[shard.parameter] + shard.piece for shard in held),
                gradient=torch.stack([shard.gradient for shard in held]),
                weight_norm=norms_apart([shard.weight for shard in held]),
                momentum=torch.stack([shard.momentum for shard in held]),
                update=torch.stack(updates) if held[0].update is not None else None,
                lr=held[0].lr,
                shard_of=held[0].shape,
            )


def _batch(observation: Observation, rows: Sequence[int], hooks: RecorderHooks) -> LayerBatch:
    def kept(tensor: Tensor) -> Tensor:
        # Row by row: indexing with a list would copy the list to the device and wait for it.
        consecutive = rows[-1] - rows[0] < len(rows)
        return tensor[rows[0] : rows[-1] + 1] if consecutive else stacked(tensor)

    def stacked(matrices: Sequence[Tensor] | Tensor) -> Tensor:
        return torch.stack([matrices[row] for row in rows])

    orthogonalized = observation.algorithm == ORTHOGONALIZED
    weight = observation.weight
    momentum = kept(observation.momentum)
    base = None if observation.base is None else kept(observation.base)
    epsilon = None if observation.threshold is None else kept(observation.threshold)
    if epsilon is None and base is None and not orthogonalized:
        base, epsilon = outliers_of(momentum, hooks.outlier_quantile)
    return LayerBatch(
        positions=tuple(hooks.positions[observation.parameters[row]] + observation.pieces[row] for row in rows),
        gradient=None if observation.gradient is None else stacked(observation.gradient),
        weight_norm=None if weight is None else norms_apart([weight[row] for row in rows]),
        momentum=momentum,
        threshold=epsilon,
        base=base,
        update=kept(observation.update),
        lr=observation.lr,
        orthogonalized=orthogonalized,
        weight=None if weight is None else [weight[row] for row in rows],
    )


def _shown_once(parameter: Tensor) -> bool:
    """Return whether this process records a parameter that the optimizer shows to all processes."""
    return not is_dtensor(parameter) or counted_here(parameter, whole=True)


def _event(change: Change) -> Event:
    rows, cols = change.shape
    text = (
        f"new coefficients for {rows} x {cols}: mean polar error {change.error_before:.3g} -> "
        f"{change.error_after:.3g} on spectra that they were not fitted to"
    )
    return Event("coefficients", text, change.step, time.time())
