"""The guard around what the training thread calls: timed, without autograd, and never an error in the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import torch

if TYPE_CHECKING:
    from root_dash.monitor.recorder import Recorder

Arguments = ParamSpec("Arguments")
Guarded = Callable[Concatenate["Recorder", Arguments], None]


def guarded(doing: str) -> Callable[[Guarded[Arguments]], Guarded[Arguments]]:
    """Decorate a method that the training thread calls: it is timed, runs without autograd, and never raises.

    The method does nothing if recording has ended or given up, or if the process was forked from the training process.
    """

    def decorate(method: Guarded[Arguments]) -> Guarded[Arguments]:
        def call(self: Recorder, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            if not self.active:
                return
            started = time.perf_counter()
            # As `torch.no_grad` does, whose objects take 20 us of a step whose caches are not warm.
            with_autograd = torch.is_grad_enabled()
            torch._C._set_grad_enabled(False)
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._failures.add(doing, error)
            finally:
                torch._C._set_grad_enabled(with_autograd)
                took = time.perf_counter() - started
                self._frame.cost += took
                self._pace.spent += took

        return call

    return decorate
