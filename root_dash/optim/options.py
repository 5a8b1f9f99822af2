"""The options of ROOT: their types, and the checks that refuse bad ones early."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from root_dash.coefficients.tables import MUON, Coefficients, Normalization, check_normalization, resolve
from root_dash.optim.matrices.layout import Layout
from root_dash.optim.matrices.nonfinite import NONFINITE
from root_dash.optim.outliers.threshold import check_quantile_method

Algorithm: TypeAlias = Literal["root", "adamw"]
LrRule: TypeAlias = Literal["match_rms_adamw", "original", "spectral"]
NsCoefficients: TypeAlias = str | Coefficients | Sequence[Coefficients]
AdjustLr: TypeAlias = LrRule | Callable[[tuple[int, int]], float] | None
Schedule: TypeAlias = Callable[[int], float]
"""A number for each step, the first being 1."""

ONLINE = ("adaptive", "adanewton")
"""The choices of `ns_coefficients` that are fitted to the run."""

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
LR_RULES: tuple[LrRule, ...] = get_args(LrRule)


def check_group(group: Mapping[str, Any]) -> None:
    """Refuse the options of a parameter group with a `ValueError` that names the argument, the rule and the value."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got a tensor of shape {tuple(lr.shape)}")
    else:
        _check("lr", lr, "finite and at least 0", lambda x: 0 <= x < math.inf)
    _check("weight_decay", group["weight_decay"], "finite and at least 0", lambda x: 0 <= x < math.inf)
    _check("momentum", group["momentum"], "in [0, 1)", lambda x: 0 <= x < 1)
    _check("eps", group["eps"], "finite and more than 0", lambda x: 0 < x < math.inf)
    _check("adamw_eps", group["adamw_eps"], "finite and at least 0", lambda x: 0 <= x < math.inf)
    _check("betas", group["betas"], "a pair of numbers in [0, 1)", lambda x: len(x) == 2 and all(0 <= b < 1 for b in x))
    for name, rule, holds in (
        ("outlier_quantile", "in (0, 1]", lambda x: 0 < x <= 1),
        ("outlier_threshold", "None, or finite and at least 0", lambda x: x is None or 0 <= x < math.inf),
    ):
        if not callable(group[name]):
            _check(name, group[name], rule, holds)
        elif group["capturable"]:
            raise ValueError(f"{name} must be a number with capturable=True, got {group[name]!r}")
    check_quantile_method(group["quantile_method"])
    check_normalization(group["normalization"])
    if group["nonfinite"] not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {group['nonfinite']!r}")
    if group["capturable"] and group["nonfinite"] == "raise":
        raise ValueError("nonfinite must not be 'raise' with capturable=True: to raise, a step has to wait")
    _check("calibrate_every", group["calibrate_every"], "a whole number, 0 or more", lambda x: x >= 0 and x == int(x))
    _check(
        "calibration_mixture",
        group["calibration_mixture"],
        "a pair of weights (real, random), at least 0 and not both 0",
        lambda x: len(x) == 2 and min(x) >= 0 and 0 < sum(x) < math.inf,
    )
    Layout.of(group)
    if group["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(map(repr, ALGORITHMS))}, got {group['algorithm']!r}")
    rule = group["adjust_lr_fn"]
    if rule is not None and not callable(rule) and rule not in LR_RULES:
        raise ValueError(
            f"adjust_lr_fn must be one of {', '.join(map(repr, LR_RULES))}, None, or a callable, got {rule!r}"
        )
    dtype = group["ns_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"ns_dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    resolve(group["ns_coefficients"], group["ns_steps"], (1, 1))


def own_normalization(ns_coefficients: NsCoefficients) -> Normalization:
    """The normalization that a choice of coefficients is made for: Frobenius for the published sets, else ours."""
    published = ("muon", "paper", "polar_express", "adanewton", MUON)
    return "frobenius" if ns_coefficients in published else "schatten8"


def at_step(option: float | Schedule, step: int, name: str) -> float:
    """The value of an option that may be a schedule.

    Raises:
        ValueError: the schedule's value is out of the option's range.
    """
    if not callable(option):
        return option
    value = float(option(step))
    if name == "outlier_quantile":
        _check(f"{name}({step})", value, "in (0, 1]", lambda x: 0 < x <= 1)
    else:
        _check(f"{name}({step})", value, "finite and at least 0", lambda x: 0 <= x < math.inf)
    return value


def check_parameter(parameter: Tensor, group: Mapping[str, Any], name: str | None = None) -> None:
    """Refuse, with a `ValueError` that names shape and rule, a parameter that its group's algorithm cannot step."""
    algorithm = group["algorithm"]
    called = f"parameter {name!r}" if name else "a parameter"
    if parameter.is_complex():
        raise ValueError(f"parameters must be real, got {called} of dtype {parameter.dtype}")
    if parameter.layout != torch.strided:
        raise ValueError(f"parameters must be dense, got {called} of layout {parameter.layout}")
    if algorithm == "root" and parameter.ndim < 2:
        raise ValueError(
            f"parameters of a group with algorithm='root' must have at least 2 dimensions, got {called} of shape "
            f"{tuple(parameter.shape)}: put it in a group with algorithm='adamw', as ROOT.param_groups(model) does"
        )
    if algorithm == "root":
        Layout.of(group).check(parameter.shape, name)


def lr_scale(shape: tuple[int, int], rule: AdjustLr) -> float:
    """What the learning rate of a rows x cols matrix is multiplied by."""
    if callable(rule):
        return float(rule(shape))
    rows, cols = shape[0], max(shape[1], 1)
    if rule == "match_rms_adamw":  # AdamW's root-mean-square update, 0.2; Liu et al., arXiv 2502.16982
        return 0.2 * math.sqrt(max(rows, cols))
    if rule == "original":  # Keller Jordan's Muon
        return math.sqrt(max(1, rows / cols))
    if rule == "spectral":  # ‖update‖ from root-mean-square to root-mean-square is 1; Bernstein, arXiv 2310.17813
        return math.sqrt(rows / cols)
    return 1.0


def _check(name: str, value: Any, rule: str, holds: Callable[[Any], bool]) -> None:
    try:
        if holds(value):
            return
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be {rule}, got {value!r}")
