"""Layers that a run did not have at its start: unfrozen since, or given to an optimizer later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer

from root_dash.records import Layer

Find = Callable[[], tuple[tuple[Layer, ...], dict[Tensor, int]]]
"""Returns the layers that would be watched now, and each parameter's position: see `layers.watched_layers`."""


class NewLayerFinder:
    """Looks for new layers whenever the optimizers train other parameters than before."""

    def __init__(self, optimizers: Sequence[Optimizer], layers: Sequence[Layer], find: Find) -> None:
        self._optimizers = optimizers
        self._known = {layer.name: layer for layer in layers}
        self._find = find
        self._trained = self._flags()

    def find(self, positions: Mapping[Tensor, int]) -> tuple[tuple[Layer, ...], dict[Tensor, int]]:
        """Return the layers and the positions of the parameters that are not in `positions`; on most steps none.

        New layers come after the known layers. A parameter that has taken the name and shape of a known layer is that
        layer from now on; if its shape differs, it is a new layer `name~2`.
        """
        trained = self._flags()
        if trained == self._trained:
            return (), {}
        self._trained = trained
        try:
            layers, found = self._find()
        except ValueError:  # all parameters are frozen
            return (), {}
        starts = [*sorted(found.values()), len(layers)]
        new: list[Layer] = []
        places: dict[Tensor, int] = {}
        for parameter, start in found.items():
            if parameter in positions:
                continue
            own = layers[start : starts[starts.index(start) + 1]]
            known = [self._known.get(layer.name) for layer in own]
            if all(old is not None and old.shape == layer.shape for old, layer in zip(known, own, strict=True)):
                places[parameter] = self._known[own[0].name].position
                continue
            places[parameter] = len(self._known)
            for layer in own:
                added = replace(layer, name=self._unused(layer.name), position=len(self._known))
                self._known[added.name] = added
                new.append(added)
        return tuple(new), places

    def _flags(self) -> list[tuple[int, bool]]:
        """Return the parameters, by id, and whether each is trained."""
        return [
            (id(parameter), parameter.requires_grad)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]

    def _unused(self, name: str) -> str:
        number, unused = 1, name
        while unused in self._known:
            number += 1
            unused = f"{name}~{number}"
        return unused


def describe_new_layers(layers: Sequence[Layer]) -> str:
    """Return a sentence for people on new layers."""
    names = ", ".join(layer.name for layer in layers[:3])
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return f"{names}{more}: from this step on, unfrozen or new in an optimizer"
