"""The schedule of a step: the process that orthogonalizes each matrix, and the rows that the process needs.

Every process computes the same schedule, without communication, from the shapes of the parameters, their order and the
number of processes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from root_dash.optim.matrices.batches import (
    BATCH_ENTRIES,
    MatrixBatch,
    MatrixRef,
    Signature,
    batches_from_signature,
    signature,
)
from root_dash.optim.matrices.layout import Layout

RowRange: TypeAlias = tuple[int, int]
"""Rows start..stop-1 of a matrix, or of a parameter seen as rows x cols (leading batch dimensions and rows merged)."""


@dataclass(frozen=True, slots=True)
class Round:
    """Matrices of equal shape, orthogonalized at the same time. Each rank orthogonalizes its own matrices."""

    batch: MatrixBatch
    owners: tuple[int, ...]
    """The owner of each matrix of the batch."""
    local: bool
    """Whether every matrix lies whole on its owner's rank, so that no message is needed."""

    def owned_by(self, rank: int) -> MatrixBatch:
        """Return the batch of a rank's own matrices, which may be empty."""
        refs = tuple(ref for ref, owner in zip(self.batch.refs, self.owners, strict=True) if owner == rank)
        return MatrixBatch(self.batch.shape, self.batch.dtype, self.batch.device, refs)

    def most_owned(self) -> int:
        """Return the largest number of matrices of any owner."""
        return max(self.owners.count(owner) for owner in set(self.owners))

    def slots(self) -> list[int]:
        """Return the place of each matrix in the gathered stack, in which every rank has `most_owned()` places."""
        taken: dict[int, int] = {}
        slots = []
        for owner in self.owners:
            slots.append(owner * self.most_owned() + taken.get(owner, 0))
            taken[owner] = taken.get(owner, 0) + 1
        return slots


@dataclass(frozen=True, slots=True)
class RowShard:
    """The rows of a matrix on a rank, as seen by the holder of the rows or by the owner of the matrix."""

    index: int
    """The matrix: for the holder its index in the round's batch, for the owner its index in the owner's batch."""
    ref: MatrixRef
    peer: int
    """The other rank: for the holder the owner, for the owner the holder."""
    in_matrix: RowRange
    """The rows, counted from the first row of the matrix."""
    in_parameter: RowRange
    """The same rows, counted from the first row of the holder's shard of the parameter."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.in_matrix[1] - self.in_matrix[0], self.ref.shape[1]


@dataclass(frozen=True, slots=True)
class RowExchange:
    """The part of a rank in a round of sharded parameters: the rows on the rank, and the rows for its own matrices."""

    round: Round
    own: MatrixBatch
    """The rank's own matrices."""
    held: tuple[RowShard, ...]
    """The rows of all matrices on this rank, sorted by owner, then in the order of the round."""
    needed: tuple[RowShard, ...]
    """All rows of the rank's own matrices, sorted by holder, then in the order of the round."""

    def splits(self, shards: Sequence[RowShard], ranks: int) -> list[int]:
        """Return the number of entries of the shards to or from each rank."""
        sizes = [0] * ranks
        for shard in shards:
            sizes[shard.peer] += prod(shard.shape)
        return sizes


def cost(shape: tuple[int, int]) -> int:
    """Return the floating-point operations of a Newton-Schulz step of an m x n matrix, m <= n: 4 m² n + 2 m³."""
    m, n = min(shape), max(shape)
    return 4 * m * m * n + 2 * m**3


def assign_owners(costs: Sequence[int], ranks: int, homes: Sequence[int | None] | None = None) -> list[int]:
    """Return the owner of each matrix: the dearest matrix first, each to the rank with the least work so far.

    A matrix with a home is owned by its home; the other matrices even out what the homes leave. If ranks have equal
    work, the lowest rank is chosen. Without homes no rank has more work than the mean of all ranks plus a matrix.
    """
    owners = [-1 if home is None else home for home in homes or [None] * len(costs)]
    loads = [0] * ranks
    for owner, matrix_cost in zip(owners, costs, strict=True):
        if owner >= 0:
            loads[owner] += matrix_cost
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for index in sorted((i for i, owner in enumerate(owners) if owner < 0), key=lambda i: -costs[i]):
        load, rank = heap[0]
        owners[index] = rank
        heapq.heapreplace(heap, (load + costs[index], rank))
    return owners


def plan_rounds(
    params: Sequence[Tensor], layout: Layout, ranks: int, *, one_by_one: bool = False, sharded: bool = False
) -> tuple[Round, ...]:
    """Return all matrices of the parameters in rounds, except the matrices without entries.

    If the parameters are `sharded`, a matrix that lies whole on one rank is owned by that rank. With `one_by_one` no
    rank has more than one matrix in a round.
    """
    return _rounds(signature(params), layout, ranks, one_by_one, sharded)


