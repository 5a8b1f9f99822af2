"""The limits of a store: waiting times, and the division of the pyramid. The tests use small limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PyramidShape:
    """The shape of the pyramid. The shape is not stored: every process must open a database with the same shape."""

    tile: int = 64
    """Intervals in a bucket of the levels 0 and 1. An interval is the number of steps between two recordings."""
    factor: int = 8
    """Number of buckets that a bucket of the next level joins, from level 1 on."""
    levels: int = 4
    """The highest level. Its buckets hold 32,768 intervals."""
    block: int = 256
    """Layers whose values share a BLOB."""
    fine_buckets: int = 512
    """Buckets of level 0 up to which a thinned history is read from level 0. Beyond, level 1 is as good and quicker."""
    buckets_per_point: int = 4
    """Largest number of buckets per point of a view. A view then has at least half of its points."""

    def width(self, level: int, interval: int) -> int:
        """Return the number of steps that a bucket of a level covers."""
        return int(self.tile * interval * self.factor ** max(level - 1, 0))

    def blocks(self, layers: int) -> list[slice]:
        """Return the slots of each block of a run's layers."""
        return [slice(start, min(start + self.block, layers)) for start in range(0, layers, self.block)]


@dataclass(frozen=True, slots=True)
class Limits:
    """Waiting times and sizes of a store."""

    lock_seconds: float = 5.0
    """How long a transaction (SQLite) or a statement (PostgreSQL) waits for the lock of another process."""
    connect_seconds: int = 5
    """How long a PostgreSQL server may be silent before it counts as gone."""
    quiet_seconds: float = 1.0
    """A follower of a run asks again after this time without a notification, because a broken connection loses some."""
    log_bytes: int = 256 * 2**20
    """Bytes of write-ahead log beyond which some reader must be holding the log open."""
    state_frames: int = 256
    """Frames after which the state of a run's diagnosis is stored again. The state is some times as large as a frame. A
    process that takes a run over judges at most that many frames again."""
    judged_again: int = 2048
    """Frames that are judged again at most, if a run was recorded without diagnosis. They are judged in the transaction
    of the next frame, for which others wait."""
    pyramid: PyramidShape = PyramidShape()
