"""What a process measured at a step as bytes, and back: a description in JSON, then the arrays as they lie in memory.

Nothing is unpickled: what comes from another process is numbers, and a description that is checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.frames import LayerGroup

_ALIGNMENT = 16  # bytes: every dtype's items start on a multiple of their size
_LENGTH = np.dtype("<u8")
_DTYPES = ("<f8", "<f4", "<i8", "<i4", "|u1")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """What one process measured at a step; nothing, where nothing was due."""

    step: int
    groups: tuple[LayerGroup, ...] = ()


def packed(part: Part) -> Bytes:
    """The part as bytes: the length of the description, that, and the arrays in its order."""
    arrays = [array for group in part.groups for named in group.arrays.values() for array in named.values()]
    described = {"step": part.step, "groups": [_described(group) for group in part.groups]}
    text = json.dumps(described, separators=(",", ":")).encode()
    pieces = [np.array([len(text)], _LENGTH).tobytes(), text, *(array.tobytes() for array in arrays)]
    padded = (piece + bytes(-len(piece) % _ALIGNMENT) for piece in pieces)
    return np.frombuffer(bytearray().join(padded), np.uint8)


def unpacked(message: Bytes) -> Part:
    """The part that was `packed`; its arrays are views of the message.

    Raises:
        ValueError: it is none.
    """
    try:
        length = int(message[: _LENGTH.itemsize].view(_LENGTH)[0])
        text = message[_ALIGNMENT : _ALIGNMENT + length].tobytes()
        described = json.loads(text)
        rest = message[_ALIGNMENT + length + -length % _ALIGNMENT :]
        arrays = _Arrays(rest)
        groups = tuple(_group(one, arrays) for one in described["groups"])
        return Part(int(described["step"]), groups)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"message must be a packed part, got {len(message)} bytes that are none: {error}") from error


def _described(group: LayerGroup) -> dict[str, Any]:
    return {
        "positions": group.positions,
        "shape": group.shape,
        "entries": group.entries,
        "arrays": [
            [quantity, name, array.dtype.newbyteorder("<").str, array.shape]
            for quantity, named in group.arrays.items()
            for name, array in named.items()
        ],
    }


def _group(described: dict[str, Any], arrays: _Arrays) -> LayerGroup:
    rows, cols = map(int, described["shape"])
    entries = described["entries"]
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for quantity, name, dtype, shape in described["arrays"]:
        found.setdefault(str(quantity), {})[str(name)] = arrays.next(dtype, tuple(map(int, shape)))
    positions = tuple(map(int, described["positions"]))
    return LayerGroup(positions, (rows, cols), found, None if entries is None else int(entries))


class _Arrays:
    """Reads arrays off bytes, one after another."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._start = 0

    def next(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        if dtype not in _DTYPES or min(shape, default=0) < 0:
            raise ValueError(f"an array of {dtype} and shape {shape}")
        size = prod(shape) * np.dtype(dtype).itemsize
        raw = self._data[self._start : self._start + size]
        self._start += size + -size % _ALIGNMENT
        return raw.view(dtype).reshape(shape)
