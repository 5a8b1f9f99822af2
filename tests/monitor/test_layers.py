"""What a run records of its optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from root_dash.monitor.layers import describe_optimizers


class _Watched(torch.Tensor):
    """A tensor that cannot be printed: printing reads its values, and waits for the device that holds them."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch names no type
        raise AssertionError("the values of a tensor were read")


def test_a_tensor_among_the_options_is_named_and_not_read() -> None:
    """Neither as a value nor as a key, at any depth: some optimizers keep options by parameter."""
    weight = nn.Linear(3, 2).weight
    optimizer = SGD([weight], lr=0.1)
    tensor = torch.ones(3).as_subclass(_Watched)
    optimizer.param_groups[0] |= {"scale": tensor, "names": {tensor: "weight"}, "nested": [{tensor: [tensor]}]}
    (group,) = describe_optimizers([optimizer])["optimizers"][0]["groups"]
    assert group["lr"] == 0.1
    assert group["scale"] == "_Watched"
    assert group["names"] == {"_Watched": "weight"}
    assert group["nested"] == [{"_Watched": ["_Watched"]}]
