"""The list of adapters: the first that knows an optimizer observes it. A new adapter is a file and a line here.

A program that trains with an optimizer of its own may `register` an adapter before it calls `root_dash.watch`.
"""

from __future__ import annotations

from torch.optim import Optimizer

from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.monitor.optimizers.generic import GenericAdapter
from root_dash.monitor.optimizers.muon import MuonAdapter
from root_dash.monitor.optimizers.root import RootAdapter

ADAPTERS: tuple[type[Adapter], ...] = (RootAdapter, MuonAdapter, GenericAdapter)
"""The adapters of this package, the most particular first; the last takes every optimizer."""

_registered: list[type[Adapter]] = []


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Prefer an adapter to all others from now on, and return it, so that `register` can decorate its class."""
    _registered.insert(0, adapter)
    return adapter


def adapter_for(optimizer: Optimizer) -> Adapter:
    """Return a new adapter of the optimizer."""
    adapter = next(adapter for adapter in (*_registered, *ADAPTERS) if adapter.adapts(optimizer))
    return adapter(optimizer)
