"""Checks of arguments. Every message names the argument, the rule and the value.

A value of the wrong type raises `TypeError`; a value of the right type that breaks the rule raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def one_of(name: str, value: object, options: Iterable[str], otherwise: str = "") -> None:
    """Check that `value` is one of the options, which are strings.

    `otherwise` continues the rule in the message with what else the caller accepts, as in ", None, or a callable".

    Raises:
        TypeError: the value is not a string.
        ValueError: the value is another string.
    """
    allowed = tuple(options)
    if not isinstance(value, str) or value not in allowed:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(map(repr, allowed))}{otherwise}, got {value!r}")


def satisfies(name: str, value: Any, rule: str, holds: Callable[[Any], bool]) -> None:
    """Check that `holds(value)` is true; `rule` is the rule in words.

    Raises:
        TypeError: the value does not support the operations of `holds`.
        ValueError: `holds(value)` is false.
    """
    try:
        if holds(value):
            return
    except TypeError:
        raise TypeError(f"{name} must be {rule}, got {value!r}") from None
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be {rule}, got {value!r}")


def is_whole(value: object) -> bool:
    """Return whether a value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int) -> None:
    """Check that `value` is an integer of at least `least`.

    Raises:
        TypeError: the value is no integer, or a bool.
        ValueError: the value is too small.
    """
    if not is_whole(value) or value < least:
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} must be a whole number of at least {least}, got {value!r}")
