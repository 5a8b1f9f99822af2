"""Copies from a CUDA device to pinned memory of the host, for which neither the device nor the training waits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_streams: dict[torch.device, torch.cuda.Stream] = {}


def to_host(tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Start copying a tensor to the host. Return the copy, and a function that waits until the copy is complete.

    On CUDA the copy runs on a stream of its own into pinned memory, and the waiting thread sleeps instead of
    spinning. A tensor on the CPU is returned unchanged.
    """
    if not tensor.is_cuda:
        return tensor, lambda: None
    host, event = start_copy(tensor)
    return host, event.synchronize


def start_copy(tensor: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Start copying a tensor on CUDA to the host. Return the copy, and the event that the copy is complete."""
    device = tensor.device
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    stream = _streams[device]
    stream.wait_stream(torch.cuda.current_stream(device))
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    event = torch.cuda.Event(blocking=True)
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
        event.record(stream)
    tensor.record_stream(stream)  # else the allocator would hand the memory out while the copy reads it
    return host, event
