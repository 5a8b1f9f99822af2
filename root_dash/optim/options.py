"""The options of ROOT: their types, and the checks that refuse bad options early."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from root_dash.checks import one_of, satisfies
from root_dash.coefficients.tables import MUON, NORMALIZATIONS, Coefficients, Normalization, resolve
from root_dash.optim.matrices.layout import Layout
from root_dash.optim.matrices.nonfinite import NONFINITE
from root_dash.optim.outliers.threshold import QUANTILE_METHODS

Algorithm: TypeAlias = Literal["root", "adamw"]
LrRule: TypeAlias = Literal["match_rms_adamw", "original", "spectral", "spectral_unclamped"]
NsCoefficients: TypeAlias = str | Coefficients | Sequence[Coefficients]
AdjustLr: TypeAlias = LrRule | Callable[[tuple[int, int]], float] | None
Schedule: TypeAlias = Callable[[int], float]
"""A function that returns a number for each step. The first step is 1."""

ONLINE = ("adaptive", "adanewton")
"""The choices of `ns_coefficients` that are fitted to the run."""

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
LR_RULES: tuple[LrRule, ...] = get_args(LrRule)


def check_group(group: Mapping[str, Any]) -> None:
    """Check the options of a parameter group. Every error names the argument, the rule and the value.

    Raises:
        TypeError: an option of a wrong type.
        ValueError: an option out of its range, or two options that exclude each other.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got a tensor of shape {tuple(lr.shape)}")
    else:
        satisfies("lr", lr, "finite and at least 0", lambda x: 0 <= x < math.inf)
    satisfies("weight_decay", group["weight_decay"], "finite and at least 0", lambda x: 0 <= x < math.inf)
    satisfies("momentum", group["momentum"], "in [0, 1)", lambda x: 0 <= x < 1)
    satisfies("eps", group["eps"], "finite and more than 0", lambda x: 0 < x < math.inf)
    satisfies("adamw_eps", group["adamw_eps"], "finite and at least 0", lambda x: 0 <= x < math.inf)
    satisfies(
        "betas",
        group["betas"],
        "a pair of numbers in [0, 1)",
        lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x),
    )
    for name, rule, holds in (
        ("outlier_quantile", "in (0, 1]", lambda x: 0 < x <= 1),
        ("outlier_threshold", "None, or finite and at least 0", lambda x: x is None or 0 <= x < math.inf),
    ):
        if not callable(group[name]):
            satisfies(name, group[name], rule, holds)
        elif group["capturable"]:
            raise ValueError(f"{name} must be a number with capturable=True, got {group[name]!r}")
    one_of("quantile_method", group["quantile_method"], QUANTILE_METHODS)
    one_of("normalization", group["normalization"], NORMALIZATIONS)
    one_of("nonfinite", group["nonfinite"], NONFINITE)
    if group["capturable"] and group["nonfinite"] == "raise":
        raise ValueError("nonfinite must not be 'raise' with capturable=True: to raise, a step has to wait")
    satisfies(
        "calibrate_every", group["calibrate_every"], "a whole number, 0 or more", lambda x: x >= 0 and x == int(x)
    )
    satisfies(
        "calibration_mixture",
        group["calibration_mixture"],
        "a pair of weights (real, random), at least 0 and not both 0",
        lambda x: len(x) == 2 and min(x) >= 0 and 0 < sum(x) < math.inf,
    )
    Layout.of(group)
    one_of("algorithm", group["algorithm"], ALGORITHMS)
    rule = group["adjust_lr_fn"]
    if rule is not None and not callable(rule):
        one_of("adjust_lr_fn", rule, LR_RULES, ", None, or a callable")
    dtype = group["ns_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        error = ValueError if isinstance(dtype, torch.dtype) else TypeError
        raise error(f"ns_dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    resolve(group["ns_coefficients"], group["ns_steps"], (1, 1))


def own_normalization(ns_coefficients: NsCoefficients) -> Normalization:
    """Return the normalization for which a choice of coefficients is made: Frobenius for published sets, else ours."""
    published = ("muon", "paper", "polar_express", "adanewton", MUON)
    return "frobenius" if ns_coefficients in published else "schatten8"


def at_step(option: float | Schedule, step: int, name: str) -> float:
    """Return the value at a step of an option that may be a schedule.

    Raises:
        ValueError: the schedule's value is out of the option's range.
    """
    if not callable(option):
        return option
    value = float(option(step))
    if name == "outlier_quantile":
        satisfies(f"{name}({step})", value, "in (0, 1]", lambda x: 0 < x <= 1)
    else:
        satisfies(f"{name}({step})", value, "finite and at least 0", lambda x: 0 <= x < math.inf)
    return value


def check_parameter(parameter: Tensor, group: Mapping[str, Any], name: str | None = None) -> None:
    """Check that the algorithm of a group can step a parameter.

    Raises:
        ValueError: the parameter breaks a rule. The message names the parameter, its shape and the rule.
    """
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
    """Return s(m, n), the factor of the learning rate of an m x n matrix."""
    if callable(rule):
        return float(rule(shape))
    rows, cols = shape[0], max(shape[1], 1)
    if rule == "match_rms_adamw":  # AdamW's root-mean-square update, 0.2; Liu et al., arXiv 2502.16982
        return 0.2 * math.sqrt(max(rows, cols))
    if rule == "original":  # Keller Jordan's Muon
        return math.sqrt(max(1, rows / cols))
    if rule in ("spectral", "spectral_unclamped"):  # as torch.optim.Muon since torch 2.14
        # The update's operator norm from root-mean-square to root-mean-square is 1; Bernstein, arXiv 2310.17813.
        return math.sqrt(rows / cols)
    return 1.0
