"""Loading of Triton kernels: where kernels can run, and how they are compiled.

No module of this folder imports Triton. The first launch of a kernel imports Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes that the kernels take."""


def available(tensor: Tensor) -> bool:
    """Return whether Triton kernels can take this tensor. The host waits for nothing, and each device is asked once.

    Kernels take bfloat16, float16 and float32 on an NVIDIA GPU of compute capability 8.0 or more, if Triton can be
    imported and finds its C compiler. Kernels have no derivative, so they take no tensor for which autograd records. If
    the environment has TRITON_INTERPRET=1, they also take tensors on the CPU, in Triton's slow interpreter.
    """
    if tensor.dtype not in DTYPES or (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    if tensor.is_cuda:
        return runs_on(tensor.device.index)
    return tensor.device.type == "cpu" and interpreted()


def runs_on(index: int) -> bool:
    """Return whether Triton can drive the CUDA device of this index."""
    return _probe(index)


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


# A compiler that traces `available` takes these answers for constants. `torch.compiler.assume_constant_result` has the
# same effect, but imports the compiler, and the compiler imports Triton.
for _answer in (runs_on, interpreted):
    vars(_answer)["_dynamo_marked_constant"] = True


@cache
def _probe(index: int) -> bool:
    """Ask the device. ROCm's devices are left out: they call themselves CUDA, but have less shared memory."""
    if torch.version.hip or torch.cuda.get_device_capability(index) < (8, 0) or not importlib.util.find_spec("triton"):
        return False
    try:
        triton = importlib.import_module("triton")
        triton.runtime.driver.active.get_current_target()  # compiles a C file, once a machine
    except Exception as error:
        warnings.warn(f"Triton does not run here, plain torch is used instead: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


class Kernel:
    """A Triton kernel that is compiled at its first launch: `kernel[grid](...)`."""

    def __init__(
        self, function: Callable[..., Any], do_not_specialize: Sequence[str] = (), helpers: Sequence[str] = ()
    ) -> None:
        self.function, self._do_not_specialize, self._helpers = function, list(do_not_specialize), helpers

    @cached_property
    def jit(self) -> Any:
        """The compiled kernel. The first access puts `tl` and the helpers into the module of the kernel."""
        triton = importlib.import_module("triton")
        module = self.function.__globals__
        module["tl"] = importlib.import_module("triton.language")
        for name in self._helpers:
            module[name] = triton.jit(module[name])
        return triton.jit(self.function, do_not_specialize=self._do_not_specialize)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.jit[grid]


def kernel(
    *, do_not_specialize: Sequence[str] = (), helpers: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Kernel]:
    """Return a decorator that makes a kernel of a function. The function uses `tl`, a global of its module.

    A new value of an integer argument in `do_not_specialize` needs no new compilation. `helpers` names the functions of
    the module that the kernel calls.
    """
    return lambda function: Kernel(function, do_not_specialize, helpers)
