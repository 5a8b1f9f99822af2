"""Frames: what the host makes of the measurements of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.monitor.quantities.quantity import Arrays, Columns, HostBatch, HostResult, Quantity
from root_dash.monitor.quantities.registry import QUANTITIES, leading, of_kind
from root_dash.monitor.quantities.sentinels import SENTINELS
from root_dash.monitor.skipped import SkipReporter
from root_dash.records import Event, Frame, Kind, statistic_names


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The measured arrays of L layers of one shape, on the host, by quantity and name."""

    positions: tuple[int, ...]
    shape: tuple[int, int]
    arrays: Mapping[str, Arrays]
    entries: int | None = None
    """How many entries of each layer were measured if the arrays are of shards; None if all entries were."""


@dataclass(frozen=True, slots=True)
class Assembler:
    """Builds frames in order, and keeps what quantities remember of each layer from one recording to the next."""

    quantities: Sequence[Quantity] = QUANTITIES
    memory: dict[str, dict[int, Any]] = field(default_factory=dict)
    """What each quantity remembers, by its name and the layer's position: the last mask, for the overlap with it."""
    skips: SkipReporter = field(default_factory=SkipReporter)

    def frame(
        self,
        groups: Sequence[LayerGroup],
        *,
        seq: int,
        step: int,
        time: float,
        scalars: Mapping[str, float],
        events: tuple[Event, ...] = (),
        lost: int,
        cost: float,
    ) -> Frame:
        """Return the frame of one step."""
        layers, statistics = self._statistics(groups, step)
        return Frame(
            seq=seq,
            step=step,
            time=time,
            layers=layers,
            statistics=statistics,
            histograms={position: record for position, record, _ in self._records(groups, "histograms", step)},
            quantiles={position: record for position, record, _ in self._records(groups, "quantiles", step)},
            spectra={position: (record, values) for position, record, values in self._records(groups, "spectra", step)},
            masks={position: (record, values) for position, record, values in self._records(groups, "masks", step)},
            scalars={**_totals(statistics), **scalars},
            events=events,
            lost=lost,
            cost=cost,
        )

    def _statistics(self, groups: Sequence[LayerGroup], step: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the layers with statistics, ascending, and their rows; NaN stands for what was not measured."""
        first = leading(self.quantities, "statistics")
        leaders = {SENTINELS.name} if first is None else {SENTINELS.name, first.name}
        measured = [group for group in groups if leaders & group.arrays.keys()]
        names = statistic_names("statistics")
        layers = np.unique([position for group in measured for position in group.positions]).astype(np.int64)
        statistics = np.full((len(layers), len(names)), np.nan, np.float32)
        for group in measured:
            columns, _ = self._on_host(group, "statistics", step)
            rows = np.searchsorted(layers, group.positions)
            # Of a layer that two optimizers step in turn the last measurement counts, with what it lacks. Sentinels,
            # which come in groups of their own, stand beside what was measured.
            apart = SENTINELS.name in group.arrays
            for column, name in enumerate(names):
                if apart == (name in SENTINELS.statistics):
                    statistics[rows, column] = columns.get(name, np.nan)
        return layers, statistics

    def _records(self, groups: Sequence[LayerGroup], kind: Kind, step: int) -> list[tuple[int, Any, dict[str, float]]]:
        """Return position, record and statistics of each layer that has a record of a kind."""
        found = []
        for group in groups:
            columns, records = self._on_host(group, kind, step)
            for row, (position, record) in enumerate(zip(group.positions, records, strict=bool(records))):
                if record is not None:
                    found.append((position, record, {name: float(values[row]) for name, values in columns.items()}))
        return found

    def _on_host(self, group: LayerGroup, kind: Kind, step: int) -> tuple[Columns, Sequence[object]]:
        """Return the statistics and the records that all quantities of a kind make of a group."""
        columns: Columns = {}
        records: Sequence[object] = ()
        for quantity in of_kind(self.quantities, kind):
            if quantity.name in group.arrays:
                memory = self.memory.setdefault(quantity.name, {})
                made = quantity.on_host(
                    HostBatch(group.arrays[quantity.name], group.positions, group.shape, step, memory)
                )
                columns |= _checked(quantity, made)
                records = made.records or records
        return columns, records


def _totals(statistics: NDArray[np.float32]) -> dict[str, float]:
    """Return the norm of all gradients as `grad_norm/all`; NaN or infinite if an entry of a gradient is."""
    if not len(statistics):
        return {}
    names = statistic_names("statistics")
    norms, nan, inf = (
        statistics[:, names.index(name)].astype(np.float64) for name in ("grad_norm", "grad_nan", "grad_inf")
    )
    broken = np.nan if (nan > 0).any() else np.inf if (inf > 0).any() else None
    return {"grad_norm/all": float(np.linalg.norm(norms)) if broken is None else broken}


def _checked(quantity: Quantity, made: HostResult) -> Columns:
    """Return the statistics; raise ValueError if the quantity does not declare one of them."""
    if unknown := made.statistics.keys() - set(quantity.statistics):
        raise ValueError(f"statistics of the quantity {quantity.name!r} must be declared, got {sorted(unknown)}")
    return made.statistics
