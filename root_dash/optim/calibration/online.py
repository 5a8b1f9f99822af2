"""AdaNewton online: coefficient sets that are fitted to the spectra of a run while it trains, and adopted when better.

At regular steps the optimizer offers a matrix of each shape. The Gram matrix is formed on the device and sent to the
host, and neither has to wait. A background thread computes the eigenvalues, fits a set and decides. The result is taken
a fixed number of steps later. If the result is not ready, the step waits. So the bits of a run do not depend on the
speed of the machine, and a resumed run goes on with the same bits.

A set is fitted to a mixture of the newest spectra of the run and random spectra of the same shape (He et al., arXiv
2511.20626, mix 1:3). Every third real spectrum, the newest among them, is held out. The error on each spectrum is
divided by the error of the starting set on the spectrum. Otherwise a hard spectrum, on which no set is good, would
outweigh all others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from root_dash.checks import one_of
from root_dash.coefficients.bounds import Bounds, OnlineForm
from root_dash.coefficients.fit import fit
from root_dash.coefficients.spectra import Array, polar_error, random_spectra
from root_dash.coefficients.tables import NORMALIZATIONS, Coefficients, Normalization, resolve
from root_dash.kernels.host_copy import to_host
from root_dash.optim.calibration.background import Job

MatrixShape: TypeAlias = tuple[int, int]
Proposal: TypeAlias = list[float]
"""A proposed set as plain numbers: the coefficients, step by step, then the mean polar errors on held-out spectra
before and after the change, and the supremum of the set with noise."""

PAPER_MIXTURE = (1.0, 3.0)
"""Weights of real and of random spectra in a fit, as in the paper."""

_GAIN, _LEAST = 0.01, 1e-3  # the least relative and absolute gain of the polar error for which a set is replaced
_ANCHOR = 0.02  # spectra drift, so singular values outside the fitted spectra weigh more than by default
_RANDOM, _RANDOM_HELD = 4, 2  # random spectra to fit to, and to hold out
_PATIENCE = 16  # the most turns between two calibrations of a shape; they double each time the set stays


@dataclass(frozen=True, slots=True)
class Change:
    """The replacement of the coefficient set of one matrix shape."""

    step: int
    shape: MatrixShape
    """(m, n) with m <= n."""
    before: tuple[Coefficients, ...]
    after: tuple[Coefficients, ...]
    error_before: float
    """Mean polar error of the old set on real spectra outside the fit of the new set."""
    error_after: float
    """Mean polar error of the new set on the same spectra."""
    supremum: float
    """The largest singular value that the new set can give any matrix, with noise between the steps."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of one calibration."""

    spectrum: Array | None  # None if the matrix was zero or not finite
    proposal: Proposal | None


@dataclass(slots=True)
class _ShapeState:
    """The set of one shape, and the spectra to which the next set is fitted."""

    coefficients: tuple[Coefficients, ...]
    fine: bool  # whether the set may rely on fine arithmetic (`plan.is_fine`)
    spectra: list[Array] = field(default_factory=list)  # spectra of the run, the newest first
    offered: int = 0  # the step of the last offer
    patience: int = 1  # turns from one calibration to the next
    pending: Job[_Outcome] | _Outcome | None = None

    def outcome(self) -> _Outcome | None:
        """Wait for the pending calibration and return its result; None if no calibration is pending or it failed."""
        if not isinstance(self.pending, Job):
            return self.pending
        try:
            return self.pending.result()
        except Exception as error:  # a failed fit is no reason to end a training
            warnings.warn(f"a calibration failed, its set stays as it is: {error!r}", RuntimeWarning, stacklevel=2)
            return None


