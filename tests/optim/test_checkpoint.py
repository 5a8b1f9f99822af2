"""Stopping and going on: whatever a run is saved with, it continues to the bit, calibrations on their way included."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from root_dash.optim import ROOT
from tests.optim.conformance import (
    CASES,
    ONLINE,
    Case,
    assert_equal_bits,
    every_case,
    plain,
    some_cases,
    state_of,
    train,
)
from tests.optim.training import copies, give_gradients, mixed, parameters

EVERY = 4  # the first set that can differ is offered at step 8, counted from 1, and adopted at 10
LAST = 12
SHAPES = [(8, 32), (8, 32), (32, 8), (12, 12)]
ONLINE_NAMES = ["adaptive", "adanewton"]


def calibrated(name: str, params: list[nn.Parameter]) -> ROOT:
    return ROOT(params, lr=0.02, ns_coefficients=name, calibrate_every=EVERY)


def changes_of(optimizer: ROOT) -> list[tuple[Any, Any]]:
    """The shapes and new sets of the changes to come."""
    seen: list[tuple[Any, Any]] = []
    optimizer.register_change_observer(lambda change: seen.append((change.shape, plain(list(change.after)))))
    return seen


# A state dict is put together from the options; the other two copy whatever there is.
@pytest.mark.parametrize(
    ("way", "name"),
    [
        *(("state_dict", name) for name in CASES),
        *product(["deepcopy", "pickle"], [*ONLINE, "scheduled quantile", "tensor lr", "heads", "skip"]),
    ],
)
def test_a_copy_goes_on_to_the_bit(way: str, name: str) -> None:
    """A fresh optimizer with the state loaded, a deep copy and a pickled one go on as the original does."""
    case = CASES[name]
    ours = case.parameters()
    optimizer = case.optimizer(ours)
    train(optimizer, ours, 0, 5)
    twin: ROOT
    if way == "state_dict":
        theirs = copies(ours)
        twin = case.optimizer(theirs, lr=0.5, weight_decay=0.5)
        saved = copy.deepcopy(optimizer.state_dict())
        twin.load_state_dict(saved)
        assert [set(group) for group in twin.state_dict()["param_groups"]] == [set(g) for g in saved["param_groups"]]
    elif way == "deepcopy":
        theirs, twin = copy.deepcopy((ours, optimizer))
    else:
        theirs, twin = pickle.loads(pickle.dumps((ours, optimizer)))  # noqa: S301
    train(optimizer, ours, 5, 11)
    train(twin, theirs, 5, 11)
    assert_equal_bits(ours, theirs)
    assert_equal_bits(list(state_of(optimizer).values()), list(state_of(twin).values()))
    assert plain(optimizer.state_dict()) == plain(twin.state_dict())


@every_case
def test_what_is_loaded_is_left_alone(case: Case) -> None:
    """The groups in a state dict do not change with later steps, of its optimizer or of one that loads it."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    train(optimizer, params, 0, 5)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert list(saved["state"]) == list(range(len(params)))
    before = copy.deepcopy(saved["param_groups"])
    theirs = copies(params)
    twin = case.optimizer(theirs)
    twin.load_state_dict(saved)
    train(twin, theirs, 5, 10)
    train(optimizer, params, 5, 10)
    assert plain(saved["param_groups"]) == plain(before)


@pytest.mark.parametrize("name", ONLINE_NAMES)
def test_a_file_in_the_middle_of_a_calibration(name: str) -> None:
    """Stopped anywhere before, in and after calibrations, a run adopts the same sets at the same steps as unbroken."""
    ours = parameters(SHAPES)
    unbroken = calibrated(name, ours)
    adopted = changes_of(unbroken)
    stops: dict[int, tuple[bytes, list[nn.Parameter], int]] = {}
    for step in range(LAST):
        if step in (1, 5, 8, 9):
            file = io.BytesIO()
            torch.save(unbroken.state_dict(), file)
            stops[step] = file.getvalue(), copies(ours), len(adopted)
        train(unbroken, ours, step, step + 1)
    assert {shape for shape, _ in adopted} == {(8, 32), (12, 12)}
    for stop, (saved, theirs, before) in stops.items():
        assert adopted[before:], "nothing is adopted after the stop: it would prove nothing"
        resumed = calibrated("muon", theirs)  # the file's choice counts
        readopted = changes_of(resumed)
        resumed.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        train(resumed, theirs, stop, LAST)
        assert readopted == adopted[before:]
        assert_equal_bits(ours, theirs)
        assert plain(unbroken.state_dict()) == plain(resumed.state_dict())


