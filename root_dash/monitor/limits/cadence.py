"""How often each kind is recorded."""

from __future__ import annotations

from dataclasses import dataclass, fields

from root_dash.records import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Cadence:
    """The interval of each kind in steps; 0 stands for never. The first step is always recorded.

    Sentinels are kept for every step and come with the statistics; without statistics there are none.

    Raises:
        ValueError: an interval is negative.
        TypeError: an interval is not a whole number.
    """

    statistics: int = 1
    histograms: int = 10
    quantiles: int = 10
    spectra: int = 100
    masks: int = 100
    scalars: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"cadence.{field.name} must be a whole number of steps, got {value!r}")
            if value < 0:
                raise ValueError(f"cadence.{field.name} must be 0 (never) or a number of steps, got {value}")

    def of(self, kind: Kind) -> int:
        """Return a kind's interval."""
        return int(getattr(self, kind))

    def due(self, step: int) -> frozenset[Kind]:
        """Return the kinds that are due at a step; the first step is 1."""
        kinds = (kind for kind in KINDS if kind != "scalars")
        return frozenset(kind for kind in kinds if (every := self.of(kind)) and (step == 1 or step % every == 0))
