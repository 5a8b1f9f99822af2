"""Which form and which precision every Newton-Schulz step of a matrix takes: a pure function of its shape and dtype.

Nothing here looks at a matrix' values, nor at how many matrices share a batch.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

Form: TypeAlias = Literal["auto", "standard", "gram"]
FORMS: tuple[Form, ...] = get_args(Form)

# Steps in Gram space before R is computed from X again. Rounding makes eigenvalues of R that should be 0 negative, and a
# step multiplies them by a²: five steps of "robust" by 6e5 in all, to -0.06 from float32's -1e-7.
_RUN = {torch.float64: 5, torch.float32: 5, torch.float16: 2, torch.bfloat16: 2}

# Rows from which float32's time is worth saving, and from which a second step in float32 is needed for an error under
# 0.05 on Gaussian square matrices.
_MIXED_ROWS = 128
_TWO_WIDE_STEPS_ROWS = 1024


class Stage(NamedTuple):
    """Consecutive steps of one form."""

    form: Literal["standard", "gram"]
    steps: int
    dtype: torch.dtype  # of X and the products
    squares: torch.dtype  # of the product A², which decides gains and no directions


def plan(
    short: int,
    long: int,
    steps: int,
    dtype: torch.dtype | None,
    algorithm: Form,
    given: torch.dtype,
    device: str,
) -> tuple[Stage, ...]:
    """The stages for a matrix of these sides, at least one, of `steps` steps in all.

    Raises:
        ValueError: an unknown algorithm.
    """
    if algorithm not in FORMS:
        raise ValueError(f"algorithm must be one of {', '.join(map(repr, FORMS))}, got {algorithm!r}")
    if dtype is None and given == torch.float64:
        dtype = torch.float64
    mixed = dtype is None and device == "cpu" and short >= _MIXED_ROWS and _cpu_multiplies_bfloat16()
    wide = algorithm == "gram" or (algorithm == "auto" and long >= 2 * short and dtype != torch.bfloat16)
    if dtype is None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if wide:
        run = _RUN.get(dtype, 2)
        lengths = [run] * (steps // run) + [steps % run] * (steps % run > 0)
        return tuple(Stage("gram", length, dtype, dtype) for length in lengths or [0])
    if mixed:
        first = min(steps, 2 if short >= _TWO_WIDE_STEPS_ROWS else 1)
        stages = [Stage("standard", first, torch.float32, torch.bfloat16 if first == 1 else torch.float32)]
        if steps > first:
            stages.append(Stage("standard", steps - first, torch.bfloat16, torch.bfloat16))
        return tuple(stages)
    return (Stage("standard", steps, dtype, dtype),)


@cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; where torch cannot tell, no."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False
