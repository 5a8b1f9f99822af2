"""Which process orthogonalizes which matrix, and whose rows it needs: integers that every process computes alike.

Nothing here communicates: all that the processes must agree on follows from the shapes of the parameters, their order
and the number of processes.
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

from root_dash.optim.matrices.batches import BATCH_ENTRIES, Batch, Place, Signature, batches_of_signature, signature_of
from root_dash.optim.matrices.layout import Layout

Rows: TypeAlias = tuple[int, int]
"""Rows start..stop-1 of a parameter seen as rows x cols: leading batch dimensions and rows together, then the rest."""


@dataclass(frozen=True, slots=True)
class Round:
    """Matrices of one shape that the ranks orthogonalize at the same time, each rank those that it owns."""

    batch: Batch
    owners: tuple[int, ...]
    """The rank of each of the batch's places."""
    local: bool
    """Whether every matrix lies whole on its owner's rank, so that nothing has to be sent."""

    def of(self, rank: int) -> Batch:
        """The batch of a rank's own matrices, which may be none."""
        places = tuple(place for place, owner in zip(self.batch.places, self.owners, strict=True) if owner == rank)
        return Batch(self.batch.shape, self.batch.dtype, self.batch.device, places)

    def most(self) -> int:
        """The largest number of matrices that any rank owns."""
        return max(self.owners.count(owner) for owner in set(self.owners))

    def slots(self) -> list[int]:
        """Where each matrix stands when the ranks' own, `most()` places for each rank, are put one after another."""
        taken: dict[int, int] = {}
        slots = []
        for owner in self.owners:
            slots.append(owner * self.most() + taken.get(owner, 0))
            taken[owner] = taken.get(owner, 0) + 1
        return slots


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of one matrix that one rank holds, seen from its holder or from its owner."""

    index: int
    """The matrix: a place of the round where its holder looks, of the owner's batch where its owner does."""
    place: Place
    peer: int
    """The rank at the other end."""
    of_piece: Rows
    """The rows, counted from the first of the matrix."""
    of_shard: Rows
    """The same rows, counted from the first of the holder's shard of the parameter."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.of_piece[1] - self.of_piece[0], self.place.shape[1]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A round as one rank takes part in it: what it holds of anyone's matrices, and what it needs for its own."""

    round: Round
    own: Batch
    held: tuple[Chunk, ...]
    """In order of their owners, then of the round."""
    needed: tuple[Chunk, ...]
    """In order of their holders, then of the round."""

    def splits(self, chunks: Sequence[Chunk], ranks: int) -> list[int]:
        """How many entries of the chunks go to each rank, or come from it."""
        sizes = [0] * ranks
        for chunk in chunks:
            sizes[chunk.peer] += prod(chunk.shape)
        return sizes


def cost(shape: tuple[int, int]) -> int:
    """What a Newton-Schulz step of an m x n matrix, m <= n, takes: 4 m² n + 2 m³ floating-point operations."""
    m, n = min(shape), max(shape)
    return 4 * m * m * n + 2 * m**3


def deal(costs: Sequence[int], ranks: int, homes: Sequence[int | None] | None = None) -> list[int]:
    """The rank of every matrix: the dearest first, each to the rank with the least to do, the lowest of equal ones.

    A matrix with a home is its home's; the others are dealt over what that leaves. Without homes no rank has more than
    the mean of all and one matrix.
    """
    owners = [-1 if home is None else home for home in homes or [None] * len(costs)]
    loads = [0] * ranks
    for owner, each in zip(owners, costs, strict=True):
        if owner >= 0:
            loads[owner] += each
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for index in sorted((i for i, owner in enumerate(owners) if owner < 0), key=lambda i: -costs[i]):
        load, rank = heap[0]
        owners[index] = rank
        heapq.heapreplace(heap, (load + costs[index], rank))
    return owners


def rounds_of(
    params: Sequence[Tensor], layout: Layout, ranks: int, *, one_by_one: bool = False, sharded: bool = False
) -> tuple[Round, ...]:
    """All matrices of the parameters in rounds, except those without entries, for which there is nothing to do.

    Where the parameters are `sharded`, what lies whole on one rank is that rank's. `one_by_one` has no rank hold more
    than one matrix at a time.
    """
    return _rounds(signature_of(params), layout, ranks, one_by_one, sharded)


def exchanges_of(
    params: Sequence[Tensor], layout: Layout, ranks: int, rank: int, *, one_by_one: bool = False
) -> tuple[Exchange, ...]:
    """The rounds of sharded parameters as a rank takes part in them."""
    return _exchanges(signature_of(params), layout, ranks, rank, one_by_one)


