"""Synthetic runs for the tests of diagnosis: healthy numbers with realistic noise, and faults put into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from root_dash.records import Frame, Layer, statistic_names

NAMES = statistic_names("statistics")
COLUMN = {name: column for column, name in enumerate(NAMES)}

Sicken = Callable[[int, NDArray[np.float64]], object]
"""Changes the statistics (L, names) of a step in place."""


def layers(count: int = 8, algorithm: str = "adamw", shape: tuple[int, ...] = (32, 64)) -> tuple[Layer, ...]:
    """Return layers of one shape."""
    return tuple(Layer(f"blocks.{i}.weight", shape, algorithm, i) for i in range(count))


def run(
    watched: Sequence[Layer],
    steps: int,
    sicken: Sicken = lambda step, numbers: None,
    *,
    seed: int = 0,
    noise: float = 0.15,
    loss: Callable[[int], float] | None = None,
) -> list[Frame]:
    """Return the frames of a run: gradients fall slowly, every layer and batch adds noise, the loss falls."""
    rng = np.random.default_rng(seed)
    count, frames = len(watched), []
    own = np.exp(0.5 * rng.normal(size=count))
    for step in range(1, steps + 1):
        common = np.exp(noise * rng.normal()) * (1.0 + 20.0 / (step + 10.0))
        size = own * common * np.exp(noise * rng.normal(size=count))
        numbers = np.full((count, len(NAMES)), np.nan)
        values = {
            "grad_norm": size,
            "grad_abs_max": 0.1 * size * np.exp(noise * rng.normal(size=count)),
            "grad_kurtosis": 2.0 * np.exp(noise * rng.normal(size=count)),
            "outlier_energy": 0.1 * np.exp(noise * rng.normal(size=count)),
            "update_norm": 4.0 * np.exp(0.05 * rng.normal(size=count)),
            "weight_norm": np.full(count, 8.0),
            "update_to_weight": np.zeros(count),
            "grad_nan": np.zeros(count),
            "grad_inf": np.zeros(count),
            "grad_zero": np.zeros(count),
        }
        for name, value in values.items():
            numbers[:, COLUMN[name]] = value
        set_rate(numbers, 1e-3)
        sicken(step, numbers)
        told = 2.0 * np.exp(0.05 * rng.normal()) if loss is None else loss(step)
        frames.append(
            Frame(step, step, float(step), np.arange(count), numbers.astype(np.float32), scalars={"loss": told})
        )
    return frames


def set_rate(numbers: NDArray[np.float64], rate: float) -> None:
    """Set the learning rate that all layers' updates were scaled by."""
    numbers[:, COLUMN["update_to_weight"]] = (
        rate * numbers[:, COLUMN["update_norm"]] / numbers[:, COLUMN["weight_norm"]]
    )
