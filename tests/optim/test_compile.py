"""Steps under `torch.compile` equal those without it, and a schedule does not have them compiled again.

Without a code generator: what is tested is that the step can be traced, which is where Python gets in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from root_dash.optim import ROOT
from tests.optim.conformance import CASES, Case, state_of
from tests.optim.training import copies, give_gradients

NAMES = ["adanewton", "kernels", "fused", "tensor lr", "skip", "mixed"]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(optimizer: ROOT, *, fullgraph: bool) -> Callable[[], Any]:
    def step() -> None:
        optimizer.step()

    run: Callable[[], Any] = torch.compile(step, backend="eager", fullgraph=fullgraph)
    return run


@pytest.mark.parametrize(
    ("name", "capturable"), [*((name, False) for name in NAMES), ("mixed", True), ("kernels", True)]
)
def test_compiled_steps_equal_eager_ones(name: str, capturable: bool) -> None:
    """Weights and state are those of steps that are not compiled."""
    case = CASES[name]
    options: dict[str, Any] = {"capturable": capturable, "calibrate_every": 0}
    ours, theirs = case.parameters(), case.parameters()
    first, second = case.optimizer(ours, **options), case.optimizer(theirs, **options)
    step = compiled(first, fullgraph=False)
    for turn in range(3):
        give_gradients(turn, ours, theirs)
        step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state_of(first), state_of(second), rtol=1e-6, atol=1e-7)


def run_a_schedule(case: Case, *, fullgraph: bool) -> None:
    """Compile once, then write to the learning rate between steps; anything compiled again is an error."""
    params = case.parameters()
    optimizer = case.optimizer(params, capturable=True)
    step = compiled(optimizer, fullgraph=fullgraph)
    for turn in range(2):  # the first makes the state
        give_gradients(turn, params)
        step()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    start = copies(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(2, 6):
            give_gradients(turn, params)
            for group in optimizer.param_groups:
                group["lr"].fill_(0.02 / turn)
            step()
    assert counters["stats"]["unique_graphs"] == graphs
    assert not any(map(torch.equal, params, start))


@pytest.mark.parametrize("name", ["adaptive", "muon", "without nesterov", "kernels", "fused"])
def test_a_schedule_compiles_nothing_again(name: str) -> None:
    """A tensor learning rate written to in place leaves the compiled step as it is, which is one graph."""
    case = CASES[name]
    run_a_schedule(Case({**case.options, "lr": torch.tensor(0.02)}, case.root), fullgraph=True)
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["capturable", "adamw capturable"])
def test_a_schedule_compiles_nothing_again_around_adamw(name: str) -> None:
    """Nor beside AdamW, whose fused kernel torch keeps out of its graphs."""
    case = CASES[name]
    run_a_schedule(Case({**case.options, "lr": torch.tensor(0.02)}, case.root, case.adamw), fullgraph=False)
