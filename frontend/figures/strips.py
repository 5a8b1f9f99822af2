"""Scalars over the steps: which are shown, in which strip, and the label at the end of each curve."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from root_dash.frontend import theme as colours
from root_dash.frontend.figures.base import plain
from root_dash.frontend.numbers import count, value
from root_dash.records import History

COLOURS = (colours.BLUE, colours.AMBER, colours.PURPLE, colours.GREEN)
MOST = 8
"""Scalars that are shown at once."""
_BY_DEFAULT = 4
"""Losses that are shown if the user chose no scalar."""

_LOSSES = ("loss", "ce", "nll", "perplexity", "ppl", "bpb")
_RATES = ("lr", "learning")
_RANK = (*_LOSSES, "acc", "accuracy", *_RATES)


def ordered(names: Sequence[str]) -> list[str]:
    """Return names of scalars with the losses first, then accuracies, then learning rates, then the others."""

    def rank(name: str) -> tuple[int, int, bool, str]:
        parts = _parts(name)
        found = min((_RANK.index(part) for part in parts if part in _RANK), default=len(_RANK))
        return found, len(parts), not {"train", "loss"} & set(parts), name.lower()

    return sorted(names, key=rank)


def chosen(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the names to show of a run's scalars: what the user wants, or the losses and the learning rate.

    A run that logged neither shows its first scalar.
    """
    kept = [name for name in dict.fromkeys(wanted) if name in names][:MOST]
    if kept:
        return kept
    all_ = ordered(names)
    losses = [name for name in all_ if family(name) in _LOSSES][:_BY_DEFAULT]
    rates = [name for name in all_ if set(_parts(name)) & set(_RATES)][:1]
    return (losses or [name for name in all_ if name not in rates][:1]) + rates


def family(name: str) -> str:
    """Return what a scalar has in common with those that share its axis: `loss` of `val_loss` and `loss/train`."""
    parts = _parts(name)
    return next((part for part in parts if part in _LOSSES), parts[-1])


def strips(scalars: Sequence[History]) -> list[list[History]]:
    """Return scalars in strips: one for each family, in the order of the first of each."""
    found: dict[str, list[History]] = {}
    for scalar in scalars:
        found.setdefault(family(scalar.name), []).append(scalar)
    return list(found.values())


def span(scalars: Sequence[History], *, log: bool) -> tuple[float, float]:
    """Return the range of an axis that holds all finite values; in powers of ten if the axis is logarithmic."""
    values = np.concatenate([np.asarray(scalar.values, np.float64) for scalar in scalars])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if log:
        values = np.log10(values)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    space = 0.08 * (high - low) or (0.3 if log else 0.2 * abs(high) or 0.5)
    return low - space, high + space


def ends(scalars: Sequence[History], middle: float, *, log: bool) -> list[tuple[str, str, float]]:
    """Return the label of each curve: name and last value, colour, height (`middle` if no value can be drawn).

    If the last value is not finite, the label says since which step.
    """
    found = []
    for scalar, colour in zip(scalars, colours_of(scalars), strict=True):
        if not len(scalar.steps):
            continue
        values = np.asarray(scalar.values, np.float64)
        last, finite = float(values[-1]), np.flatnonzero(np.isfinite(values))
        text = f"{plain(short(scalar.name))} {'NaN' if np.isnan(last) else value(last)}"
        if not np.isfinite(last):
            about = "about " if scalar.total > len(scalar.steps) else ""  # the curve does not show every step
            text += (
                f"<br>since {about}{count(int(scalar.steps[finite[-1] + 1]))}" if len(finite) else "<br>at every step"
            )
        drawn = finite[values[finite] > 0] if log else finite
        height = float(values[drawn[-1]]) if len(drawn) else middle
        found.append((text, colour, float(np.log10(height)) if log and len(drawn) else height))
    return found


def colours_of(scalars: Sequence[History]) -> list[str]:
    """Return the colours of the curves of a strip."""
    return [COLOURS[at % len(COLOURS)] for at in range(len(scalars))]


def short(name: str, most: int = 12) -> str:
    """Return a name that fits at the end of a curve."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _parts(name: str) -> list[str]:
    """Return the words of a name in lower case: `val` and `loss` of `val_loss`, `Val/Loss` and `valLoss`."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    return [word.lower() for word in words] or [name.lower()]
