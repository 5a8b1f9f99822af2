"""Steps that were skipped because of a gradient that was not finite: counted on the device, told by events.

ROOT with `nonfinite="skip"` counts each parameter that it leaves out. A fused optimizer under a `GradScaler` is told by
a flag to change nothing. (If a `GradScaler` leaves the step out by itself, the optimizer is not called and nothing is
seen.) The host reads the counts with the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from root_dash.optim.matrices.shards import local

NAMED = 5
"""How many parameters an event names."""


class SkipCounts(NamedTuple):
    """What some counts (n,) of skips belong to: by whom the steps were skipped, and the names of n parameters."""

    optimizer: int
    group: int
    reason: str
    names: tuple[str, ...]


class SkippedSteps:
    """Counts the skipped steps of one optimizer, on its device."""

    def __init__(self, optimizer: Optimizer, number: int) -> None:
        self._optimizer = optimizer
        self._number = number
        self._scaled: Tensor | None = None
        # A checkpoint may have brought counts of an earlier run.
        self._earlier = {id(group): counts.clone() for _, group, counts in self._groups()}

    @property
    def may_look(self) -> bool:
        """Whether a `GradScaler` tells the optimizer if it found NaN or Inf."""
        return hasattr(self._optimizer, "found_inf")

    def look(self) -> None:
        """Count the step that has just ended if a `GradScaler` had a fused optimizer skip it."""
        found = getattr(self._optimizer, "found_inf", None)
        if isinstance(found, Tensor) and found.numel() == 1:
            skipped = (local(found).detach() != 0).long().reshape(1)
            self._scaled = skipped if self._scaled is None else self._scaled.to(skipped.device) + skipped

    def counts(self) -> Iterator[tuple[SkipCounts, Tensor]]:
        """Yield the counts since the recording began, (n,) integers each."""
        if self._scaled is not None:
            yield SkipCounts(self._number, 0, "the GradScaler found NaN or Inf", ("the whole step",)), self._scaled
        for index, group, counts in self._groups():
            earlier = self._earlier.get(id(group))
            reason = "nonfinite='skip' found NaN or Inf in the gradient"
            known = SkipCounts(self._number, index, reason, parameter_names(group))
            if earlier is not None and (earlier.shape, earlier.device) == (counts.shape, counts.device):
                counts = counts - earlier
            yield known, counts

    def _groups(self) -> Iterator[tuple[int, Mapping[str, Any], Tensor]]:
        for index, group in enumerate(self._optimizer.param_groups):
            counts = group.get("skipped")
            if isinstance(counts, Tensor) and counts.shape == (len(group["params"]),):
                yield index, group, counts


class SkipReporter:
    """Tells of skips as they arrive on the host: at the 1st of a group of parameters, the 2nd, 4th, 8th and so on."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int, str], NDArray[np.int64]] = {}

    def texts(self, arrived: Mapping[SkipCounts, NDArray[Any]]) -> list[str]:
        """Return a text for people on each group whose number of skips has doubled since the last text."""
        texts = []
        for one, array in arrived.items():
            now = array.astype(np.int64)
            before = self._told.get(one[:3])
            if before is None or len(before) != len(now):
                before = np.zeros(len(now), np.int64)
            if int(now.max(initial=0)) >= max(1, 2 * int(before.max(initial=0))):
                self._told[one[:3]] = now
                names = [name for name, rose in zip(one.names, now > before, strict=True) if rose]
                times = int(now.max())
                texts.append(f"skipped {listed(names)}: {one.reason}; {times} time{'s' * (times > 1)} so far")
        return texts


def parameter_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name of each parameter of a group: its own if the optimizer knows it, else its shape."""
    params, names = group["params"], group.get("param_names", ())
    if len(names) == len(params):
        return tuple(map(str, names))
    return tuple(f"a parameter of shape {tuple(parameter.shape)}" for parameter in params)


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
