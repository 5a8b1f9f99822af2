"""The registry of quantities; quantities and statistics added from outside, and how many files that touches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import root_dash
from root_dash.monitor.quantities.pieces import by_pieces, piece_widths
from root_dash.monitor.quantities.quantity import (
    Arrays,
    Fields,
    HostBatch,
    HostResult,
    LayerBatch,
    MeasureLimits,
    Quantity,
    ShardPart,
    Tensors,
)
from root_dash.monitor.quantities.registry import FUSED, QUANTITIES, leading, of_kind
from root_dash.records import KINDS, statistic, statistic_names
from tests.monitor.quantities.measured import heavy_tailed
from tests.monitor.training import Model, layers_of, sgd, train, watch_within

PACKAGE = Path(root_dash.__file__).resolve().parent


@pytest.mark.parametrize("kind", KINDS)
def test_each_statistic_is_made_by_one_quantity(kind: root_dash.records.Kind) -> None:
    """What the vocabulary defines is recorded, and what a quantity makes has a definition."""
    made = [name for quantity in of_kind(QUANTITIES, kind) for name in quantity.statistics]
    assert sorted(made) == sorted(name for name in statistic_names(kind) if not statistic(name).judged)


def test_the_kinds_that_shards_are_measured_of_are_those_that_add_up() -> None:
    """The others need the whole matrix, or its order statistics."""
    assert {kind: quantity.name for kind in KINDS if (quantity := leading(QUANTITIES, kind))} == {
        "statistics": "moments",
        "histograms": "histogram",
    }


def test_columns_that_are_not_the_fields_are_refused() -> None:
    """Another name, another order, or one too many: the error says which fields there are."""
    fields, column = Fields(mean=1, zeros=0), torch.zeros(3)
    assert fields.stack(mean=column).shape == (3, 1)
    for columns in (["zeros"], ["zeros", "mean"], ["mean", "zeros", "nans"]):
        with pytest.raises(ValueError, match=r"columns must be the first of \('mean', 'zeros'\) in this order"):
            fields.stack(**dict.fromkeys(columns, column))


@pytest.mark.parametrize("name", FUSED)
def test_units_are_taken_out_with_the_power_of_each_field(name: str) -> None:
    """Sums of entries that are scaled by 2 are the sums of the entries, times 2 to the power of the field."""
    quantity = next(quantity for quantity in QUANTITIES if quantity.name == name)
    gradient, momentum = heavy_tailed(2, 400).unbind()
    found = []
    for scale in (1.0, 2.0):
        seen, moved = (tensor.view(1, 1, -1) * scale for tensor in (gradient, momentum))
        limit = torch.tensor([1e-4 * scale])
        batch = LayerBatch((0,), seen, None, moved, limit, moved.clamp(-limit, limit))
        sums = quantity.on_device(batch)["sums"].numpy()
        found.append(FUSED[name].padded(sums))
    np.testing.assert_allclose(found[1], found[0] * 2.0 ** FUSED[name].powers, rtol=1e-6)


# A quantity from outside: one file, and a name in the tuple that the recorder is given.

FIELDS = Fields(positive=0, total=1)


def _on_device(batch: LayerBatch) -> Tensors:
    if batch.gradient is None:
        return {}

    def sums(gradient: torch.Tensor) -> torch.Tensor:
        return FIELDS.stack(positive=(gradient > 0).sum(-1).float(), total=gradient.sum(-1))

    return {"sums": by_pieces(sums, batch.gradient.flatten(1))}


def _merge(parts: Sequence[ShardPart]) -> Arrays:
    return {"sums": np.concatenate([part.arrays["sums"] for part in parts], 1)}


def _on_host(layers: HostBatch) -> HostResult:
    sums = FIELDS.split(layers.arrays["sums"])
    assert piece_widths(layers.entries, layers.arrays["sums"].shape[1]).sum() == layers.entries
    return HostResult({"effective_rank": sums["positive"].sum(1) / layers.entries})


def test_a_quantity_that_is_added_is_recorded_and_read_back(tmp_path: Path) -> None:
    """Given to the recorder from outside, beside those that there are; its statistic takes the name of another."""
    others = tuple(
        Quantity(one.name, one.kind, one.on_device, lambda layers: HostResult(), one.merge)
        if one.name == "norms"
        else one
        for one in QUANTITIES
    )

    def share(layers: HostBatch) -> HostResult:
        return HostResult({"update_norm": _on_host(layers).statistics["effective_rank"]})

    signs = Quantity("signs", "statistics", _on_device, share, _merge, ("update_norm",))
    model = Model()
    optimizers = sgd(model)
    positive: list[float] = []

    def share_of_positive(*_: object) -> None:
        assert model.up.weight.grad is not None
        positive.append(model.up.weight.grad.sign().clamp(min=0).mean().item())

    optimizers[0].register_step_pre_hook(share_of_positive)
    path = tmp_path / "runs.db"
    with watch_within(model, optimizers, path, MeasureLimits(), quantities=(*others, signs)) as run:
        train(model, optimizers, 3, run.log)
    assert (run.stored, run.lost, run.failures) == (3, 0, 0)
    with root_dash.open(path) as store:
        values = store.history(layers_of(store)["up.weight"].id, "update_norm").values
        np.testing.assert_allclose(values, positive, rtol=1e-6)


def test_a_statistic_that_is_not_declared_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A name that the quantity does not list is no column that stays empty in silence."""
    wrong = Quantity("signs", "statistics", _on_device, _on_host, _merge)
    model = Model()
    optimizers = sgd(model)
    with watch_within(model, optimizers, tmp_path / "runs.db", MeasureLimits(), quantities=(*QUANTITIES, wrong)) as run:
        train(model, optimizers, 1, run.log)
    assert run.failures == 1
    assert "statistics of the quantity 'signs' must be declared, got ['effective_rank']" in capfd.readouterr().err


