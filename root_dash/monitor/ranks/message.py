"""The message in which a process sends what it measured at a step: a description in JSON, then the arrays' bytes.

Nothing is unpickled: another process sends numbers, and a description that is checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.frames import LayerGroup

_ALIGNMENT = 16  # bytes: the items of every dtype start on a multiple of their size
_LENGTH = np.dtype("<u8")
_DTYPES = ("<f8", "<f4", "<i8", "<i4", "|u1")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RankMessage:
    """What one process measured at a step; without groups if nothing was due."""

    step: int
    groups: tuple[LayerGroup, ...] = ()


def encode_message(message: RankMessage) -> Bytes:
    """Return a message as bytes: the length of the description, the description, and the arrays in its order."""
    arrays = [array for group in message.groups for named in group.arrays.values() for array in named.values()]
    described = {"step": message.step, "groups": [_described(group) for group in message.groups]}
    text = json.dumps(described, separators=(",", ":")).encode()
    pieces = [np.array([len(text)], _LENGTH).tobytes(), text, *(array.tobytes() for array in arrays)]
    padded = (piece + bytes(-len(piece) % _ALIGNMENT) for piece in pieces)
    return np.frombuffer(bytearray().join(padded), np.uint8)


def decode_message(data: Bytes) -> RankMessage:
    """Return the message that `encode_message` made these bytes of; its arrays are views of the bytes.

    Raises:
        ValueError: the bytes are not such a message.
    """
    try:
        length = int(data[: _LENGTH.itemsize].view(_LENGTH)[0])
        text = data[_ALIGNMENT : _ALIGNMENT + length].tobytes()
        described = json.loads(text)
        rest = data[_ALIGNMENT + length + -length % _ALIGNMENT :]
        arrays = _Arrays(rest)
        groups = tuple(_group(one, arrays) for one in described["groups"])
        return RankMessage(int(described["step"]), groups)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"data must be an encoded RankMessage, got {len(data)} bytes that are none: {error}"
        ) from error


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
    """Reads arrays from bytes, one after another."""

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
