"""The bounds of a set that is fitted to a run. The bounds depend on the form of the set and on the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from root_dash.coefficients.fit import FINE_LIMIT, FINE_NOISE, LIMIT, NOISE, TOP, infimum, supremum
from root_dash.coefficients.tables import Coefficients

OnlineForm: TypeAlias = Literal["adaptive", "adanewton"]
"""The form of a fitted set: a triple per step, or the paper's one triple in all steps."""

# An update in bfloat16 rounds values above 1.0586 to 1.0625, and no value may exceed 1.06. No single triple is both
# steep at 0 and calm at 1: Muon's triple reaches 1.20.
_LIMIT, _SHARED_LIMIT = 1.058, 1.3
_HORIZON = 20  # number of steps up to which a repeated triple must keep to its limit
_BOTTOM = 1e-3  # no σ from here up to the largest may change its sign


class Bounds(NamedTuple):
    """The bounds of any σ of (0, 1.01] after the steps of a set, with noise between the steps."""

    form: OnlineForm
    steps: int
    fine: bool
    """Whether the arithmetic is fine (`plan.is_fine`)."""

    @property
    def noise(self) -> float:
        """The relative size of the errors between the steps."""
        return FINE_NOISE if self.fine else NOISE

    @property
    def limit(self) -> float:
        """The limit that no σ may exceed."""
        return _LIMIT if self.form == "adaptive" else _SHARED_LIMIT

    @property
    def aim(self) -> float:
        """The limit in a fit, a little lower than `limit` if there is room."""
        return (FINE_LIMIT if self.fine else LIMIT) if self.form == "adaptive" else _SHARED_LIMIT

    @property
    def horizon(self) -> int:
        """The number of steps up to which the limit holds."""
        return self.steps if self.form == "adaptive" else max(_HORIZON, self.steps)

    def reach(self, coefficients: Sequence[Coefficients]) -> float:
        """Return the largest |p| after all steps; for a repeated triple, after any number up to the horizon."""
        if self.form == "adaptive":
            return supremum(coefficients, noise=self.noise)
        triple = tuple(coefficients[:1])
        return max(supremum(triple * k, noise=self.noise) for k in range(self.steps, self.horizon + 1))

    def hold(self, coefficients: Sequence[Coefficients]) -> bool:
        """Return whether a set keeps to the bounds and changes the sign of no σ above 1e-3."""
        return self.reach(coefficients) <= self.limit and infimum(coefficients, _BOTTOM, TOP, self.noise) > 0