class Calibration:
    """The coefficient sets of one parameter group, one for each matrix shape (m, n) with m <= n.

    In every step call `take`, then `apply` the proposals, on which several processes must agree first. After the step,
    if a calibration is `due`, `offer` one matrix per shape.

    Args:
        form: `"adaptive"`, a triple per step, or `"adanewton"`, the paper's single triple for all steps.
        steps: number of Newton-Schulz steps.
        normalization: the norm by which the iteration divides.
        every: steps between two calibrations.
        lag: steps from an offer to the use of its result; half of `every` by default.
        mixture: weights of real and of random spectra in a fit.
        reservoir: real spectra kept per shape.

    Raises:
        TypeError: a name of a wrong type, or `steps` is no integer.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        form: OnlineForm,
        steps: int,
        *,
        normalization: Normalization = "schatten8",
        every: int = 100,
        lag: int | None = None,
        mixture: tuple[float, float] = PAPER_MIXTURE,
        reservoir: int = 8,
    ) -> None:
        one_of("form", form, get_args(OnlineForm))
        one_of("normalization", normalization, NORMALIZATIONS)
        resolve(form, steps)  # checks the steps
        lag = max(1, every // 2) if lag is None else lag
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        if not 1 <= lag <= every:
            raise ValueError(f"lag must lie between 1 and every={every}, got {lag!r}")
        if reservoir < 2:
            raise ValueError(f"reservoir must be at least 2, one to fit and one to hold out, got {reservoir!r}")
        real, random = mixture
        if not (real >= 0 and random >= 0 and 0 < real + random < math.inf):
            raise ValueError(f"mixture must be two weights, none negative and one positive, got {mixture!r}")
        self.form, self.steps, self.normalization = form, steps, normalization
        self.every, self.lag, self.reservoir = every, lag, reservoir
        self.mixture = (float(real), float(random))
        self._shapes: dict[MatrixShape, _ShapeState] = {}

    @property
    def width(self) -> int:
        """The length of a `Proposal`."""
        return 3 * self.steps + 3

    def coefficients(self, shape: MatrixShape, *, fine: bool = False) -> tuple[Coefficients, ...]:
        """Return the set for matrices of a shape, in arithmetic that is `fine` (`plan.is_fine`) or not.

        If matrices of the shape are stepped in coarser arithmetic than before, a set that relies on fine arithmetic is
        replaced by the starting set.
        """
        state = self._shapes.get(_short_first(shape))
        if state is None:
            return self._start(fine)
        if state.fine and not fine:
            state.fine = False
            if not self._bounds(fine).hold(state.coefficients):
                state.coefficients = self._start(fine)
        return state.coefficients

    def due(self, step: int) -> bool:
        """Return whether matrices are to be offered at a step."""
        return step > 0 and step % self.every == 0

    def wants(self, step: int, shape: MatrixShape, *, now: bool = False) -> bool:
        """Return whether a matrix of this shape is of use at a step that is `due`.

        A shape with a pending calibration wants no matrix. A shape whose set stayed wants matrices less and less often,
        unless `now` is given.
        """
        state = self._shapes.get(_short_first(shape))
        return state is None or (
            state.pending is None and (now or state.offered == 0 or step >= state.offered + state.patience * self.every)
        )

    def offer(self, step: int, shape: MatrixShape, base: Tensor, *, fine: bool = False, now: bool = False) -> None:
        """Begin a calibration of a shape with one of its matrices, if the shape `wants` a matrix.

        `base` (m, n) is about to be orthogonalized. The caller may change `base` when this function returns. The host
        does not wait for the device.
        """
        shape = _short_first(shape)
        if not self.wants(step, shape, now=now):
            return
        state = self._state(shape, fine)
        known, current, fine = tuple(state.spectra[: self.reservoir - 1]), state.coefficients, state.fine
        rows, cols = base.shape
        short = base.detach() if rows <= cols else base.detach().mT
        wide = (short if short.device.type in ("cpu", "cuda") else short.cpu()).double()
        host, wait = to_host(wide @ wide.mT)

        def compute() -> _Outcome:
            wait()
            newest = _singular_values(host.numpy())
            if newest is None:
                return _Outcome(None, None)
            return _Outcome(newest, self._propose(shape, [newest, *known], current, fine))

        state.offered, state.pending = step, Job(compute)

    def take(self, step: int) -> dict[MatrixShape, Proposal | None]:
        """Wait for the calibrations that are due at a step, and return each shape's proposal, or None, for `apply`."""
        proposals: dict[MatrixShape, Proposal | None] = {}
        for shape, state in sorted(self._shapes.items()):
            if state.pending is None or step < state.offered + self.lag:
                continue
            outcome = state.outcome()
            state.pending = None
            if outcome is not None and outcome.spectrum is not None:
                state.spectra = [outcome.spectrum, *state.spectra][: self.reservoir]
            proposals[shape] = None if outcome is None else outcome.proposal
        return proposals

    def apply(self, step: int, proposals: Mapping[MatrixShape, Sequence[float] | None]) -> list[Change]:
        """Put proposed sets in place and return the changes. A set that breaks the bounds of this form is ignored.

        Raises:
            ValueError: a proposal of the wrong length.
        """
        changes = []
        for given, proposal in proposals.items():
            shape = _short_first(given)
            state = self._state(shape)
            stays = proposal is None and len(state.spectra) > 1  # from a single spectrum no set can be fitted
            state.patience = min(2 * state.patience, _PATIENCE) if stays else 1
            if proposal is None:
                continue
            if len(proposal) != self.width:
                raise ValueError(
                    f"a proposal must hold {self.width} numbers for steps={self.steps}, got {len(proposal)}"
                )
            numbers = [float(number) for number in proposal]
            after = tuple((numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, 3 * self.steps, 3))
            if not self._bounds(state.fine).hold(after):
                continue
            changes.append(Change(step, shape, state.coefficients, after, *numbers[-3:]))
            state.coefficients = after
        return changes

    def state_dict(self) -> dict[str, Any]:
        """Wait for pending calibrations, and return the whole state as numbers, strings, lists and float64 tensors."""
        return {
            "form": self.form,
            "steps": self.steps,
            "normalization": self.normalization,
            "every": self.every,
            "lag": self.lag,
            "mixture": list(self.mixture),
            "reservoir": self.reservoir,
            "shapes": [_pack(shape, state) for shape, state in sorted(self._shapes.items())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state. `every`, `lag` and `mixture` stay as they are. An empty state means a fresh start.

        Raises:
            ValueError: the state has another form, number of steps or normalization.
        """
        for name in ("form", "steps", "normalization"):
            if state and state[name] != getattr(self, name):
                raise ValueError(f"{name} must be {getattr(self, name)!r} as in this calibration, got {state[name]!r}")
        self._shapes = dict(_unpack(packed) for packed in state.get("shapes", ()))

    def _state(self, shape: MatrixShape, fine: bool = False) -> _ShapeState:
        return self._shapes.setdefault(shape, _ShapeState(self._start(fine), fine))

    def _propose(
        self, shape: MatrixShape, spectra: list[Array], current: tuple[Coefficients, ...], fine: bool
    ) -> Proposal | None:
        """Fit a set to two thirds of the spectra. Return the set if it beats the current set on the rest, else None."""
        held, fitted = spectra[::3], [spectrum for i, spectrum in enumerate(spectra) if i % 3]
        if not fitted:
            return None
        random, random_held = _random(shape)
        weights = [self.mixture[0] / len(fitted)] * len(fitted) + [self.mixture[1] / len(random)] * len(random)
        known, start, bounds = fitted + random, self._start(fine), self._bounds(fine)
        found = fit(
            known,
            steps=self.steps,
            shared=self.form == "adanewton",
            start=current,
            normalization=self.normalization,
            limit=bounds.aim,
            noise=bounds.noise,
            weights=[w / max(self._error(start, s), 1e-3) ** 2 for w, s in zip(weights, known, strict=True)],
            anchor=_ANCHOR,
            horizon=bounds.horizon,
        ).coefficients
        before, after = (float(np.mean([self._error(c, s) for s in held])) for c in (current, found))
        if not (before - after >= max(_GAIN * before, _LEAST) and bounds.hold(found)):
            return None
        if self.mixture[1] > 0:  # random matrices must not end worse than with the starting set
            at_start, now = (np.mean([self._error(c, s) for s in random_held]) for c in (start, found))
            if now > at_start:
                return None
        return [number for triple in found for number in triple] + [before, after, bounds.reach(found)]

    def _start(self, fine: bool) -> tuple[Coefficients, ...]:
        return resolve(self.form, self.steps, fine=fine)

    def _bounds(self, fine: bool) -> Bounds:
        return Bounds(self.form, self.steps, fine)

    def _error(self, coefficients: Sequence[Coefficients], spectrum: Array) -> float:
        return polar_error(coefficients, spectrum, self.normalization)


@lru_cache(maxsize=256)
def _random(shape: MatrixShape) -> tuple[list[Array], list[Array]]:
    """Return random spectra of a shape, to fit to and to hold out. They are always the same."""
    spectra = random_spectra(shape, _RANDOM + _RANDOM_HELD, np.random.default_rng(shape))
    return spectra[:_RANDOM], spectra[_RANDOM:]


def _short_first(shape: MatrixShape) -> MatrixShape:
    rows, cols = shape
    return (rows, cols) if rows <= cols else (cols, rows)


def _singular_values(gram: NDArray[np.float64]) -> Array | None:
    """Return singular values, descending, from a Gram matrix; None if the matrix is zero, empty or not finite."""
    if not (gram.size and np.isfinite(gram).all() and gram.any()):
        return None
    try:
        squares = np.asarray(np.linalg.eigvalsh(gram)[::-1], np.float64)
        return np.sqrt(np.maximum(squares, 0.0))
    except np.linalg.LinAlgError:
        return None


def _pack(shape: MatrixShape, state: _ShapeState) -> dict[str, Any]:
    outcome = state.outcome()
    return {
        "shape": list(shape),
        "coefficients": [list(triple) for triple in state.coefficients],
        "fine": state.fine,
        "spectra": [_tensor(spectrum) for spectrum in state.spectra],
        "patience": state.patience,
        "offered": state.offered,
        "pending": None
        if outcome is None
        else {
            "spectrum": None if outcome.spectrum is None else _tensor(outcome.spectrum),
            "proposal": None if outcome.proposal is None else list(outcome.proposal),
        },
    }


def _unpack(packed: Mapping[str, Any]) -> tuple[MatrixShape, _ShapeState]:
    rows, cols = packed["shape"]
    pending = packed["pending"]
    return (int(rows), int(cols)), _ShapeState(
        coefficients=tuple((float(a), float(b), float(c)) for a, b, c in packed["coefficients"]),
        fine=bool(packed.get("fine", False)),  # older states lack it
        spectra=[_array(spectrum) for spectrum in packed["spectra"]],
        patience=int(packed["patience"]),
        offered=int(packed["offered"]),
        pending=None
        if pending is None
        else _Outcome(
            None if pending["spectrum"] is None else _array(pending["spectrum"]),
            None if pending["proposal"] is None else [float(number) for number in pending["proposal"]],
        ),
    )


def _tensor(spectrum: Array) -> Tensor:
    return torch.tensor(spectrum, dtype=torch.float64)


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().cpu().numpy(), np.float64)