def plan_exchanges(
    params: Sequence[Tensor], layout: Layout, ranks: int, rank: int, *, one_by_one: bool = False
) -> tuple[RowExchange, ...]:
    """Return the part of a rank in every round of sharded parameters."""
    return _exchanges(signature(params), layout, ranks, rank, one_by_one)


@lru_cache(maxsize=1024)
def shard_rows(shape: torch.Size, layout: Layout, ranks: int) -> list[RowRange]:
    """Return the rows of a parameter on each rank, maybe none, if the first dimension is cut by `torch.chunk`.

    The parameter has the given shape and is seen as rows x cols.
    """
    inner = prod(shape[1 : layout.batch_ndim + 1])
    chunk = -(-shape[0] // ranks)
    return [(min(r * chunk, shape[0]) * inner, min((r + 1) * chunk, shape[0]) * inner) for r in range(ranks)]


@lru_cache(maxsize=1024)
def piece_rows(shape: torch.Size, layout: Layout) -> list[RowRange]:
    """Return the rows of each matrix of a parameter of this shape, in the order of `pieces`."""
    found, start = [], 0
    for rows, _ in layout.shapes(shape):
        found.append((start, start + rows))
        start += rows
    return found


def overlap(one: RowRange, other: RowRange) -> RowRange | None:
    """Return the common rows of both ranges, or None."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop) if start < stop else None


@lru_cache(maxsize=64)
def _rounds(signature: Signature, layout: Layout, ranks: int, one_by_one: bool, sharded: bool) -> tuple[Round, ...]:
    shapes: dict[tuple[tuple[int, int], torch.dtype, torch.device], list[MatrixRef]] = {}
    for batch in batches_from_signature(signature, layout, one_by_one):
        if min(batch.shape):
            shapes.setdefault((batch.shape, batch.dtype, batch.device), []).extend(batch.refs)
    everywhere = [ref for refs in shapes.values() for ref in refs]
    homes = [_home(ref, signature, layout, ranks) if sharded else None for ref in everywhere]
    owners = iter(assign_owners([cost(ref.shape) for ref in everywhere], ranks, homes))
    home = iter(homes)
    rounds = []
    for (shape, dtype, device), refs in shapes.items():
        limit = BATCH_ENTRIES.get(device.type, BATCH_ENTRIES["cuda"])
        # Every rank gathers all updates of a round; of sharded parameters a rank has its own matrices alone.
        together = shape[0] * shape[1] * (1 if sharded else ranks)
        size = 1 if one_by_one else max(1, limit // together)
        found: list[list[tuple[MatrixRef, int, bool]]] = []
        owned = [0] * ranks
        for ref in refs:
            owner = next(owners)
            turn = owned[owner] // size
            owned[owner] += 1
            if turn == len(found):
                found.append([])
            found[turn].append((ref, owner, next(home) is not None))
        for members in found:
            batch = MatrixBatch(shape, dtype, device, tuple(ref for ref, _, _ in members))
            local = all(at_home for _, _, at_home in members)
            rounds.append(Round(batch, tuple(owner for _, owner, _ in members), local))
    return tuple(rounds)


@lru_cache(maxsize=64)
def _exchanges(
    signature: Signature, layout: Layout, ranks: int, rank: int, one_by_one: bool
) -> tuple[RowExchange, ...]:
    exchanges = []
    for round_ in _rounds(signature, layout, ranks, one_by_one, True):
        held, needed, mine = [], [], 0
        for index, (ref, owner) in enumerate(zip(round_.batch.refs, round_.owners, strict=True)):
            for holder, in_matrix, in_parameter in _holders(ref, signature, layout, ranks):
                if holder == rank:
                    held.append(RowShard(index, ref, owner, in_matrix, in_parameter))
                if owner == rank:
                    needed.append(RowShard(mine, ref, holder, in_matrix, in_parameter))
            mine += owner == rank
        for shards in (held, needed):
            shards.sort(key=lambda shard: shard.peer)  # stable: equal peers stay in the order of the round
        exchanges.append(RowExchange(round_, round_.owned_by(rank), tuple(held), tuple(needed)))
    return tuple(exchanges)


def _holders(ref: MatrixRef, signature: Signature, layout: Layout, ranks: int) -> list[tuple[int, RowRange, RowRange]]:
    """Return each rank with rows of a matrix, and the rows in the matrix and in the rank's shard."""
    shape = signature[ref.parameter][0]
    piece = piece_rows(shape, layout)[ref.piece]
    found = []
    for rank, shard in enumerate(shard_rows(shape, layout, ranks)):
        both = overlap(piece, shard)
        if both is not None:
            start, stop = both
            found.append((rank, (start - piece[0], stop - piece[0]), (start - shard[0], stop - shard[0])))
    return found


def _home(ref: MatrixRef, signature: Signature, layout: Layout, ranks: int) -> int | None:
    """Return the rank that holds a whole matrix, or None."""
    holders = _holders(ref, signature, layout, ranks)
    return holders[0][0] if len(holders) == 1 else None
