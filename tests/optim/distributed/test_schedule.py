from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from root_dash.optim.distributed.schedule import (
    assign_owners,
    cost,
    overlap,
    piece_rows,
    plan_exchanges,
    plan_rounds,
    shard_rows,
)
from root_dash.optim.matrices.batches import BATCH_ENTRIES
from root_dash.optim.matrices.layout import Layout, pieces

LAYOUTS = [
    Layout(),
    Layout(batch_ndim=1),
    Layout(batch_ndim=2),
    Layout(num_heads=2),
    Layout(split_sizes=(2, 4, 2), num_heads=(2, 1, 1)),
    Layout(batch_ndim=1, split_sizes=(6, 2), num_heads=(3, 1)),
]


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Tensor], Layout]:
    """Draw parameters that fit one layout; some are equal, some tall, some without entries."""
    layout = draw(st.sampled_from(LAYOUTS))
    rows = st.just(8) if layout.split_sizes or layout.num_heads else st.integers(0, 9)
    shapes = draw(
        st.lists(
            st.tuples(*[st.integers(0, 4)] * layout.batch_ndim, rows, st.sampled_from([1, 3, 8]), st.integers(1, 2)),
            max_size=6,
        )
    )
    return [torch.empty(shape) for shape in shapes], layout


@given(
    st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9), st.lists(st.none() | st.integers(0, 8), max_size=40)
)
def test_matrices_are_assigned_evenly_by_cost(costs: list[int], ranks: int, wishes: list[int | None]) -> None:
    """Every matrix has one owner, its home if it has a home. No rank has more than the mean and one matrix."""
    owners = assign_owners(costs, ranks)
    loads = [sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert len(owners) == len(costs)
    assert sum(loads) == sum(costs)
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)
    homes = [None if wish is None or wish >= ranks else wish for wish in (wishes + [None] * len(costs))[: len(costs)]]
    for owner, home in zip(assign_owners(costs, ranks, homes), homes, strict=True):
        assert 0 <= owner < ranks
        assert home is None or owner == home


def test_equal_matrices_are_assigned_evenly() -> None:
    """Of twelve matrices on eight ranks no rank has more than two; a much dearer matrix is the only one of its rank."""
    owners = assign_owners([7] * 12, 8)
    assert sorted(owners.count(rank) for rank in range(8)) == [1] * 4 + [2] * 4
    owners = assign_owners([1, 1, 1, 10, 1, 1, 1], 2)
    assert owners.count(owners[3]) == 1


