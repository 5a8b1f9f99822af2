"""Values as plain JSON: users' configs, options of optimizers, records over HTTP, and exported rows."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_DEPTH = 20


def described(value: Any) -> Any:
    """Return a value of any type as a number or a text. A value that JSON lacks becomes its `repr`."""
    if isinstance(value, int | np.integer):
        return int(value) if abs(int(value)) < 2**63 else hex(value)  # Python refuses to print very long integers
    if isinstance(value, float | np.floating):
        return float(value)
    try:
        return repr(value)
    except Exception:  # the code of somebody else: a config that cannot show itself must not stop a training run
        return f"<{type(value).__name__}>"


def key_text(key: Any) -> str:
    """Return a mapping's key as a text, whatever its type."""
    try:
        return str(key)
    except Exception:  # the code of somebody else, and integers that Python refuses to print
        return f"<{type(key).__name__}>"


def strict(value: Any) -> Any:
    """Return a record, an array, a number or bytes as strict JSON.

    NaN is null, infinities are the strings "Infinity" and "-Infinity", arrays are lists, and bytes are base64.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _special(value)
    if isinstance(value, np.ndarray):
        return _numbers(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), strict) for field in dataclasses.fields(value)}
    return value


def plain(
    value: Any,
    leaf: Callable[[Any], Any] = described,
    depth: int = _DEPTH,
    key_text: Callable[[Any], str] = key_text,
) -> Any:
    """Return a value with its mappings as dicts with text keys, its sequences and sets as lists, down to a depth.

    Args:
        value: any value.
        leaf: makes JSON of everything that is not None, a bool, a text or a container.
        depth: the levels of containers that are followed. `leaf` gets what is nested deeper.
        key_text: makes a text of each key of a mapping.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if depth and isinstance(value, Mapping):
        return {key_text(key): plain(item, leaf, depth - 1, key_text) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, leaf, depth - 1, key_text) for item in value]
    return leaf(value)


def _numbers(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    found = array.astype(object)
    for place in zip(*np.nonzero(~np.isfinite(array)), strict=True):
        found[place] = _special(float(array[place]))
    return found.tolist()


def _special(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "Infinity" if value > 0 else "-Infinity"
