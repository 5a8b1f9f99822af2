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
    """A number defined for one layer at one step.

    `kind` names the recording that the statistic comes with, and so its cadence: a statistic of kind `"spectra"` exists
    only at steps with a recorded spectrum. A new statistic is a new column: databases get it when they are opened for
    writing.
    """

    name: str
    label: str
    definition: str
    kind: Kind = "statistics"
    log: bool = False
    """Whether a logarithmic axis suits the statistic: its values are positive, over orders of magnitude."""
    judged: bool = False
    """Whether the diagnosis makes the statistic when a frame is stored, and no recorder sends it."""


def _norms_of(line: str) -> tuple[Statistic, ...]:
    """Return the statistics of the norms of the update's rows or columns."""
    quantiles = {"min": "least", "low": "5 % quantile", "median": "median", "high": "95 % quantile", "max": "largest"}
    ends = {"weakest": "least", "strongest": "largest"}
    return (
        *(
            Statistic(f"update_{line[:3]}_{end}", f"{line} norms: {of}", f"{of} of the norms of X's {line}s", "spectra")
            for end, of in quantiles.items()
        ),
        *(
            Statistic(f"update_{line[:3]}_{end}", f"{end} {line}", f"number of X's {line} of {of} norm", "spectra")
            for end, of in ends.items()
        ),
    )


# M is the tensor about to be orthogonalized (the momentum, Nesterov-corrected if that is on), B = clamp(M, -ε, ε)
# its base, O = M - B its outliers, X the update before the learning rate, G the gradient, W the weight.
STATISTICS: tuple[Statistic, ...] = (
    Statistic("grad_norm", "gradient norm", "‖G‖, Frobenius", log=True),
    Statistic("momentum_norm", "momentum norm", "‖M‖, Frobenius", log=True),
    Statistic("update_norm", "update norm", "‖X‖, Frobenius, before the learning rate (not ROOT: ‖ΔW‖ / lr)", log=True),
    Statistic("weight_norm", "weight norm", "‖W‖, Frobenius, before the step", log=True),
    Statistic("scaled_lr", "scaled learning rate", "what X is multiplied by: lr × the factor of the shape", log=True),
    Statistic("update_to_weight", "update / weight", "scaled learning rate × ‖X‖ / ‖W‖", log=True),
    Statistic("changed_share", "changed entries", "share of W's stored entries that the step changed"),
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
    # The sentinels, kept for every step, speak of the steps after the layer's row before, up to the row's own.
    Statistic("nonfinite_steps", "steps not finite", "steps since the row before whose G was not finite"),
    Statistic("nonfinite_step", "first step not finite", "the first step since the row before whose G was not finite"),
    Statistic("norm_peak", "norm peak", "largest finite ‖G‖ of the steps since the row before", log=True),
    Statistic("norm_peak_step", "step of the norm peak", "the first step that had the norm peak"),
    Statistic("norm_trough", "norm trough", "least finite ‖G‖ of the steps since the row before", log=True),
    Statistic("norm_trough_step", "step of the norm trough", "the first step that had the norm trough"),
    Statistic("entry_peak", "entry peak", "largest finite max |G| of the steps since the row before", log=True),
    Statistic("entry_peak_step", "step of the entry peak", "the first step that had the entry peak"),
    Statistic("orthogonality_error", "orthogonality error", "‖X Xᵀ − I‖ / √m over X's non-zero rows", log=True),
    Statistic("severity", "severity", "the layer's worst score of all rules: deviation / bound", judged=True),
    Statistic("severity_rule", "rule of the severity", "number of the rule + 128 × ⌊16 × severity⌋", judged=True),
    Statistic("sigma_max", "largest singular value", "σ₁ of M", "spectra", log=True),
    Statistic("sigma_min", "smallest singular value", "least σ of M that is not null", "spectra", log=True),
    Statistic("stable_rank", "stable rank", "‖M‖² / σ₁²", "spectra"),
    Statistic("effective_rank", "effective rank", "exp of the entropy of σ² / Σσ²", "spectra"),
    Statistic("condition", "condition number", "σ₁ / least σ of M that is not null", "spectra", log=True),
    Statistic("polar_error", "polar error", "‖X − UVᵀ‖ / ‖UVᵀ‖, UVᵀ the polar factor of B", "spectra", log=True),
    Statistic("weight_sigma_max", "largest singular value of the weight", "σ₁ of W, estimated", "spectra", log=True),
    Statistic("weight_stable_rank", "stable rank of the weight", "‖W‖² / σ₁² of W", "spectra"),
    *_norms_of("row"),
    *_norms_of("column"),
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
