"""The bounds that a set fitted to a run is held to, by its form and by the arithmetic that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from root_dash.coefficients.fit import FINE_LIMIT, FINE_NOISE, LIMIT, NOISE, TOP, infimum, supremum
from root_dash.coefficients.tables import Coefficients

OnlineForm: TypeAlias = Literal["adaptive", "adanewton"]
"""A triple per step, or the paper's one triple in all steps."""

# An update in bfloat16 rounds what lies above 1.0586 to 1.0625, and none is to exceed 1.06. No single triple is both
# steep at zero and calm at one: Muon's reaches 1.20.
_LIMIT, _SHARED_LIMIT = 1.058, 1.3
_HORIZON = 20  # steps up to which a triple that is repeated is held to its limit
_BOTTOM = 1e-3  # from here up to the largest, no σ may be turned round


class Bounds(NamedTuple):
    """How far a set of a form may take any σ of (0, 1.01] with noise between its steps."""

    form: OnlineForm
    steps: int
    fine: bool
    """Whether the arithmetic is (`plan.is_fine`)."""

    @property
    def noise(self) -> float:
        """The relative size of the errors between the steps."""
        return FINE_NOISE if self.fine else NOISE

    @property
    def limit(self) -> float:
        """What no σ may exceed."""
        return _LIMIT if self.form == "adaptive" else _SHARED_LIMIT

    @property
    def aim(self) -> float:
        """What a fit is held to, a little lower where there is room."""
        return (FINE_LIMIT if self.fine else LIMIT) if self.form == "adaptive" else _SHARED_LIMIT

    @property
    def horizon(self) -> int:
        """The number of steps up to which the limit holds."""
        return self.steps if self.form == "adaptive" else max(_HORIZON, self.steps)

    def reach(self, coefficients: Sequence[Coefficients]) -> float:
        """The largest |p| after all steps, and, for a triple that is repeated, after any more of them."""
        if self.form == "adaptive":
            return supremum(coefficients, noise=self.noise)
        triple = tuple(coefficients[:1])
        return max(supremum(triple * k, noise=self.noise) for k in range(self.steps, self.horizon + 1))

    def hold(self, coefficients: Sequence[Coefficients]) -> bool:
        """Whether a set keeps to them, and turns no σ above 1e-3 round."""
        return self.reach(coefficients) <= self.limit and infimum(coefficients, _BOTTOM, TOP, self.noise) > 0
