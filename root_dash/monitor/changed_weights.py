"""The samples of an optimizer's weights around its step, for the share of entries that the step changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from root_dash.monitor.measure import Measurement
from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.monitor.quantities.changes import CHANGES, changed_shares, samples
from root_dash.monitor.quantities.moments import MOMENTS

_Alike = dict[tuple[object, ...], dict[int, Tensor]]
"""The weights by position, of one shape, layout, type and device each."""


class ChangedWeights:
    """Samples the watched weights of an optimizer around its step, and adds to what was measured what share changed.

    Of a sharded weight the process samples its own shard.
    """

    def __init__(self, adapter: Adapter, positions: Mapping[Tensor, int]) -> None:
        self._adapter = adapter
        self._positions = positions
        self._before: dict[tuple[object, ...], tuple[tuple[int, ...], Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """The device of the optimizer's first parameter."""
        groups = self._adapter.optimizer.param_groups
        return next((one.device for group in groups for one in group["params"]), torch.device("cpu"))

    def before(self) -> None:
        """Sample the weights."""
        self._before = {}
        for key, weights in self._weights().items():
            self._before[key] = tuple(weights), samples(list(weights.values()))

    def after(self, measured: Sequence[Measurement]) -> None:
        """Add the shares to the measurements of layers that were sampled before, and let the samples go."""
        before, self._before = self._before, {}
        shares: dict[int, Tensor] = {}
        for key, weights in self._weights().items() if before else ():
            positions, sampled = before.get(key, ((), None))
            if sampled is not None and positions == tuple(weights):
                shares |= zip(positions, changed_shares(sampled, samples(list(weights.values()))).unbind(), strict=True)
        for one in measured:
            # A process that sees a sharded matrix whole, but not its gradient, leaves it to those that have the shards.
            if MOMENTS.name in one.tensors and CHANGES.name not in one.tensors and shares.keys() >= {*one.positions}:
                one.tensors[CHANGES.name] = {"share": torch.stack([shares[place] for place in one.positions])}

    def _weights(self) -> _Alike:
        alike: _Alike = {}
        for position, weight in self._held():
            if weight.numel():
                key = (weight.shape, weight.stride(), weight.dtype, weight.device)
                alike.setdefault(key, {})[position] = weight
        return alike

    def _held(self) -> Iterator[tuple[int, Tensor]]:
        for group in self._adapter.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._positions:
                    for piece, weight in self._adapter.held(parameter, group):
                        yield self._positions[parameter] + piece, weight
