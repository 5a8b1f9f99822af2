"""The vocabulary: the kinds, the tensors and the statistics that are recorded, with their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

Kind = Literal["statistics", "histograms", "quantiles", "spectra", "masks", "scalars"]
"""What a frame can hold. Each kind has a cadence and a table of its own."""

KINDS: tuple[Kind, ...] = get_args(Kind)

TensorName = Literal["gradient", "momentum"]
"""The tensor whose entries a histogram or a set of quantiles describes."""

TENSORS: tuple[TensorName, ...] = get_args(TensorName)


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number of a layer at a step.

    The statistic has the cadence of its `kind`: a statistic of kind `"spectra"` exists only at steps with a recorded
    spectrum. A new statistic is a new column, which databases get when they are opened for writing.
    """

    name: str
    label: str
    definition: str
    kind: Kind = "statistics"
    log: bool = False
    """Whether a logarithmic axis suits the statistic: its values are positive, over orders of magnitude."""
    judged: bool = False
    """Whether the diagnosis makes the statistic when a frame is stored, and no recorder sends it."""


# M is the tensor about to be orthogonalized (the momentum, Nesterov-corrected under Nesterov), B = clamp(M, -ε, ε) its
# base, O = M - B its outliers, X the update before the learning rate, G the gradient, W the weight.
STATISTICS: tuple[Statistic, ...] = (
    Statistic("grad_norm", "gradient norm", "‖G‖, Frobenius", log=True),
    Statistic("momentum_norm", "momentum norm", "‖M‖, Frobenius", log=True),
    Statistic("update_norm", "update norm", "‖X‖, Frobenius, before the learning rate (not ROOT: ‖ΔW‖ / lr)", log=True),
    Statistic("weight_norm", "weight norm", "‖W‖, Frobenius, before the step", log=True),
    Statistic("update_to_weight", "update / weight", "scaled learning rate × ‖X‖ / ‖W‖", log=True),
    Statistic("grad_abs_max", "largest gradient entry", "max |G|", log=True),
    Statistic("grad_mean", "gradient mean", "mean of G's finite entries"),
    Statistic("grad_std", "gradient deviation", "standard deviation of G's finite entries", log=True),
    Statistic("grad_skewness", "gradient skewness", "third standardized moment of G"),
    Statistic("grad_kurtosis", "excess kurtosis", "fourth standardized moment of G, less 3"),
    Statistic("grad_nan", "NaN entries", "entries of G that are NaN"),
    Statistic("grad_inf", "infinite entries", "entries of G that are ±Inf"),
    Statistic("grad_zero", "zero entries", "entries of G that are exactly 0"),
    Statistic("alignment", "alignment", "cosine of G and M"),
    Statistic("threshold", "threshold ε", "the outlier quantile of |M|", log=True),
    Statistic("outlier_fraction", "outlier fraction", "share of entries with |M| > ε"),
    Statistic("outlier_energy", "outlier energy", "‖O‖² / ‖M‖²"),
    Statistic("base_alignment", "base alignment", "cosine of M and B"),
    Statistic("orthogonality_error", "orthogonality error", "‖X Xᵀ − I‖ / √m over X's non-zero rows", log=True),
    Statistic("severity", "severity", "the layer's worst score of all rules: deviation / bound", judged=True),
    Statistic("severity_rule", "rule of the severity", "number of the rule + 128 × ⌊16 × severity⌋", judged=True),
    Statistic("sigma_max", "largest singular value", "σ₁ of M", "spectra", log=True),
    Statistic("sigma_min", "smallest singular value", "least σ of M that is not null", "spectra", log=True),
    Statistic("stable_rank", "stable rank", "‖M‖² / σ₁²", "spectra"),
    Statistic("effective_rank", "effective rank", "exp of the entropy of σ² / Σσ²", "spectra"),
    Statistic("condition", "condition number", "σ₁ / least σ of M that is not null", "spectra", log=True),
    Statistic("polar_error", "polar error", "‖X − UVᵀ‖ / ‖UVᵀ‖, UVᵀ the polar factor of B", "spectra", log=True),
    Statistic("outlier_row_share", "worst rows' share", "share of the outliers in the worst 1 % of rows", "masks"),
    Statistic(
        "outlier_col_share", "worst columns' share", "share of the outliers in the worst 1 % of columns", "masks"
    ),
    Statistic("mask_overlap", "mask overlap", "Jaccard index with the mask recorded before", "masks"),
)


@cache
def statistic(name: str) -> Statistic:
    """Return the statistic of a name.

    Raises:
        KeyError: there is no such statistic.
    """
    return {s.name: s for s in STATISTICS}[name]


@cache
def statistic_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the statistics that come with a kind, in the order of `STATISTICS`."""
    return tuple(s.name for s in STATISTICS if s.kind == kind)
