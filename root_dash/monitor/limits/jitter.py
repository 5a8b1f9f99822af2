"""Which steps remain of a thinned cadence: pseudo-random ones, so that nothing periodic hides between them.

The steps follow from the run's seed and the step alone, so all processes of a run choose the same. All thinned kinds
are shifted alike, so that what was asked for in one step still comes in one step. A cadence that was not thinned
keeps to the multiples of its interval.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from root_dash.monitor.limits.cadence import Cadence
from root_dash.records import KINDS, Kind

STRETCH = 64
"""Recordings of the asked cadence that are shifted by one phase; the next as many have another."""


@lru_cache(maxsize=16)
def phase(seed: int, stretch: int) -> int:
    """Return by how many recordings of the asked cadence a stretch is shifted: 1 to `STRETCH`."""
    drawn = blake2b(f"{seed}:{stretch}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") % STRETCH + 1


def remains(asked: int, kept: int, unit: int, seed: int, step: int) -> bool:
    """Return whether a kind is due at a step, given its interval as asked for and as kept.

    Args:
        asked: the interval that was asked for; 0 for never.
        kept: the interval that is kept, `asked` times a power of two.
        unit: the interval of which phases are multiples; it divides `asked`.
        seed: what the run's processes share.
        step: the step, from 1.
    """
    if kept == asked:
        return bool(asked) and step % asked == 0
    recording, rest = divmod(step, unit)
    return not rest and (recording + phase(seed, recording // STRETCH)) % (kept // unit) == 0


def due(asked: Cadence, kept: Cadence, seed: int, step: int) -> frozenset[Kind]:
    """Return the kinds that are due at a step of a run that keeps to one cadence and was asked for another.

    If a kind that was not thinned is due in a step in which statistics were asked for too, they come along.
    """
    if kept == asked:
        return asked.due(step)
    found = frozenset(
        kind
        for kind in KINDS
        if kind != "scalars" and (step == 1 or remains(asked.of(kind), kept.of(kind), _unit(asked, kind), seed, step))
        if asked.of(kind)
    )
    along = asked.statistics and step % asked.statistics == 0 and found
    return found | {"statistics"} if along else found


def scalars_due(asked: Cadence, kept: Cadence, seed: int, step: int) -> bool:
    """Return whether what is logged at a step is recorded."""
    return step <= 1 or remains(asked.scalars, kept.scalars, _unit(asked, "scalars"), seed, step)


def _unit(asked: Cadence, kind: Kind) -> int:
    own, common = asked.of(kind), asked.statistics
    return common if common and own % common == 0 else own
