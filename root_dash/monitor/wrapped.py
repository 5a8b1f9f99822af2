"""Find the torch optimizers inside the wrappers of frameworks: the optimizers whose hooks fire at every step."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence, ValuesView
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

INSIDE = ("optimizer", "optim", "optimizers")
"""The attributes in which a wrapper holds its optimizer. Accelerate, DeepSpeed and Lightning use the first attribute,
torch's `PostLocalSGDOptimizer` the second, and torchtitan's container of several optimizers the third."""

DEEPEST = 16
"""The most wrappers around an optimizer. An object with more makes a new wrapper at every access."""

TAKEN = "an optimizer of torch, a wrapper with one as `optimizer` or several as `optimizers`, or a sequence of these"


class Wrapper(Protocol):
    """An object that steps like an optimizer and leaves the work to the optimizer inside.

    A learning-rate scheduler also holds its optimizer. A scheduler zeroes no gradients, and so is no wrapper.
    """

    def step(self) -> Any:
        """Step the optimizer inside."""

    def zero_grad(self) -> Any:
        """Zero the gradients of the optimizer inside."""


def unwrapped(given: object) -> list[Optimizer]:
    """Return the optimizers whose step hooks fire, in order, for the `optimizer` argument of `watch`.

    An optimizer that torch's own constructor set up is returned as given, even if the optimizer wraps another: only the
    outer optimizer has the whole update. A container is opened if its inner optimizers train all parameters of the
    container: the inner optimizers then have the options and the state.

    Raises:
        TypeError: the argument is or holds something else, holds nothing, or holds itself.
        ValueError: the argument holds the same optimizer twice.
    """
    found = list(_found(given, "optimizer", ()))
    if len(set(map(id, found))) < len(found):
        raise ValueError(f"optimizer must hold each optimizer once, got one twice in {_shown(given)}")
    return found


def _found(given: Any, name: str, around: tuple[object, ...]) -> Iterator[Optimizer]:
    """Yield the optimizers of a value that messages call `name`; `around` holds the wrappers and sequences around."""
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
    """Return whether a value is an optimizer whose step calls hooks: torch's constructor prepares both.

    A wrapper can be an `Optimizer` by class alone, and never call torch's constructor.
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
    """Return whether a value has the methods of an optimizer that a training loop calls."""
    return not isinstance(given, type) and all(callable(getattr(given, name, None)) for name in ("step", "zero_grad"))


def _shown(given: object) -> str:
    """Return a value in one short line, with its type."""
    return f"{' '.join(reprlib.repr(given).split())} ({type(given).__name__})"
