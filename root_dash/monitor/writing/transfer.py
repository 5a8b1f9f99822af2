"""One asynchronous copy per frame: many small device tensors become one buffer, and later NumPy arrays.

On CUDA the copy runs on a stream of its own into pinned memory. Nothing waits for the training stream, and only the
thread that calls `Arrival.wait` waits for the copy. On a CPU the buffer is in the host's memory from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.kernels.host_copy import to_host

_ALIGNMENT = 16  # bytes: every dtype's items start on a multiple of their size

_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
}


Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Slot(Generic[Name]):
    """The place of a tensor in the buffer of its device."""

    name: Name
    device: torch.device
    start: int
    shape: tuple[int, ...]
    dtype: type[np.generic]


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Name]):
    """Tensors on their way to the host."""

    slots: tuple[_Slot[Name], ...]
    buffers: Mapping[torch.device, Tensor]
    waits: tuple[Callable[[], None], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the host's memory that the buffers hold."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def wait(self) -> dict[Name, NDArray[Any]]:
        """Return the arrays by name, once the copies are complete."""
        for wait in self.waits:
            wait()
        host = {device: buffer.numpy() for device, buffer in self.buffers.items()}
        arrays: dict[Name, NDArray[Any]] = {}
        for part in self.slots:
            count = prod(part.shape)
            flat = np.frombuffer(host[part.device], part.dtype, count, part.start) if count else np.empty(0, part.dtype)
            arrays[part.name] = flat.reshape(part.shape)
        return arrays


def send(tensors: Mapping[Name, Tensor]) -> Arrival[Name]:
    """Start copying tensors to the host, in one piece per device.

    Raises:
        TypeError: a tensor's dtype is none of float64, float32, int64, int32 and uint8.
    """
    slots: list[_Slot[Name]] = []
    pieces: dict[torch.device, list[Tensor]] = {}
    sizes: dict[torch.device, int] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _NUMPY:
            raise TypeError(f"tensor {name!r} has dtype {tensor.dtype}: must be one of {sorted(map(str, _NUMPY))}")
        device, start = tensor.device, sizes.get(tensor.device, 0)
        slots.append(_Slot(name, device, start, tuple(tensor.shape), _NUMPY[tensor.dtype]))
        flat = tensor.detach().contiguous().view(-1)
        # A tensor of one element is contiguous whatever its stride, but its stride may forbid a view as bytes.
        raw = (flat.as_strided((1,), (1,)) if len(flat) == 1 else flat).view(torch.uint8)
        pieces.setdefault(device, []).append(raw)
        sizes[device] = start + raw.numel() + -raw.numel() % _ALIGNMENT
    buffers: dict[torch.device, Tensor] = {}
    waits: list[Callable[[], None]] = []
    for device, raws in pieces.items():
        if device.type == "cuda":
            buffers[device], wait = to_host(_joined(raws))
            waits.append(wait)
        elif device.type == "cpu":
            buffers[device] = _copied(raws, sizes[device])
        else:
            buffers[device] = _joined(raws).cpu()
    return Arrival(tuple(slots), buffers, tuple(waits))


def _joined(raws: Sequence[Tensor]) -> Tensor:
    """Return bytes on a device in one buffer, each piece padded to the alignment."""
    paddings = (-raw.numel() % _ALIGNMENT for raw in raws)
    return torch.cat(
        [torch.nn.functional.pad(raw, (0, pad)) if pad else raw for raw, pad in zip(raws, paddings, strict=True)]
    )


def _copied(raws: Sequence[Tensor], size: int) -> Tensor:
    """Return bytes on a CPU in one buffer of that size, copied by NumPy.

    torch's `cat` waits for all of its threads: if other processes have the cores, it takes milliseconds to copy what
    one thread copies in microseconds.
    """
    buffer, start = np.empty(size, np.uint8), 0
    for raw in raws:
        buffer[start : start + raw.numel()] = raw.numpy()
        start += raw.numel() + -raw.numel() % _ALIGNMENT
    return torch.from_numpy(buffer)
