"""The options of parameter groups that schedules change, recorded as series: learning rate, weight decay, momentum."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from root_dash.monitor.logged import logged_number
from root_dash.monitor.optimizers.adapter import Adapter
from root_dash.optim.matrices.shards import is_dtensor


def group_scalars(adapter: Adapter, first: int) -> dict[str, float | Tensor]:
    """Return the present options of an optimizer's groups as `lr/0`, `momentum/0` and so on; tensors are copied.

    `first` is the number of the optimizer's first group: several optimizers number their groups in turn.
    """
    found: dict[str, float | Tensor] = {}
    for number, group in enumerate(adapter.optimizer.param_groups, first):
        for name, value in adapter.scheduled(group).items():
            one = isinstance(value, Tensor) and value.numel() == 1 and not is_dtensor(value) and not value.is_complex()
            if one or (type(value) is not bool and isinstance(value, Real)):
                found[f"{name}/{number}"] = logged_number(name, value)
    return found