def test_a_calibration_on_its_way_is_saved() -> None:
    """Saving waits for what is being fitted, and a second save at once gives the same."""
    params = parameters(SHAPES)
    optimizer = calibrated("adaptive", params)
    train(optimizer, params, 0, 2 * EVERY)
    first = copy.deepcopy(optimizer.state_dict())
    assert plain(optimizer.state_dict()) == plain(first)
    assert first["param_groups"][0]["calibration"]
    assert first["param_groups"][0]["step"] == 2 * EVERY


def through_dcp(
    folder: Path, model: nn.Module, optimizer: ROOT, target: nn.Module, resumed: ROOT, options: StateDictOptions
) -> None:
    """Save the optimizer of a model, and load it into that of another, in one process without a process group."""
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    save({"optimizer": saved}, checkpoint_id=folder, no_dist=True)
    loaded = {"optimizer": get_optimizer_state_dict(target, resumed, options=options)}
    load(loaded, checkpoint_id=folder, no_dist=True)
    set_optimizer_state_dict(target, resumed, loaded["optimizer"], options=options)


class Model(nn.Module):
    """Parameters of any shape under names."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(params)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize(("name", "flatten"), [("adaptive", False), ("adaptive", True), ("adanewton", False)])
def test_distributed_checkpoints_go_on_to_the_bit(name: str, flatten: bool, tmp_path: Path) -> None:
    """Through `torch.distributed.checkpoint` too, with the calibrations and the counts of skipped gradients.

    Flattened, as some trainers save it, every option is kept once for each parameter.
    """
    ours = [*parameters(SHAPES), *parameters([(5,), (9, 4)])]
    theirs = copies(ours)

    def build(params: list[nn.Parameter]) -> ROOT:
        groups: list[dict[str, Any]] = [{"params": params[:4]}, {"params": params[4:], "algorithm": "adamw"}]
        return ROOT(groups, lr=0.02, ns_coefficients=name, calibrate_every=EVERY, nonfinite="skip")

    optimizer = build(ours)
    adopted = changes_of(optimizer)
    give_gradients(0, ours)
    assert ours[1].grad is not None
    ours[1].grad[0, 0] = torch.nan
    optimizer.step()
    train(optimizer, ours, 1, 9)  # the second calibration of each shape is on its way
    resumed = build(theirs)
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    through_dcp(tmp_path / "checkpoint", Model(ours), optimizer, Model(theirs), resumed, options)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            q.copy_(p)
    before, readopted = len(adopted), changes_of(resumed)
    train(optimizer, ours, 9, LAST)
    train(resumed, theirs, 9, LAST)
    assert adopted[before:]
    assert readopted == adopted[before:]
    assert_equal_bits(ours, theirs)
    assert resumed.param_groups[0]["skipped"].tolist() == [0, 1, 0, 0]
    assert plain(optimizer.state_dict()) == plain(resumed.state_dict())


@pytest.mark.parametrize("rule", ["original", "match_rms_adamw", None])
def test_a_checkpoint_of_muon_goes_on(rule: Any) -> None:
    """Momentum, learning rate and what `adjust_lr_fn` means, None too, are taken over from `torch.optim.Muon`."""
    theirs = parameters([(24, 40), (40, 24), (24, 24)])
    muon = torch.optim.Muon(theirs, lr=0.01, momentum=0.9, adjust_lr_fn=rule)
    train(muon, theirs, 0, 3)
    ours = copies(theirs)
    optimizer = ROOT(ours, lr=0.5, momentum=0.5, ns_coefficients="muon", outlier_quantile=1.0, ns_dtype=torch.bfloat16)
    saved = copy.deepcopy(muon.state_dict())
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["adjust_lr_fn"]) == (0.01, 0.9, rule or "original")
    for step in range(3, 6):
        give_gradients(step, ours, theirs)
        optimizer.step()
        muon.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=3 * 0.01 * 1.3 * 2 * 2**-8)
    later = optimizer.state_dict()["param_groups"][0]
    assert later["adjust_lr_fn"] == (rule or "original")


def test_muons_steps_go_on_with_any_coefficients() -> None:
    """A checkpoint of Muon holds its triple, which is what is stepped with after loading; what it lacks is as built."""
    theirs = parameters([(6, 10)])
    muon = torch.optim.Muon(theirs)
    train(muon, theirs, 0, 1)
    optimizer = ROOT(parameters([(6, 10)]))
    optimizer.load_state_dict(copy.deepcopy(muon.state_dict()))
    assert tuple(optimizer.param_groups[0]["ns_coefficients"]) == (3.4445, -4.775, 2.0315)
    assert optimizer.param_groups[0]["outlier_quantile"] == 0.9


OLD_KEYS = (
    "params lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn outlier_quantile "
    "normalization ns_dtype betas adamw_eps maximize algorithm"
).split()


def test_a_checkpoint_without_the_newer_options_goes_on() -> None:
    """One of the release before, with neither counts nor calibrations, takes the constructor's for what it lacks."""
    ours, groups = mixed()
    optimizer = ROOT(groups, ns_coefficients="robust")
    train(optimizer, ours, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"] = [{key: group[key] for key in OLD_KEYS} for group in saved["param_groups"]]
    theirs, their_groups = mixed()
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            q.copy_(p)
    resumed = ROOT(their_groups, nonfinite="skip", calibrate_every=7)
    resumed.load_state_dict(saved)
    for group in resumed.param_groups:
        assert (group["ns_coefficients"], group["calibrate_every"], group["nonfinite"]) == ("robust", 7, "skip")
    train(optimizer, ours, 3, 6)
    train(resumed, theirs, 3, 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("drop", ["foreach", "maximize", "capturable", "nonfinite", "batch_ndim", "quantile_method"])
@some_cases
def test_any_option_may_be_missing(case: Case, drop: str) -> None:
    """A checkpoint that lacks one option steps as the whole one does."""
    ours = case.parameters()
    optimizer = case.optimizer(ours)
    train(optimizer, ours, 0, 2)
    theirs = copies(ours)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group[drop]
    resumed = case.optimizer(theirs)
    resumed.load_state_dict(saved)
    train(optimizer, ours, 2, 4)
    train(resumed, theirs, 2, 4)
    assert_equal_bits(ours, theirs)


def test_a_count_of_steps_may_be_a_number() -> None:
    """AdamW's count, saved as a plain number as old versions of torch did, goes on as the tensor does."""
    ours = parameters([(5,), (7, 3)])
    optimizer = ROOT([{"params": ours, "algorithm": "adamw"}], lr=0.02)
    train(optimizer, ours, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    theirs = copies(ours)
    resumed = ROOT([{"params": theirs, "algorithm": "adamw"}], lr=0.02)
    resumed.load_state_dict(saved)
    train(optimizer, ours, 3, 5)
    train(resumed, theirs, 3, 5)
    assert_equal_bits(ours, theirs)


@some_cases
def test_what_does_not_fit_is_refused(case: Case) -> None:
    """Another number of groups, or of parameters in one, is an error, and leaves the optimizer as it was."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    train(optimizer, params, 0, 2)
    before = plain(optimizer.state_dict())
    more = copy.deepcopy(optimizer.state_dict())
    more["param_groups"].append(copy.deepcopy(more["param_groups"][0]))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(more)
    fewer = copy.deepcopy(optimizer.state_dict())
    fewer["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(fewer)
    assert plain(optimizer.state_dict()) == before


@some_cases
def test_names_may_differ(case: Case) -> None:
    """Checkpoints go from named parameters to unnamed ones and back; names in a checkpoint win."""
    params = case.parameters()
    named = {f"weight {i}": p for i, p in enumerate(case.parameters())}
    algorithm = "root" if case.root and not case.adamw else "adamw"
    plainly = ROOT([{"params": params, "algorithm": algorithm}])
    by_name = ROOT([{"params": named.items(), "algorithm": algorithm}])
    train(plainly, params, 0, 2)
    by_name.load_state_dict(copy.deepcopy(plainly.state_dict()))
    assert by_name.param_groups[0]["param_names"] == list(named)
    plainly.load_state_dict(copy.deepcopy(by_name.state_dict()))
    assert plainly.param_groups[0]["param_names"] == list(named)
    train(plainly, params, 2, 3)


def hooked(calls: list[str], name: str) -> Callable[..., None]:
    def called(*arguments: Any) -> None:
        assert isinstance(arguments[0], ROOT)
        calls.append(name)

    return called


@pytest.mark.parametrize("case", ONLINE.values(), ids=ONLINE)
def test_hooks_of_saving_and_loading_are_called(case: Case) -> None:
    """Before and after, in their order; what a hook returns stands for the state dict; removed ones stay silent."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    train(optimizer, params, 0, 5)
    calls: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(hooked(calls, "before saving")),
        optimizer.register_state_dict_post_hook(hooked(calls, "after saving")),
        optimizer.register_load_state_dict_pre_hook(hooked(calls, "before loading")),
        optimizer.register_load_state_dict_post_hook(hooked(calls, "after loading")),
        optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1}),
    ]
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["before saving", "after saving", "before loading", "after loading"]
    for handle in handles:
        handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(calls) == 4
    half = optimizer.register_load_state_dict_pre_hook(
        lambda _, loaded: {**loaded, "param_groups": [{**g, "lr": g["lr"] / 2} for g in loaded["param_groups"]]}
    )
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.01
    half.remove()
