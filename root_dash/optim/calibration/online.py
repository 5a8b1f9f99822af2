"""AdaNewton online: coefficient sets that follow the spectra of the run, fitted beside it and adopted when better.

Every so many steps one matrix per shape is looked at. Its Gram matrix is formed on its device and sent to the host
without stopping either; the rest, from the eigenvalues to the verdict, is the work of a background thread. The result
is taken a fixed number of steps later, waited for where it must be, so that a run's bits do not depend on how fast the
machine was, and a resumed run goes on with the same ones.

What is fitted to is a mixture of the newest spectra of the run and of random ones of the same shape (He et al., arXiv
2511.20626, mix 1:3). Every third real spectrum, the newest among them, is held out. Errors are weighed against those
that the starting set leaves: a hard spectrum, of which no set makes much, would else outweigh all others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from root_dash.coefficients.tables import Coefficients, Normalization, check_normalization, resolve
from root_dash.kernels.host_copy import to_host
from root_dash.optim.calibration.background import Job

Shape: TypeAlias = tuple[int, int]
Proposal: TypeAlias = list[float]
"""A set that may be adopted, as plain numbers: its coefficients, step by step, then the mean polar errors on held-out
spectra before and after, and its supremum with noise."""

PAPER_MIXTURE = (1.0, 3.0)
"""Weights of real and of random spectra in a fit, as the paper has them."""

_GAIN, _LEAST = 0.01, 1e-3  # relative and absolute: a change for less is not worth an event
_ANCHOR = 0.02  # spectra drift: more weight on what none of the fitted ones holds than a fit gives by itself
_RANDOM, _RANDOM_HELD = 4, 2
_PATIENCE = 16  # a shape whose set stays is looked at half as often each time, down to every so many turns


@dataclass(frozen=True, slots=True)
class Change:
    """That a shape's set was replaced: when, by what, and why."""

    step: int
    shape: Shape
    """(m, n) with m <= n."""
    before: tuple[Coefficients, ...]
    after: tuple[Coefficients, ...]
    error_before: float
    """Mean polar error on real spectra that the new set was not fitted to, of the old one."""
    error_after: float
    """The same of the new one."""
    supremum: float
    """The largest singular value that the new set can make of any matrix, with noise between the steps."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    spectrum: Array | None  # None where the matrix was zero or not finite
    proposal: Proposal | None


@dataclass(slots=True)
class _Line:
    """What is known of one shape."""

    coefficients: tuple[Coefficients, ...]
    fine: bool  # what the set may rely on
    spectra: list[Array] = field(default_factory=list)  # of the run, the newest first
    offered: int = 0
    patience: int = 1  # turns from one calibration to the next
    pending: Job[_Outcome] | _Outcome | None = None

    def outcome(self) -> _Outcome | None:
        """What the pending calibration came to, waited for; None where there is none, or where it failed."""
        if not isinstance(self.pending, Job):
            return self.pending
        try:
            return self.pending.result()
        except Exception as error:  # a set that could not be fitted is no reason to end a training
            warnings.warn(f"a calibration failed, its set stays as it is: {error!r}", RuntimeWarning, stacklevel=2)
            return None


class Calibration:
    """The sets of one parameter group, by matrix shape (m, n) with m <= n.

    In every step call `take`, then `apply` its result, on which several processes must agree first. After the step, if
    a calibration is `due`, `offer` one matrix per shape.

    Args:
        form: `"adaptive"`, a triple per step, or `"adanewton"`, the paper's one triple in all steps.
        steps: number of Newton-Schulz steps.
        normalization: what the iteration divides by.
        every: steps between two calibrations.
        lag: steps after which the result of one is taken; half of `every` by default.
        mixture: weights of real and of random spectra in a fit.
        reservoir: real spectra kept per shape.

    Raises:
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
        check_normalization(normalization)
        resolve(form, steps)  # refuses steps that there is no set for
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
        self._lines: dict[Shape, _Line] = {}

    @property
    def width(self) -> int:
        """The number of numbers in a `Proposal`."""
        return 3 * self.steps + 3

    def coefficients(self, shape: Shape, *, fine: bool = False) -> tuple[Coefficients, ...]:
        """The set that matrices of a shape are stepped with, in arithmetic that is `fine` (`plan.is_fine`) or not.

        Where it no longer is, or not for all matrices of the shape, a set that relies on it gives way to the start.
        """
        line = self._lines.get(_short_first(shape))
        if line is None:
            return self._start(fine)
        if line.fine and not fine:
            line.fine = False
            if not self._bounds(fine).hold(line.coefficients):
                line.coefficients = self._start(fine)
        return line.coefficients

    def due(self, step: int) -> bool:
        """Whether matrices are to be offered at a step."""
        return step > 0 and step % self.every == 0

    def wants(self, step: int, shape: Shape, *, now: bool = False) -> bool:
        """Whether a matrix of that shape is of use at a step that is `due`: not while a calibration is on its way, and,
        unless it is to be `now`, the less often the more of them in a row have left the set as it was.
        """
        line = self._lines.get(_short_first(shape))
        return line is None or (
            line.pending is None and (now or line.offered == 0 or step >= line.offered + line.patience * self.every)
        )

    def offer(self, step: int, shape: Shape, base: Tensor, *, fine: bool = False, now: bool = False) -> None:
        """Begin a calibration of a shape on one matrix of it, where it `wants` one.

        `base` (m, n) is what is about to be orthogonalized. It may change as soon as this returns, and no device is
        waited for.
        """
        if not self.wants(step, shape, now=now):
            return
        rows, cols = base.shape
        short = base.detach() if rows <= cols else base.detach().mT
        wide = (short if short.device.type in ("cpu", "cuda") else short.cpu()).double()
        host, wait = to_host(wide @ wide.mT)

        def spectrum() -> Array | None:
            wait()
            return _singular_values(host.numpy())

        self._begin(step, shape, spectrum, fine=fine, now=now)

    def take(self, step: int) -> dict[Shape, Proposal | None]:
        """What the calibrations that are due at a step came to, by shape: a set to adopt or None; waits for them.

        `apply` it, or what another process made of its own.
        """
        proposals: dict[Shape, Proposal | None] = {}
        for shape, line in sorted(self._lines.items()):
            if line.pending is None or step < line.offered + self.lag:
                continue
            outcome = line.outcome()
            line.pending = None
            if outcome is not None and outcome.spectrum is not None:
                line.spectra = [outcome.spectrum, *line.spectra][: self.reservoir]
            proposals[shape] = None if outcome is None else outcome.proposal
        return proposals

    def apply(self, step: int, proposals: Mapping[Shape, Sequence[float] | None]) -> list[Change]:
        """Put proposed sets in place; one that breaks this form's bounds is left aside.

        Raises:
            ValueError: a proposal of the wrong length.
        """
        changes = []
        for given, proposal in proposals.items():
            shape = _short_first(given)
            line = self._line(shape)
            stays = proposal is None and len(line.spectra) > 1  # with one there was nothing to fit to yet
            line.patience = min(2 * line.patience, _PATIENCE) if stays else 1
            if proposal is None:
                continue
            if len(proposal) != self.width:
                raise ValueError(
                    f"a proposal must hold {self.width} numbers for steps={self.steps}, got {len(proposal)}"
                )
            numbers = [float(number) for number in proposal]
            after = tuple((numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, 3 * self.steps, 3))
            if not self._bounds(line.fine).hold(after):
                continue
            changes.append(Change(step, shape, line.coefficients, after, *numbers[-3:]))
            line.coefficients = after
        return changes

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as numbers, strings, lists and float64 tensors; waits for what is on its way."""
        return {
            "form": self.form,
            "steps": self.steps,
            "normalization": self.normalization,
            "every": self.every,
            "lag": self.lag,
            "mixture": list(self.mixture),
            "reservoir": self.reservoir,
            "shapes": [_pack(shape, line) for shape, line in sorted(self._lines.items())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Cadence and mixture stay this calibration's own; an empty state starts afresh.

        Raises:
            ValueError: the state is that of another form, number of steps or normalization.
        """
        for name in ("form", "steps", "normalization"):
            if state and state[name] != getattr(self, name):
                raise ValueError(f"{name} must be {getattr(self, name)!r} as in this calibration, got {state[name]!r}")
        self._lines = dict(_unpack(packed) for packed in state.get("shapes", ()))

    def _line(self, shape: Shape, fine: bool = False) -> _Line:
        return self._lines.setdefault(shape, _Line(self._start(fine), fine))

    def _begin(
        self, step: int, shape: Shape, spectrum: Callable[[], Array | None], *, fine: bool = False, now: bool = False
    ) -> None:
        shape = _short_first(shape)
        if not self.wants(step, shape, now=now):
            return
        line = self._line(shape, fine)
        known, current, fine = tuple(line.spectra[: self.reservoir - 1]), line.coefficients, line.fine

        def compute() -> _Outcome:
            newest = spectrum()
            if newest is None:
                return _Outcome(None, None)
            return _Outcome(newest, self._propose(shape, [newest, *known], current, fine))

        line.offered, line.pending = step, Job(compute)

    def _propose(
        self, shape: Shape, spectra: list[Array], current: tuple[Coefficients, ...], fine: bool
    ) -> Proposal | None:
        """A set fitted to part of the spectra that is better than the current one on the rest; None if it is not."""
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
        if self.mixture[1] > 0:  # nor may random matrices be worse off than at the start
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
def _random(shape: Shape) -> tuple[list[Array], list[Array]]:
    """Random spectra of a shape, to fit to and to hold out: always the same."""
    spectra = random_spectra(shape, _RANDOM + _RANDOM_HELD, np.random.default_rng(shape))
    return spectra[:_RANDOM], spectra[_RANDOM:]


