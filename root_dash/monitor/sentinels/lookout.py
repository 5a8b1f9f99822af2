"""The lookout: reads every gradient of a run at every step, and tells which layer fires."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from root_dash.monitor.limits.flight import Alarm
from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.monitor.sentinels.rows import GradientReader, SentinelRow, Sentinels
from root_dash.records import Layer

REFRESH_STEPS = 64
"""Steps after which the lookout looks again which parameters there are."""


class Lookout:
    """Keeps the sentinels of a run's optimizers, and hears what has arrived on the host of earlier readings."""

    def __init__(self, names: Sequence[str]) -> None:
        self.kept = Sentinels()
        """The rows that no frame has taken along yet."""
        self._names = list(names)
        self._readers: list[GradientReader] = []
        self._alarm = Alarm()
        self._unheard: deque[SentinelRow] = deque()

    def attach(self, adapter: Adapter, positions: Mapping[Tensor, int]) -> None:
        """Read one more optimizer's gradients, of the parameters that have a position."""
        self._readers.append(GradientReader(adapter, positions))

    def extend(self, layers: Sequence[Layer], positions: Mapping[Tensor, int]) -> None:
        """Read the gradients of parameters that came later, too."""
        self._names += [layer.name for layer in layers]
        for reader in self._readers:
            reader.refresh(positions)

    def read(self, index: int, step: int, positions: Mapping[Tensor, int]) -> Iterator[str]:
        """Read the gradients of an optimizer now, and yield why a layer fires, of what has arrived by now."""
        reader = self._readers[index]
        if step % REFRESH_STEPS == 1:
            reader.refresh(positions)
        row = reader.row(step)
        if row is not None:
            self.kept.add(row)
            self._unheard.append(row)
        while self._unheard and self._unheard[0].arrived:
            row = self._unheard.popleft()
            fired = self._alarm.heard(row)
            if fired is not None:
                position, what = fired
                name = self._names[position] if position < len(self._names) else f"layer {position}"
                yield f"{name} {what} at step {row.step}"

    def detach(self) -> None:
        """Let go of the optimizers and of their parameters."""
        self._readers.clear()
        self._unheard.clear()
