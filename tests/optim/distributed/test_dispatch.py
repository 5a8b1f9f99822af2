"""ROOT on two and on three processes, joined by gloo, against a single process that is given the same gradients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest
import torch
from torch import Tensor

from root_dash.optim import ROOT
from tests.optim.distributed import ranks, sharding
from tests.zygote import Forked

pytestmark = pytest.mark.heavy

Results = dict[int, list[dict[str, Any]]]

MATRICES = {
    *[(name, 0) for name in ("kernel.weight", "up.weight", "up_again.weight", "odd.weight")],
    *[(f"square.{layer}.weight", 0) for layer in range(3)],
    *[("qkv.weight", piece) for piece in range(3)],
    *[("experts", piece) for piece in range(2)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """Return the results of every rank, by the number of ranks. Three ranks load a checkpoint of two."""
    return {world: run(world, folder / str(world)) for world in (2, 3)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(world: int, folder: Path) -> list[dict[str, Any]]:
    """Run all scenarios on this many processes, and return the results of each.

    Raises:
        RuntimeError: a process failed or hung. The message has its output.
    """
    folder.mkdir()
    with (folder / "errors").open("w") as errors:
        processes = [
            Forked("-m", "tests.optim.distributed.ranks", str(rank), str(world), folder, stdout=DEVNULL, stderr=errors)
            for rank in range(world)
        ]
        try:
            codes = [process.wait(timeout=ranks.SECONDS) for process in processes]
        except subprocess.TimeoutExpired:
            codes = [-1]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if any(codes):
        raise RuntimeError(f"processes ended with {codes}:\n{(folder / 'errors').read_text()}")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Check that tensors are equal to the bit."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def assert_equal_but_for_adamw(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Check equality to the bit for ROOT. AdamW's fused kernel rounds the last entries of a shard differently."""
    exact = {name for name in theirs if (name.removesuffix(".momentum_buffer"), 0) in MATRICES}
    assert ours.keys() == theirs.keys()
    assert_equal({name: ours[name] for name in exact}, {name: theirs[name] for name in exact})
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("world", [2, 3])
def test_replicas_equal_a_single_process(results: Results, world: int) -> None:
    """Under DistributedDataParallel every rank has weights, state and sets of a single process, to the bit."""
    expected = results[world][0]["replicated"]
    assert expected["single changes"]
    for each in (rank["replicated"] for rank in results[world]):
        assert_equal(each["weights"], expected["single"])
        assert_equal(each["momenta"], expected["single momenta"])
        assert each["changes"] == expected["single changes"]


@pytest.mark.parametrize("world", [2, 3])
def test_one_rank_may_observe_replicas(results: Results, world: int) -> None:
    """An observer on rank 0 alone sees every matrix of every rank, as in a single process."""
    replicated = results[world][0]["replicated"]
    assert {key for key in replicated["seen"] if key in MATRICES} == MATRICES
    assert replicated["seen"].keys() == replicated["single seen"].keys()
    for key, shown in replicated["seen"].items():
        assert_equal(shown, replicated["single seen"][key])
    assert not any(rank["replicated"]["seen"] for rank in results[world][1:])


@pytest.mark.parametrize("world", [2, 3])
def test_shards_equal_a_single_process(results: Results, world: int) -> None:
    """Under FSDP2, with uneven and with empty shards, the gathered weights equal those of a single process."""
    expected = results[world][0]["sharded"]
    assert expected["single changes"]
    for each in (rank["sharded"] for rank in results[world]):
        assert_equal_but_for_adamw(each["weights"], expected["single"])
        assert_equal_but_for_adamw(each["momenta"], expected["single momenta"])
        assert each["changes"] == expected["single changes"]
    empty = results[3][2]["sharded"]["empty"]
    assert {name for name in empty if empty[name]} == {"experts", "head.weight", "head.bias"}


@pytest.mark.parametrize("world", [2, 3])
def test_the_owner_observes_a_sharded_matrix(results: Results, world: int) -> None:
    """One rank, for an expert its holder, is shown every whole matrix, without gradient and weight."""
    shown = [rank["sharded"]["seen"] for rank in results[world]]
    single = results[world][0]["sharded"]["single seen"]
    assert sorted(key for each in shown for key in each) == sorted(MATRICES)
    assert [("experts", rank) in shown[rank] for rank in range(2)] == [True, True]
    for seen in shown:
        for key, fields in seen.items():
            assert fields.keys() == {"momentum", "threshold", "base", "update"}
            assert_equal(fields, {name: single[key][name] for name in fields})


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_observes_its_shards(results: Results, world: int) -> None:
    """The shards together are the gradient, weight and momentum of a single process, and for AdamW the update."""
    shown = [rank["sharded"]["shards"] for rank in results[world]]
    single = results[world][0]["sharded"]["single seen"]
    assert {key for each in shown for key in each} == set(single)
    for key, fields in single.items():
        names = ("gradient", "weight", "momentum") + (() if key in MATRICES else ("update",))
        vector = len(fields["weight"]) == 1 and key not in MATRICES
        for name in names:
            together = torch.cat([each[key][name] for each in shown if key in each], 1 if vector else 0)
            exact = key in MATRICES or name == "gradient"
            rtol, atol = (0.0, 0.0) if exact else (1e-5, 1e-6)
            torch.testing.assert_close(together, fields[name], rtol=rtol, atol=atol)
        assert key not in MATRICES or not any("update" in each[key] for each in shown if key in each)


