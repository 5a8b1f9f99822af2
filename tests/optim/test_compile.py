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
from tests.optim.conformance import Case, state_of
from tests.optim.training import copies, give_gradients

SMALL = {
    "adanewton": Case({"ns_coefficients": "adanewton"}, [(4, 6), (6, 4)]),
    "without nesterov": Case({"nesterov": False}, [(4, 6)]),
    "kernels": Case({}, [(4, 3, 2, 1)]),
    "fused heads": Case({"split_sizes": (4, 4), "num_heads": (2, 1)}, [(8, 5)]),
    "skip": Case({"nonfinite": "skip", "ns_steps": 2}, [(4, 6)]),
    "mixed": Case({"capturable": True, "ns_steps": 2}, [(4, 6)], [(3,)]),
}


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


# Those that are long are traced below too, in steps that are compiled once.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in ("mixed", "without nesterov"))) for name in SMALL]
)
def test_compiled_steps_equal_eager_ones(name: str) -> None:
    """Weights and state are those of steps that are not compiled."""
    case = SMALL[name]
    ours, theirs = case.parameters(), case.parameters()
    first, second = case.optimizer(ours), case.optimizer(theirs)
    step = compiled(first, fullgraph=False)
    for turn in range(3):
        give_gradients(turn, ours, theirs)
        step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state_of(first), state_of(second), rtol=1e-6, atol=1e-7)


def run_a_schedule(name: str, *, fullgraph: bool) -> None:
    """Compile once, then write to the learning rate between steps; anything compiled again is an error."""
    case = SMALL[name]
    params = case.parameters()
    optimizer = case.optimizer(params, capturable=True, lr=torch.tensor(0.02))
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


@pytest.mark.parametrize("name", ["adanewton", "without nesterov", "kernels"])
def test_a_schedule_compiles_nothing_again(name: str) -> None:
    """A tensor learning rate written to in place leaves the compiled step as it is, which is one graph."""
    run_a_schedule(name, fullgraph=True)
    assert not counters["graph_break"]


def test_a_schedule_compiles_nothing_again_around_adamw() -> None:
    """Nor beside AdamW, whose fused kernel torch keeps out of its graphs."""
    run_a_schedule("mixed", fullgraph=False)