@given(models(), st.integers(1, 4), st.booleans(), st.booleans())
def test_rounds_hold_every_matrix_once(
    model: tuple[list[Tensor], Layout], ranks: int, one_by_one: bool, sharded: bool
) -> None:
    """Every matrix with entries is in one round of its shape, wide before tall, and has a slot of its own."""
    params, layout = model
    rounds = plan_rounds(params, layout, ranks, one_by_one=one_by_one, sharded=sharded)
    found = [(ref.parameter, ref.piece, ref.shape) for each in rounds for ref in each.batch.refs]
    expected = [
        (index, piece, tuple(matrix.shape))
        for index, parameter in enumerate(params)
        for piece, matrix in enumerate(pieces(parameter, layout))
        if matrix.numel()
    ]
    assert sorted(found) == sorted(expected)
    for each in rounds:
        talls = [ref.transposed for ref in each.batch.refs]
        assert talls == sorted(talls)
        assert {(min(ref.shape), max(ref.shape)) for ref in each.batch.refs} == {each.batch.shape}
        assert not one_by_one or each.most_owned() == 1
        own = [each.owned_by(rank).refs for rank in range(ranks)]
        slots = each.slots()
        assert len(set(slots)) == len(slots)
        for ref, slot in zip(each.batch.refs, slots, strict=True):
            assert own[slot // each.most_owned()][slot % each.most_owned()] == ref
    loads = [sum(cost(ref.shape) for each in rounds for ref in each.owned_by(rank).refs) for rank in range(ranks)]
    costs = [cost(shape) for _, _, shape in found]
    assert sharded or max(loads) <= sum(costs) / ranks + max(costs, default=0)


def test_rounds_bound_what_a_rank_holds() -> None:
    """If a matrix is a quarter of a batch, a round has four, or one per rank; of sharded matrices four per rank."""
    quarter = torch.empty(2**13, BATCH_ENTRIES["cuda"] // 2**15, device="meta")
    for ranks in (1, 2, 3, 8):
        rounds = plan_rounds([quarter] * 19, Layout(), ranks)
        assert max(len(each.batch.refs) for each in rounds) == max(4 // ranks * ranks, ranks)
        rounds = plan_rounds([quarter] * 19, Layout(), ranks, sharded=True)
        assert max(each.most_owned() for each in rounds) == min(4, -(-19 // ranks))


@given(st.integers(0, 20), st.integers(0, 3), st.integers(1, 7), st.sampled_from([Layout(), Layout(batch_ndim=1)]))
def test_shards_are_those_of_chunk(length: int, rows: int, ranks: int, layout: Layout) -> None:
    """The rows of each rank are the chunk that `torch.chunk` gives the rank, or none."""
    tensor = torch.arange(length * rows * 2).reshape(length, rows, 2)
    flat = tensor.reshape(length * rows, 2) if layout.batch_ndim else tensor.flatten(1)
    chunks = list(tensor.chunk(ranks)) if length else []
    chunks += [tensor[:0]] * (ranks - len(chunks))
    for (start, stop), chunk in zip(shard_rows(tensor.shape, layout, ranks), chunks, strict=True):
        assert flat[start:stop].flatten().tolist() == chunk.flatten().tolist()


@given(models())
def test_piece_rows_are_those_of_the_pieces(model: tuple[list[Tensor], Layout]) -> None:
    """The rows, taken from the parameter as rows x cols, are the pieces."""
    params, layout = model
    for parameter in params:
        values = torch.arange(parameter.numel()).reshape(parameter.shape)
        k = layout.batch_ndim
        flat = values.reshape(prod(values.shape[: k + 1]), prod(values.shape[k + 1 :]))
        rows = piece_rows(values.shape, layout)
        for (start, stop), piece in zip(rows, pieces(values, layout), strict=True):
            assert torch.equal(flat[start:stop], piece)


@given(*[st.tuples(st.integers(0, 9), st.integers(0, 9))] * 2)
def test_an_overlap_is_what_is_in_both(one: tuple[int, int], other: tuple[int, int]) -> None:
    """The overlap equals the intersection of two sets; None if it is empty."""
    both = overlap(one, other)
    assert set(range(*one)) & set(range(*other)) == (set(range(*both)) if both else set())
    assert both is None or both[0] < both[1]


@given(models(), st.integers(1, 4))
def test_an_exchange_takes_every_row_to_its_owner_and_back(model: tuple[list[Tensor], Layout], ranks: int) -> None:
    """With lists in place of the network, owners get whole matrices, and holders get their own rows back."""
    params, layout = model
    values = [torch.arange(p.numel()).reshape(p.shape) + 1000 * i for i, p in enumerate(params)]
    k = layout.batch_ndim
    flat = [v.reshape(prod(v.shape[: k + 1]), prod(v.shape[k + 1 :])) for v in values]
    bounds = [shard_rows(v.shape, layout, ranks) for v in values]
    taken = [[torch.zeros_like(v) for v in flat] for _ in range(ranks)]
    views = [plan_exchanges(params, layout, ranks, rank) for rank in range(ranks)]
    for number in range(len(views[0])):
        wires: dict[tuple[int, int], list[int]] = {}
        for rank, exchange in enumerate(view[number] for view in views):
            for shard in exchange.held:
                start = bounds[shard.ref.parameter][rank][0]
                rows = flat[shard.ref.parameter][start + shard.in_parameter[0] : start + shard.in_parameter[1]]
                assert rows.shape == shard.shape
                wires.setdefault((rank, shard.peer), []).extend(rows.flatten().tolist())
            sizes = exchange.splits(exchange.held, ranks)
            assert sizes == [len(wires.get((rank, peer), [])) for peer in range(ranks)]
            assert not exchange.round.local or sum(sizes) == sizes[rank]
        back: dict[tuple[int, int], list[int]] = {}
        for rank, exchange in enumerate(view[number] for view in views):
            whole = [torch.zeros(ref.shape, dtype=torch.int64) for ref in exchange.own.refs]
            for shard in exchange.needed:
                wire = wires[shard.peer, rank]
                entries, wires[shard.peer, rank] = wire[: prod(shard.shape)], wire[prod(shard.shape) :]
                whole[shard.index][slice(*shard.in_matrix)] = torch.tensor(entries).reshape(shard.shape)
                back.setdefault((rank, shard.peer), []).extend(entries)
            for ref, matrix in zip(exchange.own.refs, whole, strict=True):
                assert torch.equal(matrix, pieces(values[ref.parameter], layout)[ref.piece])
        assert not any(wires.values())
        for rank, exchange in enumerate(view[number] for view in views):
            for shard in exchange.held:
                wire = back[shard.peer, rank]
                entries, back[shard.peer, rank] = wire[: prod(shard.shape)], wire[prod(shard.shape) :]
                start = bounds[shard.ref.parameter][rank][0]
                target = taken[rank][shard.ref.parameter][start + shard.in_parameter[0] : start + shard.in_parameter[1]]
                target.copy_(torch.tensor(entries).reshape(shard.shape))
        assert not any(back.values())
    for index, value in enumerate(flat):
        assert torch.equal(torch.stack([taken[rank][index] for rank in range(ranks)]).sum(0), value)
        for rank in range(ranks):
            start, stop = bounds[index][rank]
            assert torch.equal(taken[rank][index][start:stop], value[start:stop])


def test_experts_stay_where_they_are() -> None:
    """Experts that lie whole on a rank are owned by this rank, and nothing is sent, for any number of experts."""
    for experts, ranks in ((6, 3), (2, 3), (7, 3)):
        params = [torch.empty(experts, 4, 8)]
        for rank in range(ranks):
            for exchange in plan_exchanges(params, Layout(batch_ndim=1), ranks, rank):
                assert exchange.round.local
                assert {shard.peer for shard in exchange.held} <= {rank}
    assert not any(e.round.local for e in plan_exchanges([torch.empty(6, 8)], Layout(), 3, 0))
