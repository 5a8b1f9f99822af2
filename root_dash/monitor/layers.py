"""The layers of a run: which parameters are watched, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from root_dash.monitor.optimizers.registry import adapter_for
from root_dash.records import Layer
from root_dash.records.plain import plain

COMPILED_PREFIX = "_orig_mod."
"""What torch.compile puts before every name."""


def watched_layers(
    model: nn.Module, optimizers: Sequence[Optimizer], include: str | Sequence[str], exclude: str | Sequence[str]
) -> tuple[tuple[Layer, ...], dict[Tensor, int]]:
    """Return the layers to watch in the model's order, and each parameter's position among them.

    A layer is a parameter of the model that is real, requires a gradient and is in one of the optimizers. A shared
    parameter bears its first name. A parameter that ROOT takes apart (experts, heads, fused projections) is a layer for
    each of its matrices, `name[0]`, `name[1]`, ..., and its position is the position of `name[0]`. `include` and
    `exclude` are globs over the parameters' names, or one such glob.

    Raises:
        ValueError: no parameter is left.
    """
    include, exclude = ([globs] if isinstance(globs, str) else list(globs) for globs in (include, exclude))
    steppers = {
        parameter: (adapter, group)
        for adapter in map(adapter_for, optimizers)
        for group in adapter.optimizer.param_groups
        for parameter in group["params"]
    }
    layers: list[Layer] = []
    positions: dict[Tensor, int] = {}
    for full_name, parameter in model.named_parameters():
        name = full_name.replace(COMPILED_PREFIX, "")
        wanted = _matches(name, include) and not _matches(name, exclude)
        real = parameter.is_floating_point() and parameter.numel() > 0
        if wanted and real and parameter.requires_grad and parameter in steppers:
            adapter, group = steppers[parameter]
            algorithm, matrices = adapter.algorithm(group), adapter.matrices(parameter, group)
            positions[parameter] = len(layers)
            if len(matrices) <= 1:
                layers.append(Layer(name, tuple(parameter.shape), algorithm, len(layers)))
            for piece, shape in enumerate(matrices if len(matrices) > 1 else ()):
                layers.append(Layer(f"{name}[{piece}]", shape, algorithm, len(layers)))
    if not layers:
        raise ValueError(
            f"watch() found no layer: none of the model's parameters that require a gradient is in the optimizer and "
            f"matches include={include!r} and not exclude={exclude!r}"
        )
    return tuple(layers), positions


def describe_optimizers(optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Return what a run records of its optimizers, as plain JSON values.

    `"optimizers"` are their classes and options, `"algorithms"` the traits of each name that layers bear as their
    algorithm (`root_dash.records.algorithms.traits_of` reads them).

    Raises:
        ValueError: an optimizer's `target_map` is not a map of singular values.
    """
    described, traits = [], dict[str, Any]()
    for adapter in map(adapter_for, optimizers):
        groups = adapter.optimizer.param_groups
        options = [
            {
                key: plain(value, _option, key_text=lambda key: str(_option(key)))
                for key, value in group.items()
                if key not in adapter.hidden
            }
            for group in groups
        ]
        described.append({"class": type(adapter.optimizer).__name__, "groups": options})
        for group in groups:
            traits.setdefault(adapter.algorithm(group), asdict(adapter.traits(group)))
    return {"optimizers": described, "algorithms": traits}


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _option(value: Any) -> Any:
    # A tensor's value would cost a synchronization, and a callable has no value: their names must do.
    return value if isinstance(value, str | int | float) else getattr(value, "__name__", type(value).__name__)
