"""Which steps remain of a thinned cadence: pseudo-random steps, so that nothing periodic hides between them.

The steps follow from the run's seed alone, so all processes of a run choose the same steps. All thinned kinds are
shifted alike: kinds that were asked for in one step still come in one step. If a cadence was not thinned, its steps are
the multiples of its interval.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def remaining(asked: int, kept: int, unit: int, seed: int, steps: range) -> Iterator[int]:
    """Yield the steps at which a kind is due, given its interval as asked for and as kept.

    Args:
        asked: the interval that was asked for; 0 for never.
        kept: the interval that is kept, `asked` times a power of two.
        unit: the interval of which phases are multiples; it divides `asked`.
        seed: what the run's processes share.
        steps: consecutive steps, from 1 or later.
    """
    if not asked:
        return
    if kept == asked:
        yield from range(steps.start + -steps.start % asked, steps.stop, asked)
        return
    every, recording, end = kept // unit, -(-steps.start // unit), -(-steps.stop // unit)
    while recording < end:  # a stretch at a time
        shift, after = phase(seed, recording // STRETCH), (recording // STRETCH + 1) * STRETCH
        for place in range(recording + -(recording + shift) % every, min(after, end), every):
            yield place * unit
        recording = after


def recorded(asked: Cadence, kept: Cadence, seed: int, steps: range) -> dict[int, frozenset[Kind]]:
    """Return the kinds that are due at steps, without the steps at which none is: "scalars" stands for the log.

    If a kind that was not thinned is due in a step in which statistics were asked for too, they come along.
    """
    found: dict[int, set[Kind]] = {}
    for kind in KINDS:
        for step in remaining(asked.of(kind), kept.of(kind), _unit(asked, kind), seed, steps):
            found.setdefault(step, set()).add(kind)
    if 1 in steps:
        found[1] = {kind for kind in KINDS if kind == "scalars" or asked.of(kind)}
    if kept != asked and asked.statistics:
        for step, kinds in found.items():
            if step % asked.statistics == 0 and kinds - {"scalars"}:
                kinds.add("statistics")
    return {step: frozenset(kinds) for step, kinds in found.items()}


def _unit(asked: Cadence, kind: Kind) -> int:
    own, common = asked.of(kind), asked.statistics
    return common if common and own % common == 0 else own
