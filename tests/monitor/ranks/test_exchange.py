"""Two and three processes, joined by gloo: what is recorded of them is what a single process records."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import numpy as np
import pytest
import torch

import root_dash
from root_dash.monitor.quantities.spectral.weights import WEIGHTS
from root_dash.records import STATISTICS, Layer, Run, statistic_names
from root_dash.store.store import Store
from tests.monitor.ranks import processes as ranks
from tests.optim.distributed.sharding import drawn, model
from tests.zygote import Forked

pytestmark = pytest.mark.heavy

Said = list[dict[str, Any]]

ADDITIVE = [
    name
    for name in statistic_names("statistics")
    if name.startswith(("grad_", "momentum_", "weight_", "update_", "scaled_", "changed_"))
]

UNIT = {"grad_skewness": 1.0, "grad_kurtosis": 3.0, "alignment": 1.0}
"""What a statistic that may be near zero is measured by; the mean by the deviation."""


def run(scenarios: str, world: int, folder: Path, codes: tuple[int, ...]) -> Said:
    """Run scenarios on so many processes; what each said, in their order, and what they wrote to stderr as "errors".

    Raises:
        RuntimeError: a process ended otherwise than with its code, or not at all; with what it wrote.
    """
    folder.mkdir()
    command = ("-m", "tests.monitor.ranks.processes", scenarios)
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stderr:
            processes.append(Forked(*command, str(rank), str(world), folder, stdout=DEVNULL, stderr=stderr))
    deadline = time.monotonic() + ranks.SECONDS
    try:
        # One that fails leaves the others waiting for it.
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() not in (None, code) for process, code in zip(processes, codes, strict=True)):
                break
            time.sleep(0.05)
    finally:
        ended = tuple(process.poll() for process in processes)
        for process in processes:
            process.kill()
            process.wait()
    errors = [log.read_text() for log in logs]
    if ended != codes:
        raise RuntimeError(f"processes ended with {ended}:\n" + "\n".join(errors))
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    return [one | {"errors": text} for one, text in zip(said, errors, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Said:
    """What two processes said, of which the second was killed at last."""
    return run("shards,replicas,refusals,exchange,closing,killed", 2, folder / "2", (0, -signal.SIGKILL))


@pytest.fixture(scope="module")
def three(folder: Path) -> Said:
    """What three did."""
    return run("shards,destroyed", 3, folder / "3", (0, 0, 0))


def only(store: Store) -> tuple[Run, dict[str, Layer]]:
    """The only run, and its layers by name."""
    (recorded,) = store.runs()
    return recorded, {layer.name: layer for layer in store.layers(recorded.id)}


@pytest.mark.usefixtures("pair", "three")
@pytest.mark.parametrize(("world", "which"), [(world, which) for world in (2, 3) for which in ranks.CHOICES[world]])
def test_shards_are_recorded_as_a_single_process_records(folder: Path, world: int, which: str) -> None:
    """Counts and histograms exactly and moments to 1e-6, at every step, of uneven and empty shards too."""
    single = root_dash.open(folder / str(world) / f"single-{which.split('-')[1]}.db")
    merged = root_dash.open(folder / str(world) / f"{which}.db")
    (recorded, layers), (_, expected) = only(merged), only(single)
    assert (recorded.frames, recorded.rank, list(layers)) == (ranks.STEPS, 0, list(expected))
    for name, layer in layers.items():
        theirs = {s: single.history(expected[name].id, s).values for s in ADDITIVE}
        for statistic in [*ADDITIVE, "alignment"]:
            history = merged.history(layer.id, statistic)
            assert history.steps.tolist() == list(range(1, ranks.STEPS + 1))
            values = single.history(expected[name].id, statistic).values
            if statistic in ("grad_zero", "grad_nan", "grad_inf", "grad_abs_max"):
                np.testing.assert_array_equal(history.values, values)
                continue
            if statistic in ("grad_skewness", "grad_kurtosis") and layer.size < 3:
                continue  # of two entries they are the rounding of zero, or of -2
            unit = theirs["grad_std"].max() if statistic == "grad_mean" else UNIT.get(statistic, 0.0)
            rtol = 1e-6
            np.testing.assert_allclose(
                history.values, values, rtol=rtol, atol=rtol * unit, err_msg=f"{name} {statistic}"
            )
        for tensor in ("gradient", "momentum"):
            for step in range(1, ranks.STEPS + 1):
                ours = merged.histogram(layer.id, step, tensor=tensor)
                whole = single.histogram(expected[name].id, step, tensor=tensor)
                np.testing.assert_array_equal(ours.counts, whole.counts, err_msg=f"{name} {tensor}")
                assert (ours.nan, ours.inf) == (whole.nan, whole.inf)


@pytest.mark.usefixtures("pair", "three")
@pytest.mark.parametrize(
    ("world", "way"), [(2, "fsdp"), (2, "hybrid"), (2, "columns"), (2, "alone"), (3, "fsdp"), (3, "alone")]
)
def test_what_the_owner_sees_is_recorded_too(folder: Path, world: int, way: str) -> None:
    """A matrix of ROOT's has every statistic, the spectrum, the mask, and the momentum's quantiles.

    The same holds for a mesh of one process, which is then all processes.
    """
    single, merged = (root_dash.open(folder / str(world) / f"{name}-root.db") for name in ("single", way))
    (_, layers), (_, expected) = only(merged), only(single)
    matrices = [name for name, layer in layers.items() if layer.algorithm == "root"]
    assert len(matrices) == 12
    for name in matrices:
        ours, theirs = layers[name].id, expected[name].id
        for statistic in STATISTICS:
            history = single.history(theirs, statistic.name)
            found = merged.history(ours, statistic.name)
            assert found.steps.tolist() == history.steps.tolist()
            if statistic.name in WEIGHTS.statistics and np.isnan(found.values).all():
                continue  # nobody has the weight whole
            np.testing.assert_allclose(found.values, history.values, rtol=1e-4, atol=1e-5, err_msg=statistic.name)
        for exact in ("threshold", "outlier_fraction", "orthogonality_error", "update_norm"):
            np.testing.assert_array_equal(merged.history(ours, exact).values, single.history(theirs, exact).values)
        np.testing.assert_array_equal(merged.spectrum(ours).momentum, single.spectrum(theirs).momentum)
        assert merged.mask(ours).packed == single.mask(theirs).packed
        quantiles = merged.quantiles(ours, tensor="momentum"), single.quantiles(theirs, tensor="momentum")
        np.testing.assert_array_equal(quantiles[0].values, quantiles[1].values)


def test_watching_shards_changes_no_bit(pair: Said, three: Said) -> None:
    """With every kind at every step the weights equal those without a recorder, and all frames are stored or sent."""
    for said in (pair, three):
        for rank, one in enumerate(said):
            for name, found in one["shards"].items():
                assert found["same"], name
                idle = rank > 0 and name.startswith("hybrid")  # it holds copies of what the first has
                assert found["counts"] == ([0, 0, 0, 0] if idle else [ranks.STEPS, ranks.STEPS, 0, 0])


def test_replicas_are_recorded_by_the_first(pair: Said, folder: Path) -> None:
    """The recorder of the other does nothing, whatever it is told."""
    assert [said["replicas"]["first"] for said in pair] == [[ranks.STEPS, ranks.STEPS, 0, 0], [0, 0, 0, 0]]
    store = root_dash.open(folder / "2" / "first.db")
    recorded, layers = only(store)
    assert (recorded.rank, recorded.frames, recorded.last_step) == (0, ranks.STEPS, ranks.STEPS)
    assert store.scalar(recorded.id, "rank").values.tolist() == [0.0] * ranks.STEPS
    assert np.isfinite(store.history(layers["module.up.weight"].id, "polar_error").values).all()


@pytest.mark.usefixtures("pair")
def test_all_ranks_may_record_runs_of_their_own(folder: Path) -> None:
    """Into one database, under one name: with equal gradients under DistributedDataParallel, with their own apart."""
    store = root_dash.open(folder / "2" / "all.db")
    for name, factor in (("ddp", 1.0), ("apart", 2.0)):
        first, second = sorted((one for one in store.runs() if one.name == name), key=lambda one: one.rank)
        assert (first.rank, second.rank, second.uid) == (0, 1, f"{first.uid}-rank1")
        assert first.frames == second.frames == ranks.STEPS
        norms = [
            np.stack([store.history(layer.id, "grad_norm").values for layer in store.layers(one.id)])
            for one in (first, second)
        ]
        np.testing.assert_allclose(norms[1], norms[0] * factor, rtol=1e-6)
        totals = [store.scalar(one.id, "grad_norm/all").values for one in (first, second)]
        weights = [store.history(store.layers(one.id)[0].id, "weight_norm").values for one in (first, second)]
        # Replicas are equal to the bit, and a process that is not shows it in both.
        assert all(np.array_equal(one, other) == (name == "ddp") for one, other in (totals, weights))
        for one in (first, second) if name == "ddp" else ():
            assert store.scalar(one.id, "rank").values.tolist() == [float(one.rank)] * ranks.STEPS
    expected = [grad.double().norm().item() for grad in drawn([p.shape for p in model().parameters()], 0)]
    np.testing.assert_allclose(norms[0][:, 0], expected, rtol=1e-6)


def test_what_cannot_be_put_together_is_refused_by_all(pair: Said) -> None:
    """Before the training starts, with the argument, the value and the rule; and no process hangs."""
    for said in pair:
        refused = said["refusals"]
        assert refused["all"].startswith("ranks must be 'first' if parameters are sharded, got 'all'")
        assert refused["unknown"] == "ranks must be 'first' or 'all', got 'some'"
        assert refused["others"].startswith("ranks must watch the same layers if parameters are sharded")


def test_a_silent_process_is_not_waited_for_until_it_is_heard_again(pair: Said) -> None:
    """A part that was lost is counted, and so is one that was waited for in vain; silence and its end are events."""
    heard = pair[0]["exchange"]
    assert {step: lost for step, (lost, _) in heard.items() if lost} == {"3": 1, "7": 1}
    assert {step: events for step, (_, events) in heard.items() if events} == {
        "7": ["process 1 was silent for 0.2 s: the layers that it has a part of are not recorded"],
        "9": ["process 1 is heard again: the layers that it has a part of are recorded"],
    }
    assert list(heard) == ["1", "2", "3", "4", "6", "7", "8", "9", "10"]


def test_who_sends_to_one_that_has_closed_goes_on(pair: Said) -> None:
    """Even in the middle of a large part: what is not taken any more is counted, and no thread stays behind."""
    first, second = (said["closing"] for said in pair)
    assert first == {"joined": 0, "threads": 0}
    assert second["lost"][0] == 0
    assert second["lost"][-1] == 1
    assert pair[1]["errors"].count("process 0 takes no more of what is measured here") == 1


def test_a_process_group_may_go_before_the_recorder(three: Said, folder: Path) -> None:
    """What was measured is stored all the same, and nothing is said about it."""
    for said in three:
        assert said["destroyed"]["counts"] == [ranks.STEPS, ranks.STEPS, 0, 0]
        assert "root-dash" not in said["errors"]
    store = root_dash.open(folder / "3" / "destroyed.db")
    recorded, layers = only(store)
    for layer in layers.values():
        assert store.history(layer.id, "grad_norm").steps.tolist() == list(range(1, ranks.STEPS + 1))
    assert recorded.ended_at is not None


def test_a_process_that_is_killed_takes_nothing_with_it(pair: Said, folder: Path) -> None:
    """The other trains on: what both measured is there, then the loss alone, and an event says since when."""
    first = pair[0]
    assert first["killed"]["counts"] == [8, 8, 1, 0]
    assert first["errors"].count("process 1 is gone: the layers that it has a part of are not recorded") == 1
    store = root_dash.open(folder / "2" / "killed.db")
    recorded, layers = only(store)
    assert (recorded.frames, recorded.lost) == (8, 1)
    assert store.scalar(recorded.id, "loss").values.tolist() == list(map(float, range(8)))
    assert [(event.kind, event.step) for event in store.events(recorded.id)] == [("ranks", 5)]
    assert store.history(layers["qkv.weight"].id, "grad_norm").steps.tolist() == [1, 2, 3, 4]


def test_without_torch_distributed_the_first_is_the_only_one() -> None:
    """No process group: nothing is asked of one, whichever ranks are to record."""
    assert not torch.distributed.is_initialized()
    from root_dash.monitor.ranks.role import role_of_this_process, text_of_first_rank

    weight = torch.nn.Parameter(torch.ones(2, 3))
    for which in ("first", "all"):
        role = role_of_this_process(which, (), {weight: 0})
        assert (role.rank, role.stores, role.link) == (0, True, None)
    assert text_of_first_rank("so") == "so"