def _short_first(shape: Shape) -> Shape:
    rows, cols = shape
    return (rows, cols) if rows <= cols else (cols, rows)


def _singular_values(gram: NDArray[np.float64]) -> Array | None:
    """Singular values, descending, from the Gram matrix; None where it is zero, empty or not finite."""
    if not (gram.size and np.isfinite(gram).all() and gram.any()):
        return None
    try:
        squares = np.asarray(np.linalg.eigvalsh(gram)[::-1], np.float64)
        return np.sqrt(np.maximum(squares, 0.0))
    except np.linalg.LinAlgError:
        return None


def _pack(shape: Shape, line: _Line) -> dict[str, Any]:
    outcome = line.outcome()
    return {
        "shape": list(shape),
        "coefficients": [list(triple) for triple in line.coefficients],
        "fine": line.fine,
        "spectra": [_tensor(spectrum) for spectrum in line.spectra],
        "patience": line.patience,
        "offered": line.offered,
        "pending": None
        if outcome is None
        else {
            "spectrum": None if outcome.spectrum is None else _tensor(outcome.spectrum),
            "proposal": None if outcome.proposal is None else list(outcome.proposal),
        },
    }


def _unpack(packed: Mapping[str, Any]) -> tuple[Shape, _Line]:
    rows, cols = packed["shape"]
    pending = packed["pending"]
    return (int(rows), int(cols)), _Line(
        coefficients=tuple((float(a), float(b), float(c)) for a, b, c in packed["coefficients"]),
        fine=bool(packed.get("fine", False)),  # absent before it was told apart
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
