"""Torch's optimizers inside of what a framework wraps around them: those whose hooks tell of every step."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence, ValuesView
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

INSIDE = ("optimizer", "optim", "optimizers")
"""The attributes under which a wrapper holds what it wraps: Accelerate, DeepSpeed and Lightning use the first, torch's
own `PostLocalSGDOptimizer` the second, torchtitan's container of several the third."""

DEEPEST = 16
"""How many wrappers may be around an optimizer; more are an object that makes a new one whenever it is asked."""

TAKEN = "an optimizer of torch, a wrapper with one as `optimizer` or several as `optimizers`, or a sequence of these"


class Wrapper(Protocol):
    """What steps as an optimizer does, and leaves the work to the optimizer inside of it.

    A learning-rate scheduler also holds its optimizer; since it zeroes no gradients, it is no wrapper.
    """

    def step(self) -> Any:
        """Step what is inside."""

    def zero_grad(self) -> Any:
        """Zero the gradients of what is inside."""


def unwrapped(given: object) -> list[Optimizer]:
    """Find the optimizers whose step hooks fire, in order, in what `watch` was given as its optimizer.

    An optimizer that was set up by torch's own constructor is taken as it is, also where it wraps another one: its
    update is the whole one. A container is not, if the optimizers that it holds train all that it trains: it was set up
    for its hooks alone, and the options and the state are in them.

    Raises:
        TypeError: it is or holds something else, holds nothing, or holds itself.
        ValueError: it holds the same optimizer twice.
    """
    found = list(_found(given, "optimizer", ()))
    if len(set(map(id, found))) < len(found):
        raise ValueError(f"optimizer must hold each optimizer once, got one twice in {_shown(given)}")
    return found


def _found(given: Any, name: str, around: tuple[object, ...]) -> Iterator[Optimizer]:
    """The same of what is called `name` in messages, `around` which there are these wrappers and sequences."""
    if len(around) > DEEPEST or any(given is one for one in around):
        raise TypeError(f"{name} must be {TAKEN}, got one that holds itself, or is wrapped more than {DEEPEST} times")
    if _calls_hooks(given) and not _is_container(given):
        yield given
        return
    inside = next((one for one in INSIDE if getattr(given, one, None) is not None), None) if _steps(given) else None
    if inside is not None:
        yield from _found(getattr(given, inside), f"{name}.{inside}", (*around, given))
        return
    if isinstance(given, Sequence | ValuesView | Iterator) and not isinstance(given, str):
        empty = True
        for index, one in enumerate(given):
            empty = False
            yield from _found(one, f"{name}[{index}]", (*around, given))
        if not empty:
            return
    reason = ", whose step calls no hooks: give the optimizer inside of it" if isinstance(given, Optimizer) else ""
    raise TypeError(f"{name} must be {TAKEN}, got {_shown(given)}{reason}")


def _calls_hooks(given: object) -> bool:
    """Whether it is an optimizer whose step calls its hooks: torch's constructor makes both.

    A wrapper may be an `Optimizer` by its class alone, and never call that constructor.
    """
    own = "_optimizer_step_pre_hooks" in getattr(given, "__dict__", ())
    return isinstance(given, Optimizer) and own and getattr(type(given).step, "hooked", False)


def _is_container(optimizer: Optimizer) -> bool:
    held = getattr(optimizer, "optimizers", None)
    if not isinstance(held, list | tuple) or not all(isinstance(one, Optimizer) for one in held):
        return False
    return _trained(optimizer) <= {parameter for one in held for parameter in _trained(one)}


def _trained(optimizer: Optimizer) -> set[Tensor]:
    return {one for group in optimizer.param_groups for one in group["params"] if one.requires_grad}


def _steps(given: object) -> bool:
    """Whether it is an object that does what an optimizer does for a training loop."""
    return not isinstance(given, type) and all(callable(getattr(given, name, None)) for name in ("step", "zero_grad"))


def _shown(given: object) -> str:
    """A value in one short line, with its type."""
    return f"{' '.join(reprlib.repr(given).split())} ({type(given).__name__})"
