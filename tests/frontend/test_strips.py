"""Which scalars are shown, in which strip."""

from __future__ import annotations

import numpy as np
import pytest

from root_dash.frontend.figures.strips import MOST, chosen, family, ordered, span, strips
from root_dash.records import History


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["acc", "loss", "lr"], ["loss", "lr"]),
        (["Loss"], ["Loss"]),
        (["aux_loss", "loss", "loss/ce", "val_loss", "z"], ["loss", "aux_loss", "val_loss", "loss/ce"]),
        (["train/ce", "val/ce"], ["train/ce", "val/ce"]),
        (["b", "accuracy"], ["accuracy"]),
        (["lr"], ["lr"]),
        ([], []),
    ],
)
def test_the_losses_and_the_learning_rate_are_shown_by_default(names: list[str], shown: list[str]) -> None:
    """Whatever their case and path; a run that logged no loss shows what it logged."""
    found = chosen(names, [])
    assert set(found) == set(shown)
    assert found[:1] == shown[:1]


def test_the_user_chooses_among_all_scalars() -> None:
    """The chosen scalars are shown in the chosen order, and a name that the run has not is left out."""
    assert chosen(["a", "b", "loss"], ["b", "gone", "a", "b"]) == ["b", "a"]
    assert chosen(["a", "loss"], ["gone"]) == ["loss"]
    many = [f"s{at}" for at in range(30)]
    assert len(chosen(many, many)) == MOST


def test_losses_come_first() -> None:
    """Losses, then accuracies, then learning rates, then the others by alphabet."""
    assert ordered(["zeta", "lr", "accuracy", "val_loss", "loss", "alpha"]) == [
        "loss", "val_loss", "accuracy", "lr", "alpha", "zeta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("val_loss", "loss"),
        ("loss/train", "loss"),
        ("trainLoss", "loss"),
        ("lr", "lr"),
        ("grad norm", "norm"),
        ("??", "??"),
    ],
)
def test_scalars_of_a_family_share_an_axis(name: str, of: str) -> None:
    """The family is the loss or the last word."""
    assert family(name) == of


def test_a_strip_holds_a_family() -> None:
    """The strips follow the order in which their first scalars are shown."""
    held = strips([History(name, np.array([0]), np.array([1.0])) for name in ("lr", "loss", "val_loss")])
    assert [[scalar.name for scalar in strip] for strip in held] == [["lr"], ["loss", "val_loss"]]


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[1.0, 5.0], [2.0], [np.nan], [-1.0, np.inf], [0.0, 0.0]])
def test_the_range_holds_every_value_that_can_be_drawn(values: list[float], log: bool) -> None:
    """The range is finite and has a width whatever the values are."""
    low, high = span([History("x", np.arange(len(values)), np.array(values))], log=log)
    assert np.isfinite([low, high]).all()
    assert low < high
    for value in values:
        if np.isfinite(value) and (value > 0 or not log):
            assert low < (np.log10(value) if log else value) < high