@pytest.mark.parametrize("world", [2, 3])
def test_every_way_to_cut_and_every_option_equal_a_single_process(results: Results, world: int) -> None:
    """Replicated, or sharded by rows, columns, both or not at all: all ranks have the bits of a single process."""
    expected = results[world][0]["choices"]
    cuts = ("replicated", "rows", "hybrid", "columns", "copies", "twice")
    assert len(expected) == len(cuts) * len(ranks.OPTIONS) + 2
    for rank in results[world]:
        for name, found in rank["choices"].items():
            assert_equal(found["weights"], expected[name]["single"])
            assert_equal(found["momenta"], expected[name]["single momenta"])


@pytest.mark.parametrize("world", [2, 3])
def test_a_nan_in_one_shard_skips_the_whole_parameter(results: Results, world: int) -> None:
    """All ranks keep weights and state of this parameter, step the other parameters, and count the skip."""
    for found in (rank["faults"]["skip"] for rank in results[world]):
        weights = [*found["before"], found["after"]]
        states = [*found["kept"], found["state"]]
        for step, skipped in ((1, 0), (2, 2)):
            for index in range(3):
                still = index == skipped
                assert torch.equal(weights[step][index], weights[step + 1][index]) == still
                same = [torch.equal(value, states[step + 1][index][key]) for key, value in states[step][index].items()]
                assert all(same) if still else not any(same)
        assert all(weight.isfinite().all() for weight in found["after"])
        assert [each.tolist() for each in found["skipped"]] == [[1, 0], [1]]


@pytest.mark.parametrize("world", [2, 3])
def test_a_nan_in_one_shard_is_refused_by_all(results: Results, world: int) -> None:
    """With "raise" every rank raises the error, with the whole shape of the parameter, and changes nothing."""
    for found in (rank["faults"]["raise"] for rank in results[world]):
        assert ["(4, 6)" in message for message in found["raised"]] == [True, False]
        assert ["(7,)" in message for message in found["raised"]] == [False, True]
        for before, after in zip(found["before"][1], found["after"], strict=True):
            assert_equal({"": before}, {"": after})


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_adopt_what_the_first_has_found(results: Results, world: int) -> None:
    """Ranks that would adopt different sets alone adopt the same sets together, and their weights stay equal."""
    found = [rank["disagreeing"] for rank in results[world]]
    assert found[0]["alone"]["changes"]
    for other in found[1:]:
        assert other["alone"]["changes"] != found[0]["alone"]["changes"]
        for name in ("replicas", "shards"):
            assert other[name]["changes"] == found[0][name]["changes"] == found[0]["alone"]["changes"]
            assert_equal(other[name]["weights"], found[0][name]["weights"])


def test_a_checkpoint_may_be_loaded_into_another_world(results: Results) -> None:
    """Three processes resume a checkpoint of two at step 3, and end as a single process that never stopped."""
    expected = results[3][0]["checkpointed"]
    later = [change for change in expected["single changes"] if change.step > 3]
    assert later
    for each in (rank["checkpointed"] for rank in results[3]):
        assert_equal_but_for_adamw(each["weights"], expected["single"])
        assert_equal_but_for_adamw(each["momenta"], expected["single momenta"])
        assert each["changes"] == later


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_checkpoint_of_shards_may_be_loaded_into_a_single_process(results: Results, folder: Path) -> None:
    """The single process resumes without a process group, and ends as one that never stopped."""
    model = sharding.model()
    optimizer = sharding.optimizer(model, nonfinite="skip")
    ranks.load(model, optimizer, folder / "checkpoint")
    for step in range(3, 6):
        sharding.give(list(model.parameters()), sharding.drawn([p.shape for p in model.parameters()], step))
        optimizer.step()
    expected = results[3][0]["checkpointed"]
    assert_equal_but_for_adamw(sharding.weights(model), expected["single"])
    assert_equal_but_for_adamw(sharding.momenta(model, optimizer), expected["single momenta"])


def test_the_process_group_is_no_state(results: Results) -> None:
    """A loaded state leaves the process group in place; copies, pickles and parameter groups have none."""
    for rank in results[2]:
        copied = rank["copied"]
        assert copied["kept"]
        assert copied["deepcopy"] is None
        assert copied["pickle"] is None
        assert "process_group" not in copied["keys"]


def test_what_is_no_process_group_is_refused() -> None:
    """The error names the argument, the rule and the value."""
    with pytest.raises(TypeError, match=r"^process_group must be a torch.distributed.ProcessGroup .*, got 3$"):
        ROOT([torch.nn.Parameter(torch.ones(2, 2))], process_group=3)  # type: ignore[arg-type]
