"""The options of one step of ROOT, read from a parameter group, and how the step clips outliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from root_dash.coefficients.tables import Coefficients, Normalization
from root_dash.optim.matrices.batches import MatrixBatch
from root_dash.optim.matrices.layout import Layout
from root_dash.optim.options import AdjustLr, at_step, lr_scale
from root_dash.optim.outliers.threshold import QuantileMethod, split, threshold

SetLookup: TypeAlias = Callable[[MatrixBatch], Sequence[Coefficients] | Tensor]
"""A function that returns the coefficient set of a batch: K triples, or a tensor (K, 3) on the batch's device."""


@dataclass(frozen=True, slots=True)
class Clipping:
    """The rule that clips outliers: a fixed ε, else a quantile of |M| by a method, else (quantile 1) nothing."""

    quantile: float
    method: QuantileMethod = "exact"
    fixed: float | None = None

    @staticmethod
    def of(group: Mapping[str, Any], step: int) -> Clipping:
        """Return the rule of a parameter group at a step.

        Raises:
            ValueError: the value of a schedule is out of range.
        """
        fixed = group["outlier_threshold"]
        return Clipping(
            quantile=at_step(group["outlier_quantile"], step, "outlier_quantile"),
            method=group["quantile_method"],
            fixed=None if fixed is None else at_step(fixed, step, "outlier_threshold"),
        )

    def threshold(self, M: Tensor) -> Tensor | None:
        """Return ε of each matrix of a batch (L, m, n): (L,), or None if nothing is clipped."""
        if self.fixed is not None:
            return M.new_full((len(M),), self.fixed)
        if self.quantile >= 1 or not M.numel():
            return None
        return threshold(M, self.quantile, self.method)

    def largest(self, epsilon: Tensor | None) -> Tensor | None:
        """Return the largest magnitude in each base (L,) if ε gives it: the exact quantile is never above max |M|."""
        return epsilon if self.fixed is None and self.method == "exact" else None

    def clip(self, M: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return ε (L,) and the base B (L, m, n) of a batch, or None and None if nothing is clipped."""
        epsilon = self.threshold(M)
        return epsilon, None if epsilon is None else split(M, epsilon)


@dataclass(frozen=True, slots=True)
class StepOptions:
    """All options of one step of ROOT that are the same for every parameter of a group."""

    lr: float | Tensor
    weight_decay: float
    momentum: float
    nesterov: bool
    sets: SetLookup
    eps: float
    adjust_lr_fn: AdjustLr
    clipping: Clipping
    normalization: Normalization
    ns_dtype: torch.dtype | None
    layout: Layout
    maximize: bool
    one_by_one: bool
    """Whether every matrix is orthogonalized alone, which needs the least memory."""

    @staticmethod
    def of(group: Mapping[str, Any], step: int, sets: SetLookup) -> StepOptions:
        """Return the options of a parameter group at a step. The learning rate may be a tensor of no dimension.

        Raises:
            ValueError: the value of a schedule is out of range.
        """
        return StepOptions(
            lr=plain_lr(group),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            sets=sets,
            eps=group["eps"],
            adjust_lr_fn=group["adjust_lr_fn"],
            clipping=Clipping.of(group, step),
            normalization=group["normalization"],
            ns_dtype=group["ns_dtype"],
            layout=Layout.of(group),
            maximize=group["maximize"],
            one_by_one=group["foreach"] is False,
        )

    def scaled_lr(self, shape: tuple[int, int]) -> float | Tensor:
        """Return η s(m, n), the factor of the update of a matrix of this shape."""
        return self.lr * lr_scale(shape, self.adjust_lr_fn)


def plain_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Return the learning rate of a group: a number, or a tensor of no dimension."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr
