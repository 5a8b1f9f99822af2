"""AdaNewton: a fit of the coefficients of the Newton-Schulz iteration to singular values.

The iteration changes singular values alone, so the result of a set follows from the spectrum of the matrix, and the
best set for some spectra solves a least-squares problem with 3 numbers per step. He et al. (arXiv 2511.20626) fit one
(a, b, c) per matrix shape, used in every step, to the polar factor U Vᵀ. Here every step may have its own triple, and
rounding must not drive the result of a set beyond a limit. The fit is NumPy in float64, without random numbers.

The largest value that a set can reach needs no grid. A step is a continuous odd function, so it maps [-h, h] onto
[-h', h'], where h' is its largest magnitude there, at an end or at one of at most two critical points. The composition
of these maps gives the supremum exactly. If h is widened by 1 + noise before each further step, the composition gives
the supremum over every possible error of this relative size between the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from root_dash.checks import one_of, whole_number
from root_dash.coefficients.spectra import (
    Array,
    alive,
    polar_error,
    pool,
    random_spectra,
    representatives,
    root_mean_square,
)
from root_dash.coefficients.tables import (
    CONTRACTING,
    MUON,
    NORMALIZATIONS,
    Coefficients,
    Normalization,
    evaluate,
    normalize_spectrum,
    resolve,
)

__all__ = ["Fit", "fit", "infimum", "polar_error", "random_spectra", "supremum"]

LIMIT, FINE_LIMIT = 1.05, 1.055
"""The limits of p. No singular value of an update may exceed 1.06, and the rounding of the update needs its share. The
second limit and the second noise below are for fine arithmetic (`plan.is_fine`). The first are safe in any."""
NOISE, FINE_NOISE = 0.012, 0.004
"""Relative error of a singular value that a set must bear between steps. Numbers in bfloat16 lie 0.4 to 0.8 % apart;
after a first step in float32, steps in bfloat16 were never seen to need 0.3 %."""
BETWEEN = 1.5
"""The limit of singular values between the steps, because the rounding there is relative to the largest value."""
TOP = 1.01
"""End of the interval (0, 1.01] of the supremum. ROOT starts below 1/1.003: this is four times its margin above."""

_ANCHORS, _ANCHOR_RANGE = 48, (0.02, 1.0)
_ROUNDS = 6
_ITERATIONS = 60
_FLOOR = 0.5  # a large singular value that ends below the floor is as good as lost
_FIRM, _SOFT, _GROWTH = 10.0, 0.1, 3.0  # weight of the overshoot in the first round, and its growth per round
_SLACK = 0.005  # distance below the limit at which the penalty begins, so that the fit slows down before the limit
_SHARED_STARTS: tuple[Coefficients, ...] = (MUON, (2.9, -3.6, 1.6), (2.6, -3.05, 1.47), (2.5, -2.7, 1.2))
# You Jiacheng, x.com/YouJiacheng/status/1905861218138804534.
_CALM: tuple[Coefficients, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """A set that was fitted to spectra, and its errors and bounds."""

    coefficients: tuple[Coefficients, ...]
    """One (a, b, c) per step."""
    error: float
    """Mean over the spectra of the polar error sqrt(mean (p(σ) - 1)²)."""
    supremum: float
    """The largest |p| on (0, 1.01] in exact arithmetic."""
    noisy_supremum: float
    """The largest |p| on (0, 1.01] over every error of relative size `noise` between the steps."""


def fit(
    spectra: Sequence[ArrayLike],
    *,
    steps: int = 5,
    shared: bool = False,
    start: Sequence[Coefficients] | None = None,
    normalization: Normalization = "schatten8",
    limit: float = LIMIT,
    noise: float = NOISE,
    weights: Sequence[float] | None = None,
    anchor: float = 1e-3,
    horizon: int | None = None,
) -> Fit:
    """Return the set that minimises the mean over the spectra of mean (p(σ) - 1)², the squared polar error.

    A spectrum is a 1-D array of singular values of any scale; null directions are left out. `shared` means the same
    (a, b, c) in all steps, as in the paper. The search begins at the universal set, at a calmer set and at `start`, if
    given. `weights` has a weight for each spectrum. All spectra together weigh 1, and `anchor` is the weight of points
    spread over [0.02, 1]. Without these points p could be anything between fitted values, of either sign, and a later
    spectrum may have such values.

    The supremum with `noise` between the steps ends at or below `limit`. A shared triple must keep to the limit after
    any number of steps up to `horizon`, by default twice `steps`. If no triple keeps to the limit, `noisy_supremum`
    exceeds the limit. The same input gives the same bits.

    Raises:
        TypeError: `steps` or `normalization` of a wrong type.
        ValueError: no spectra or none but zeros, values that are negative or not finite, or an argument out of range.
    """
    horizon = (2 * steps if shared else steps) if horizon is None else horizon
    _check(steps, limit, noise, anchor, horizon, shared)
    one_of("normalization", normalization, NORMALIZATIONS)
    cleaned = [alive(spectrum) for spectrum in spectra]
    shares = _weights(weights, len(cleaned))
    kept = [(values, share) for values, share in zip(cleaned, shares, strict=True) if len(values) and share > 0]
    if not kept:
        raise ValueError(f"spectra must hold at least one that is not all zero, got {len(cleaned)}")
    scaled = [np.asarray(normalize_spectrum(values, normalization)) for values, _ in kept]
    total = sum(share for _, share in kept)
    points, masses = [], []
    for values, (_, share) in zip(scaled, kept, strict=True):
        reduced, counts = representatives(values)
        points.append(reduced)
        masses.append(counts * (share / total / counts.sum()))
    if anchor > 0:
        points.append(np.geomspace(*_ANCHOR_RANGE, _ANCHORS))
        masses.append(np.full(_ANCHORS, anchor / _ANCHORS))
    x, mass = pool(np.concatenate(points), np.concatenate(masses))
    problem = _Problem(x, np.sqrt(mass), steps, shared, limit, noise, horizon)
    coefficients = _triples(problem.solve(_starts(start, steps, shared)), steps)
    error = float(np.mean([root_mean_square(evaluate(coefficients, values) - 1) for values in scaled]))
    return Fit(coefficients, error, supremum(coefficients), supremum(coefficients, noise=noise))


def supremum(coefficients: Sequence[Coefficients], top: float = TOP, noise: float = 0.0) -> float:
    """Return the largest |p| on (0, top], over every error of relative size `noise` between the steps.

    The value is exact, as the module explains; inf after an overflow. Noise acts between steps: a single step has none.
    """
    reach = top
    for step, triple in enumerate(coefficients):
        reach = reach * (1 + noise) if step else reach
        reach = max(abs(_step(triple, x)) for x in _extremes(triple, reach))
        if not math.isfinite(reach):
            return math.inf
    return reach


def infimum(coefficients: Sequence[Coefficients], bottom: float, top: float = TOP, noise: float = 0.0) -> float:
    """Return the least p on [bottom, top], over every error of relative size `noise` between the steps.

    If the value is below zero, the set could reverse a direction of the matrix.
    """
    low, high = bottom, top
    for step, triple in enumerate(coefficients):
        if step:
            low, high = low * (1 - math.copysign(noise, low)), high * (1 + math.copysign(noise, high))
        inner = [x for x in _critical(triple) if low < x < high] + [-x for x in _critical(triple) if low < -x < high]
        values = [_step(triple, x) for x in (low, high, *inner)]
        low, high = min(values), max(values)
        if not (math.isfinite(low) and math.isfinite(high)):
            return -math.inf
    return low


class _Problem:
    """The problem min Σ wᵢ² (p(xᵢ) - 1)² over the coefficients, with a growing penalty on a supremum over the limit."""

    def __init__(
        self, x: Array, root_weights: Array, steps: int, shared: bool, limit: float, noise: float, horizon: int
    ) -> None:
        self.x, self.root_weights = x, root_weights
        self.steps, self.shared, self.limit, self.noise, self.horizon = steps, shared, limit, noise, horizon

    def solve(self, starts: Sequence[tuple[Array, float]]) -> Array:
        """Return the best of the minima found from the starts and their first penalties."""
        with np.errstate(over="ignore", invalid="ignore"):
            return min((self._solve(theta, penalty) for theta, penalty in starts), key=self._rank)

    def _rank(self, theta: Array) -> tuple[bool, float]:
        error = self.root_weights * (self._compose(theta)[0] - 1)
        return not self._reach(theta) <= self.limit * (1 + 1e-9), float(error @ error)

    def _solve(self, theta: Array, penalty: float) -> Array:
        """Run Levenberg-Marquardt, again with a heavier penalty until the supremum is within the limit."""
        aim = self.limit - (_SLACK if penalty == _FIRM and not self.shared else 0.0)
        for _ in range(_ROUNDS):
            theta = self._descend(theta, aim, penalty)
            excess = self._reach(theta) - self.limit
            if excess <= 0:
                break
            aim, penalty = aim - min(excess, 0.01), penalty * _GROWTH
        if not self.shared and self._reach(theta) > self.limit:
            theta = theta.copy()
            theta[-3:] *= self.limit / self._reach(theta)  # the reach is proportional to the last triple
        return theta

    def _descend(self, theta: Array, aim: float, penalty: float) -> Array:
        damping, idle = 1e-3, 0
        residuals, jacobian = self._linearize(theta, aim, penalty)
        cost = float((residuals * residuals).sum())
        for _ in range(_ITERATIONS):
            gradient, curvature = jacobian.T @ residuals, jacobian.T @ jacobian
            scale = np.diag(curvature) + 1e-12 * np.trace(curvature)
            while damping < 1e8:
                proposed = theta - np.linalg.solve(curvature + np.diag(damping * scale), gradient)
                ahead, ahead_jacobian = self._linearize(proposed, aim, penalty)
                ahead_cost = float((ahead * ahead).sum())
                if ahead_cost < cost:  # False for NaN
                    break
                damping *= 4
            else:
                break
            gain = 1 - ahead_cost / cost
            theta, residuals, jacobian, cost = proposed, ahead, ahead_jacobian, ahead_cost
            damping = max(damping / 8, 1e-12)
            idle = idle + 1 if gain < 1e-4 else 0
            if idle == 5 or cost < 1e-14:
                break
        return theta

    def _linearize(self, theta: Array, aim: float, penalty: float) -> tuple[Array, Array]:
        """Return the residuals of the spectra and of the exceeded bounds, and their derivatives by the coefficients."""
        values, slopes = self._compose(theta)
        extremes, extreme_slopes, final = self._extremes(theta)
        over = penalty * np.maximum(np.minimum(np.abs(extremes), 1e9) - aim, 0.0)
        under = np.where(final, np.maximum(_FLOOR - extremes, 0.0), 0.0)
        residuals = np.concatenate([self.root_weights * (values - 1), over, under])
        jacobian = np.concatenate(
            [
                self.root_weights[:, None] * slopes,
                np.where(over > 0, penalty * np.sign(extremes), 0.0)[:, None] * extreme_slopes,
                np.where(under > 0, -1.0, 0.0)[:, None] * extreme_slopes,
            ]
        )
        return residuals, jacobian

    def _compose(self, theta: Array) -> tuple[Array, Array]:
        """Return p(x) (P,), and its derivatives (P, parameters)."""
        x, powers, rates = self.x, [], []
        for a, b, c in _triples(theta, self.steps):
            square = x * x
            powers.append(np.stack([x, x * square, x * square * square], axis=-1))
            rates.append(a + square * (3 * b + square * (5 * c)))
            x = x * (a + square * (b + square * c))
        onward = np.ones_like(x)
        blocks = []
        for power, rate in zip(reversed(powers), reversed(rates), strict=True):
            blocks.append(power * onward[:, None])
            onward = onward * rate
        return x, np.sum(blocks, axis=0) if self.shared else np.concatenate(blocks[::-1], axis=-1)

    def _extremes(self, theta: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return values of p on large inputs, with all extremes; their derivatives; and which values are final.

        The values are the images of 1.01 and of the critical points of every step, after each step up to the horizon,
        with noise that always pushes up. The supremum is the largest value; each single value is a smooth function of
        the coefficients. Before the last step the limit is larger by a factor, and the values are scaled down by this
        factor.
        """
        values, slopes = np.array([TOP]), np.zeros((1, len(theta)))
        found: list[tuple[Array, Array, bool]] = []
        for step, triple in enumerate(_triples(theta, self.horizon)):
            place = slice(0, 3) if self.shared else slice(3 * step, 3 * step + 3)
            grown = 1 + self.noise if step else 1.0
            x, slopes = values * grown, slopes * grown
            a, b, c = triple
            square = x * x
            slopes = (a + square * (3 * b + square * 5 * c))[:, None] * slopes
            inner = np.array([point for point in _critical(triple) if point < np.abs(x).max()])
            x = np.append(x, inner)
            slopes = np.concatenate([slopes, np.zeros((len(inner), len(theta)))])
            square = x * x
            slopes[:, place] += np.stack([x, x * square, x * square * square], axis=-1)
            values = x * (a + square * (b + square * c))
            final = step >= self.steps - 1
            share = 1.0 if final else self.limit / BETWEEN
            found.append((share * values, share * slopes, final))
            if not np.abs(values).max() < 1e6:  # diverged: further steps add no information
                break
        return (
            np.concatenate([values for values, _, _ in found]),
            np.concatenate([slopes for _, slopes, _ in found]),
            np.concatenate([np.full(len(values), final) for values, _, final in found]),
        )

    def _reach(self, theta: Array) -> float:
        return float(np.abs(self._extremes(theta)[0]).max())