def edited(tree: Path, name: str, old: str, new: str) -> None:
    """Replace a text that a file of the package has once."""
    path = tree / "root_dash" / name
    text = path.read_text()
    assert text.count(old) == 1, (name, old)
    path.write_text(text.replace(old, new))


RECORD = """
import numpy as np, root_dash
from tests.monitor.training import Model, record, root, layers_of
from pathlib import Path
store = record(Path({db!r}), root, 2)
layer = layers_of(store)["up.weight"].id
ours, theirs = (store.history(layer, name).values for name in ({name!r}, "grad_zero"))
print(root_dash.__file__)
assert np.isfinite(ours).all() and len(ours) == 2, ours
assert {check}, (ours, theirs)
"""


def record_with(tree: Path, name: str, check: str, tmp_path: Path) -> None:
    """Record with the package of a tree, and check the statistic of that name against `grad_zero`."""
    code = RECORD.format(db=str(tmp_path / "runs.db"), name=name, check=check)
    environment = os.environ | {"PYTHONPATH": str(tree)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tree))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, and of what the tests train."""
    copy = tmp_path / "tree"
    shutil.copytree(PACKAGE, copy / "root_dash", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests" / "monitor").mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "training.py", copy / "tests" / "monitor")
    return copy


ENTRY = '    Statistic("grad_zero", "zero entries", "entries of G that are exactly 0"),\n'


@pytest.mark.heavy
def test_a_statistic_of_sums_that_there_are_touches_two_files(tree: Path, tmp_path: Path) -> None:
    """The vocabulary, which defines it, and the quantity, which makes it: it is recorded, stored and read."""
    edited(tree, "vocabulary.py", ENTRY, ENTRY + '    Statistic("grad_zero_share", "zero share", "share of zeros"),\n')
    file = "monitor/quantities/moments.py"
    edited(
        tree, file, '"grad_nan", "grad_inf", "grad_zero")', '"grad_nan", "grad_inf", "grad_zero", "grad_zero_share")'
    )
    made = '            "grad_zero": sums["zeros"].sum(-1),\n'
    edited(tree, file, made, made + '            "grad_zero_share": sums["zeros"].sum(-1) / layers.entries,\n')
    record_with(tree, "grad_zero_share", "np.allclose(ours, theirs / 960, rtol=1e-6)", tmp_path)


@pytest.mark.heavy
def test_a_statistic_with_a_new_sum_touches_three_files(tree: Path, tmp_path: Path) -> None:
    """The vocabulary, the quantity and the Triton kernel, which else refuses the fields; a CPU records it."""
    entry = '    Statistic("grad_negative", "negative entries", "entries of G below 0"),\n'
    edited(tree, "vocabulary.py", ENTRY, ENTRY + entry)
    file = "monitor/quantities/moments.py"
    edited(tree, file, "second=2, third=3", "negative=0, second=2, third=3")
    edited(tree, file, '"grad_inf", "grad_zero")', '"grad_inf", "grad_zero", "grad_negative")')
    edited(tree, file, "        mean=mean,\n", "        mean=mean,\n        negative=(gradient < 0).sum(-1).float(),\n")
    double = "        mean=mean.double(),\n"
    edited(tree, file, double, double + "        negative=(gradient < 0).sum(-1).double(),\n")
    made = '            "grad_zero": sums["zeros"].sum(-1),\n'
    edited(tree, file, made, made + '            "grad_negative": sums["negative"].sum(-1),\n')
    record_with(tree, "grad_negative", "(0 < ours).all() and (ours < 960).all()", tmp_path)
    check = "from root_dash.kernels import moments as m; from root_dash.monitor.quantities.registry import FUSED; "
    check += "m.columns({name: fields.names for name, fields in FUSED.items()})"
    command = [sys.executable, "-c", check]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    refused = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert "fields must be those that the kernel of kernels/moments.py stores" in refused.stderr
    assert "moments.negative" in refused.stderr
    parameter = "    AT_MOMENTS_MEAN: tl.constexpr,\n"
    edited(tree, "kernels/moments.py", parameter, parameter + parameter.replace("MEAN", "NEGATIVE"))
    subprocess.run(command, cwd=tree, env=environment, check=True)
