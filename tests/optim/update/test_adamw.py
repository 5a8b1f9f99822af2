from __future__ import annotations

import copy

import pytest
import torch

from root_dash.optim import ROOT
from tests.optim.training import copies, give_gradients, parameters


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
def test_it_is_torchs_adamw(maximize: bool, weight_decay: float) -> None:
    """An AdamW group equals `torch.optim.AdamW` over 50 steps, parameters of any shape and late gradients included."""
    ours = parameters([(5,), (), (7, 3), (7, 3), (2, 3, 4)])
    theirs = copies(ours)
    first = ROOT([{"params": ours, "algorithm": "adamw"}], lr=0.01, weight_decay=weight_decay, maximize=maximize)
    second = torch.optim.AdamW(
        theirs, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay, maximize=maximize
    )
    for step in range(50):
        give_gradients(step, ours, theirs)
        if step < 3:
            ours[1].grad = theirs[1].grad = None
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_its_state_is_torchs() -> None:
    """A checkpoint of `torch.optim.AdamW` continues in an AdamW group."""
    theirs = parameters([(5,), (7, 3)])
    second = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    give_gradients(0, theirs)
    second.step()
    ours = copies(theirs)
    first = ROOT([{"params": ours, "algorithm": "adamw"}], lr=0.01)
    state = copy.deepcopy(second.state_dict()["state"])
    first.load_state_dict({"state": state, "param_groups": first.state_dict()["param_groups"]})
    give_gradients(1, ours, theirs)
    first.step()
    second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
