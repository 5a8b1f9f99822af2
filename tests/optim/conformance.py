"""Every way in which ROOT steps a parameter, as cases for the checks that any optimizer of torch has to pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from root_dash.optim import ROOT
from tests.optim.training import give_gradients, parameters

MATRICES = [(6, 10), (10, 6), (6, 10), (8, 8), (1, 9)]
VECTORS = [(5,), (5,), (), (1,), (9, 4), (2, 3, 4)]


def falling_quantile(step: int) -> float:
    """A schedule that can be pickled."""
    return 1 - 0.02 * step


@dataclass(frozen=True)
class Case:
    """Options of an optimizer, and the shapes of its parameters: those stepped by ROOT, then those by AdamW."""

    options: dict[str, Any] = field(default_factory=dict)
    root: Sequence[tuple[int, ...]] = tuple(MATRICES)
    adamw: Sequence[tuple[int, ...]] = ()

    def parameters(self, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
        """The same parameters at each call."""
        return parameters([*self.root, *self.adamw], dtype)

    def optimizer(self, params: Sequence[Tensor], **more: Any) -> ROOT:
        """An optimizer of them, in one group per algorithm."""
        cut = len(self.root)
        groups: list[dict[str, Any]] = [
            {"params": list(params[:cut])},
            {"params": list(params[cut:]), "algorithm": "adamw"},
        ]
        options = {"lr": 0.02, **self.options, **more}
        if isinstance(options["lr"], Tensor):
            options["lr"] = options["lr"].clone()  # the cases share nothing that a test may write to
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="ns_coefficients='paper'", category=UserWarning)
            return ROOT([group for group in groups if group["params"]], **{"calibrate_every": 0, **options})


ONLINE = {
    "adaptive": Case({"calibrate_every": 2}, [(6, 10), (10, 6)]),
    "adanewton": Case({"ns_coefficients": "adanewton", "calibrate_every": 2}, [(6, 10), (10, 6)]),
}
CASES: dict[str, Case] = {
    **ONLINE,
    "uncalibrated": Case({"calibrate_every": 0}),
    "muon": Case({"ns_coefficients": "muon", "outlier_quantile": 1.0}),
    "paper": Case({"ns_coefficients": "paper"}),
    "polar_express": Case({"ns_coefficients": "polar_express"}),
    "one triple": Case({"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 3}),
    "listed": Case({"ns_coefficients": [(2.0, -1.5, 0.5), (1.875, -1.25, 0.375)], "ns_steps": 2}),
    "without nesterov": Case({"nesterov": False}),
    "maximize": Case({"maximize": True}),
    "fixed threshold": Case({"outlier_threshold": 0.01}),
    "scheduled quantile": Case({"outlier_quantile": falling_quantile}),
    "histogram": Case({"quantile_method": "histogram"}),
    "sampled": Case({"quantile_method": "sampled"}),
    "half products": Case({"ns_dtype": torch.bfloat16}),
    "skip": Case({"nonfinite": "skip"}, adamw=VECTORS),
    "raise": Case({"nonfinite": "raise"}, adamw=VECTORS),
    "tensor lr": Case({"lr": torch.tensor(0.02)}, adamw=VECTORS),
    "capturable": Case({"capturable": True, "lr": torch.tensor(0.02)}, adamw=VECTORS),
    "kernels": Case({}, [(6, 3, 2, 2), (6, 3, 2, 2), (4, 2, 3)]),
    "experts": Case({"batch_ndim": 1}, [(3, 6, 4), (3, 4, 6), (2, 4, 3, 2)]),
    "fused": Case({"split_sizes": (6, 3, 3)}, [(12, 8), (12, 4)]),
    "heads": Case({"num_heads": 2}, [(12, 8), (6, 8)]),
    "grouped heads": Case({"split_sizes": (8, 4, 4), "num_heads": (4, 2, 1), "batch_ndim": 1}, [(2, 16, 4)]),
    "mixed": Case({}, adamw=VECTORS),
    "adamw": Case({}, (), VECTORS),
    "adamw maximize": Case({"maximize": True}, (), VECTORS),
    "adamw capturable": Case({"capturable": True}, (), VECTORS),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_cases = pytest.mark.parametrize("case", [CASES["adaptive"], CASES["mixed"], CASES["adamw"]])
"""For behaviour that does not depend on how a parameter is stepped, only on there being groups of either algorithm."""


def train(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], first: int, last: int) -> None:
    """Steps first..last-1, each with its own gradients."""
    for step in range(first, last):
        give_gradients(step, params)
        optimizer.step()


def assert_equal_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Fail where a tensor differs in any bit from its counterpart; NaN equals NaN."""
    for index, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(p.nan_to_num(), q.nan_to_num()), f"tensor {index} differs by {(p - q).abs().max().item()}"


def state_of(optimizer: torch.optim.Optimizer) -> dict[tuple[int, int, str], Tensor]:
    """Copies of all tensors of the state, by group, place and key."""
    return {
        (g, i, key): value.clone()
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
        for key, value in optimizer.state.get(p, {}).items()
    }


def plain(value: Any) -> Any:
    """The value with every tensor in it replaced by its type and entries, to be compared with `==`."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def regression() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small network, and its loss on a task that it can learn."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))
    x = torch.randn(64, 4, generator=generator)
    y = torch.stack([(x[:, 0] * x[:, 1]).tanh(), x.sum(1).sin()], 1)
    return model, lambda: nn.functional.mse_loss(model(x), y)