def shard_rows(shape: Sequence[int], layout: Layout, ranks: int) -> list[Rows]:
    """The rows that each rank holds of a parameter cut along its first dimension as `torch.chunk` cuts; maybe none."""
    inner = prod(shape[1 : layout.batch_ndim + 1])
    chunk = -(-shape[0] // ranks)
    return [(min(r * chunk, shape[0]) * inner, min((r + 1) * chunk, shape[0]) * inner) for r in range(ranks)]


def piece_rows(shape: Sequence[int], layout: Layout) -> list[Rows]:
    """The rows of each matrix of a parameter, in the order of `pieces`."""
    found, start = [], 0
    for rows, _ in layout.shapes(shape):
        found.append((start, start + rows))
        start += rows
    return found


def overlap(one: Rows, other: Rows) -> Rows | None:
    """The rows that are in both."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop) if start < stop else None


@lru_cache(maxsize=64)
def _rounds(signature: Signature, layout: Layout, ranks: int, one_by_one: bool, sharded: bool) -> tuple[Round, ...]:
    shapes: dict[tuple[tuple[int, int], torch.dtype, torch.device], list[Place]] = {}
    for batch in batches_of_signature(signature, layout, one_by_one):
        if min(batch.shape):
            shapes.setdefault((batch.shape, batch.dtype, batch.device), []).extend(batch.places)
    everywhere = [place for places in shapes.values() for place in places]
    homes = [_home(place, signature, layout, ranks) if sharded else None for place in everywhere]
    owners = iter(deal([cost(place.shape) for place in everywhere], ranks, homes))
    home = iter(homes)
    rounds = []
    for (shape, dtype, device), places in shapes.items():
        limit = BATCH_ENTRIES.get(device.type, BATCH_ENTRIES["cuda"])
        # The updates of a round are gathered by every rank; of sharded parameters a rank has no more than its own.
        together = shape[0] * shape[1] * (1 if sharded else ranks)
        size = 1 if one_by_one else max(1, limit // together)
        found: list[list[tuple[Place, int, bool]]] = []
        owned = [0] * ranks
        for place in places:
            owner = next(owners)
            turn = owned[owner] // size
            owned[owner] += 1
            if turn == len(found):
                found.append([])
            found[turn].append((place, owner, next(home) is not None))
        for members in found:
            batch = Batch(shape, dtype, device, tuple(place for place, _, _ in members))
            local = all(at_home for _, _, at_home in members)
            rounds.append(Round(batch, tuple(owner for _, owner, _ in members), local))
    return tuple(rounds)


@lru_cache(maxsize=64)
def _exchanges(signature: Signature, layout: Layout, ranks: int, rank: int, one_by_one: bool) -> tuple[Exchange, ...]:
    exchanges = []
    for each in _rounds(signature, layout, ranks, one_by_one, True):
        held, needed, mine = [], [], 0
        for index, (place, owner) in enumerate(zip(each.batch.places, each.owners, strict=True)):
            for holder, of_piece, of_shard in _parts(place, signature, layout, ranks):
                if holder == rank:
                    held.append(Chunk(index, place, owner, of_piece, of_shard))
                if owner == rank:
                    needed.append(Chunk(mine, place, holder, of_piece, of_shard))
            mine += owner == rank
        for chunks in (held, needed):
            chunks.sort(key=lambda chunk: chunk.peer)  # stable: the order of the round within each
        exchanges.append(Exchange(each, each.of(rank), tuple(held), tuple(needed)))
    return tuple(exchanges)


def _parts(place: Place, signature: Signature, layout: Layout, ranks: int) -> list[tuple[int, Rows, Rows]]:
    """Who holds a matrix: ranks, with the rows of the matrix and the rows of their shards that these are."""
    shape = signature[place.parameter][0]
    piece = _piece_rows(shape, layout)[place.piece]
    found = []
    for rank, shard in enumerate(_shard_rows(shape, layout, ranks)):
        both = overlap(piece, shard)
        if both is not None:
            start, stop = both
            found.append((rank, (start - piece[0], stop - piece[0]), (start - shard[0], stop - shard[0])))
    return found


def _home(place: Place, signature: Signature, layout: Layout, ranks: int) -> int | None:
    """The rank that holds all of a matrix, if one does."""
    parts = _parts(place, signature, layout, ranks)
    return parts[0][0] if len(parts) == 1 else None


_piece_rows = lru_cache(maxsize=1024)(piece_rows)
_shard_rows = lru_cache(maxsize=1024)(shard_rows)
