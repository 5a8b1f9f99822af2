"""The questions that the map answers, and the statistics that answer each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from root_dash.records import STATISTICS

SEVERITY, SEVERITY_RULE = "severity", "severity_rule"
"""The statistics that the diagnosis makes."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the layers, and the names of the statistics with an answer, the best first."""

    name: str
    asks: str
    statistics: tuple[str, ...]


# fmt: off
_QUESTIONS = (
    Question("sick", "Which layer left its own range?", (SEVERITY,)),
    Question("size", "How large are gradient, momentum, update and weight?", (
        "grad_norm", "update_to_weight", "update_norm", "momentum_norm", "weight_norm", "grad_abs_max", "grad_std",
        "grad_mean", "scaled_lr", "norm_peak", "norm_trough", "entry_peak", "changed_share",
    )),
    Question("shape", "How many directions carry the momentum?", (
        "stable_rank", "effective_rank", "condition", "sigma_max", "sigma_min", "alignment", "weight_stable_rank",
        "weight_sigma_max",
    )),
    Question("tails", "Do single entries, rows or columns stand out?", (
        "grad_kurtosis", "grad_skewness", "outlier_energy", "outlier_fraction", "outlier_row_share",
        "outlier_col_share", "mask_overlap", "threshold", "base_alignment",
    )),
    Question("orthogonality", "How far is the update from orthogonal?", ("orthogonality_error", "polar_error")),
    Question("broken", "Which entries are NaN, infinite or exactly 0?", (
        "grad_nan", "grad_inf", "grad_zero", "nonfinite_steps",
    )),
)
# fmt: on
_HIDDEN = (SEVERITY_RULE,)
"""Statistics that no person reads on a map."""


def questions() -> tuple[Question, ...]:
    """Return the questions with the known statistics; the last question has the statistics of no other question."""
    there = {statistic.name for statistic in STATISTICS} - set(_HIDDEN)
    named = {name for question in _QUESTIONS for name in question.statistics}
    found = [Question(q.name, q.asks, tuple(name for name in q.statistics if name in there)) for q in _QUESTIONS]
    # A step number is no quantity to map.
    rest = tuple(s.name for s in STATISTICS if s.name in there - named and not s.name.endswith("_step"))
    return (*(q for q in found if q.statistics), *((Question("other", "Other statistics", rest),) if rest else ()))


def groups() -> Mapping[str, Mapping[str, str]]:
    """Return the labels of the statistics by name, in a group for each question."""
    labels = {statistic.name: statistic.label for statistic in STATISTICS}
    return {question.name: {name: labels[name] for name in question.statistics} for question in questions()}
