"""A CUDA device that computes nothing, to walk through what is only done on one where there is none.

Its tensors are torch's fake ones: they have a shape, a dtype and a device, and no values. What mixes devices fails as
it would on a card; what reads a value, or copies between host and device so that the host waits, fails because it
would wait. Streams and events stand for torch's own, which need the driver; an event may be waited for by any thread
but the one that trains. Copies to the host leave zeros there. Triton's kernels are not run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from root_dash.kernels import loader

_CASTS = {
    "long": torch.int64,
    "int": torch.int32,
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
}
_READS = {"item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__"}


class HostWaited(AssertionError):
    """The host would have waited for the device."""


@contextlib.contextmanager
def pretended_cuda(*, triton: bool = False) -> Iterator[None]:
    """Within it, `device="cuda"` is a device on which nothing is computed, for the thread that enters.

    With `triton` it is one that Triton's kernels are for: they are taken, and not run.
    """
    trainer = threading.current_thread()

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def record(self, *_: Any) -> None:
            pass

        def query(self) -> bool:
            return True

        def elapsed_time(self, _: Any) -> float:
            return 1.0

        def synchronize(self) -> None:
            if threading.current_thread() is trainer:
                raise HostWaited("the training thread waits for an event")

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def wait_stream(self, _: Any) -> None:
            pass

        def wait_event(self, _: Any) -> None:
            pass

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

    class Generator:
        def __init__(self, *_: Any) -> None:
            pass

        def manual_seed(self, _: int) -> None:  # what is drawn with None has the same shape
            pass

    def waits(*_: Any) -> None:
        raise HostWaited("synchronize")

    runtime: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: Stream(),
        "stream": lambda *_: contextlib.nullcontext(),
        "synchronize": waits,
        "is_current_stream_capturing": lambda: False,
    }
    from_numpy = torch.from_numpy

    def real_from_numpy(array: Any) -> Tensor:
        with unset_fake_temporarily():
            return from_numpy(array)

    with contextlib.ExitStack() as stack:
        for name, stand_in in runtime.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(loader, "runs_on", return_value=triton))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream"))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "from_numpy", real_from_numpy))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Copies())  # type: ignore[no-untyped-call]
        stack.enter_context(_Bindings())
        yield


class _Copies(TorchDispatchMode):
    """Refuses what makes the host wait: a value that is read, a copy from or to pageable memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.startswith("_fused_"):  # of which torch knows no shapes: they write in place
            return None
        devices = {tensor.device.type for tensor in args if isinstance(tensor, Tensor) and tensor.device.type != "meta"}
        if name in ("_local_scalar_dense", "item") and "cuda" in devices:
            raise HostWaited("a value is read from the device")
        if name == "_to_copy" and "device" in kwargs and kwargs["device"] is not None:
            there = torch.device(kwargs["device"]).type
            if {there} | devices == {"cpu", "cuda"} and not kwargs.get("non_blocking"):
                raise HostWaited(f"a copy from {devices} to {there} that blocks")
        if name == "copy_" and devices == {"cpu", "cuda"} and not (len(args) > 2 and args[2]):
            raise HostWaited("a copy between host and device that blocks")
        return func(*args, **kwargs)


class _Bindings(TorchFunctionMode):
    """Goes around those of torch's Python bindings that ask for the driver before they dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first: Any = args[0] if args else None
        if func is Tensor.__getitem__:
            return _view(*args)
        if func is Tensor.__setitem__:
            view, value = _view(first, args[1]), args[2]
            torch.ops.aten.copy_.default(view, value) if isinstance(value, Tensor) else view.fill_(value)
            return None
        if func is Tensor.to and isinstance(first, FakeTensor):
            return _to(first, *args[1:], **kwargs)
        if name in _CASTS and isinstance(first, Tensor):
            return _to(first, _CASTS[name])
        if name == "__invert__":
            return torch.bitwise_not(first)
        if name == "contiguous" and not args[1:]:
            return first.clone(memory_format=torch.contiguous_format)
        if name == "copy_":
            return _copy(first, *args[1:], **kwargs)
        if name in _READS and isinstance(first, Tensor) and first.is_cuda:
            raise HostWaited(f"{name}() of a tensor on the device")
        if name == "numpy":
            with unset_fake_temporarily():
                return (torch.zeros(first.shape, dtype=first.dtype) if isinstance(first, FakeTensor) else first).numpy()
        if func is torch.tensor and kwargs.pop("pin_memory", False):
            return func(*args, **kwargs)
        if kwargs.get("pin_memory"):
            with unset_fake_temporarily():
                return torch.zeros(first, dtype=kwargs["dtype"])
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            raise HostWaited("a tensor made of the host's numbers")
        return func(*args, **kwargs)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    kwargs = dict(kwargs)
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype = device or tensor.device, dtype or tensor.dtype
    if not copy and (device.type, dtype) == (tensor.device.type, tensor.dtype):
        return tensor
    moved: Tensor = torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device, non_blocking=non_blocking)
    return moved


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(target, FakeTensor):
        copied: Tensor = torch.ops.aten.copy_.default(target, source, non_blocking)
        return copied
    if isinstance(source, FakeTensor):  # to what is pinned, and was made real
        if source.is_cuda and not non_blocking:
            raise HostWaited("a copy to the host that blocks")
        return target
    return target.copy_(source)


def _view(tensor: Tensor, key: Any) -> Tensor:
    """tensor[key], of dispatched operations alone."""
    keys = list(key) if isinstance(key, tuple) else [key]
    places = [i for i, each in enumerate(keys) if each is Ellipsis]
    if places:
        used = sum(each is not None and each is not Ellipsis for each in keys)
        keys[places[0] : places[0] + 1] = [slice(None)] * (tensor.ndim - used)
    dimension = 0
    for each in keys:
        if each is None:
            tensor = tensor.unsqueeze(dimension)
        elif isinstance(each, slice):
            start, stop, step = each.indices(tensor.shape[dimension])
            tensor = torch.ops.aten.slice.Tensor(tensor, dimension, start, max(start, stop), step)
        elif isinstance(each, Tensor):
            if each.dtype == torch.bool:
                raise HostWaited("a mask decides a shape")
            tensor = torch.ops.aten.index.Tensor(tensor, [None] * dimension + [each])
            dimension += each.ndim - 1
        else:
            tensor = torch.ops.aten.select.int(tensor, dimension, int(each))
            continue
        dimension += 1
    return tensor