def _step(triple: Coefficients, x: float) -> float:
    a, b, c = triple
    return x * (a + x * x * (b + x * x * c))


def _critical(triple: Coefficients) -> list[float]:
    """Return the positive x at which the derivative a + 3 b x² + 5 c x⁴ is zero."""
    a, b, c = triple
    inner = 9 * b * b - 20 * a * c
    if inner < 0:
        return []
    # The two roots in x² are q / (5c) and a / q. Neither cancels. If c is 0, there is only the second.
    q = -(3 * b + math.copysign(math.sqrt(inner), b)) / 2
    squares = ([q / (5 * c)] if c else []) + ([a / q] if q else [])
    return [math.sqrt(square) for square in squares if square > 0]


def _extremes(triple: Coefficients, reach: float) -> list[float]:
    return [x for x in _critical(triple) if x < reach] + [reach]


def _triples(theta: Array, steps: int) -> tuple[Coefficients, ...]:
    rows = [(float(a), float(b), float(c)) for a, b, c in theta.reshape(-1, 3)]
    return tuple(rows) if len(rows) == steps else (rows[0],) * steps


def _starts(start: Sequence[Coefficients] | None, steps: int, shared: bool) -> list[tuple[Array, float]]:
    """Return the starts of the search, and the first penalty of each.

    There are many minima. The steep start is for wide spectra, and the other start is calm. A soft penalty lets the
    search overshoot and move further away, as rectangular spectra need; a firm penalty stays near, as square spectra
    need.
    """
    if shared:
        starts = [(np.array(triple), _FIRM) for triple in _SHARED_STARTS]
    else:
        steep = np.ravel(resolve("robust", steps))
        calm = np.ravel(_CALM[-steps:] + (CONTRACTING,) * (steps - len(_CALM)))
        starts = [(steep, _FIRM), (steep, _SOFT), (calm, _SOFT)]
    if start is not None:
        theta = np.asarray(start, np.float64)
        if theta.shape not in ((steps, 3), (1, 3)) or not np.isfinite(theta).all():
            raise ValueError(f"start must hold one finite (a, b, c) per step, got {start!r} for steps={steps}")
        starts.append((theta.mean(axis=0) if shared else np.broadcast_to(theta, (steps, 3)).ravel(), _FIRM))
    return starts


def _check(steps: int, limit: float, noise: float, anchor: float, horizon: int, shared: bool) -> None:
    whole_number("steps", steps, 1)
    if not (math.isfinite(limit) and limit >= 1):
        raise ValueError(f"limit must be at least 1, got {limit!r}")
    if not 0 <= noise < 1:
        raise ValueError(f"noise must lie in [0, 1), got {noise!r}")
    if not (math.isfinite(anchor) and anchor >= 0):
        raise ValueError(f"anchor must not be negative, got {anchor!r}")
    if horizon < steps or (horizon > steps and not shared):
        raise ValueError(f"horizon must be {steps}{' or more' if shared else ''} for steps={steps}, got {horizon!r}")


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    shares = [float(weight) for weight in weights]
    if len(shares) != count or not all(math.isfinite(share) and share >= 0 for share in shares):
        raise ValueError(f"weights must be {count} numbers, none negative, got {weights!r}")
    return shares
