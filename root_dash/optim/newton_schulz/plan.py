"""Which form and which precision every Newton-Schulz step of a matrix takes: a pure function of its shape and dtype.

Nothing here looks at a matrix' values, nor at how many matrices share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from root_dash.checks import one_of

IterationForm: TypeAlias = Literal["auto", "standard", "gram"]
FORMS: tuple[IterationForm, ...] = get_args(IterationForm)

# Steps in Gram space before R is computed from X again. Rounding makes eigenvalues of R that should be 0 negative, and
# a step multiplies them by a²: the four updates of R in five steps of "robust" by 8e4 in all. Three steps in bfloat16
# end with a singular value of 1.2 on spectra from 1 to 1e-3: it has no run, and float16 is as fast where that matters.
_RUN = {torch.float64: 5, torch.float32: 5, torch.float16: 2}

# Rows from which float32's time is worth saving, and from which a second step in float32 is needed for an error under
# 0.05 on Gaussian square matrices.
_MIXED_ROWS = 128
_TWO_WIDE_STEPS_ROWS = 1024

# Longer side by shorter from which a detour over square matrices is cheaper.
_ASPECT = 2

# Steps up to which a factor serves: what more of them would make of singular values under 1e-3 is not in it.
_FACTOR_STEPS = 5

# Whether this CPU has instructions for bfloat16 products; where torch cannot tell, no. Asked once: a compiler, which
# traces `plan`, cannot ask.
CPU_MULTIPLIES_BFLOAT16: bool = any(
    getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)


class Stage(NamedTuple):
    """Consecutive steps of one form.

    `"standard"` steps X itself; `"gram"` steps X Xᵀ, and X by what has come of it; `"factor"` steps the Cholesky factor
    of X Xᵀ, and X by what has come of that at the end of all steps.
    """

    form: Literal["standard", "gram", "factor"]
    steps: int
    dtype: torch.dtype  # of X, or its factor, and the products
    squares: torch.dtype  # of the product A², which decides gains and no directions


def plan(
    short: int,
    long: int,
    steps: int,
    dtype: torch.dtype | None,
    algorithm: IterationForm,
    given: torch.dtype,
    device: str,
) -> tuple[Stage, ...]:
    """The stages for a matrix of these sides, at least one, of `steps` steps in all.

    On CUDA half precision costs the same in either format: Gram space takes float16, for its bits, and the standard
    form bfloat16, which stays finite if the coefficients let X grow.

    Raises:
        ValueError: an unknown algorithm, or `"gram"` in a dtype too coarse for it.
    """
    one_of("algorithm", algorithm, FORMS)
    if algorithm == "gram" and dtype is not None and dtype not in _RUN:
        raise ValueError(f"algorithm must not be 'gram' with products in {dtype}, which are too coarse for it")
    if dtype is None and given == torch.float64:
        dtype = torch.float64
    mixed = algorithm == "auto" and dtype is None and device == "cpu" and short >= _MIXED_ROWS
    wide = long >= _ASPECT * short
    if mixed and CPU_MULTIPLIES_BFLOAT16 and not (wide and steps > _FACTOR_STEPS):
        form: Literal["standard", "factor"] = "factor" if wide else "standard"
        first = min(steps, 2 if short >= _TWO_WIDE_STEPS_ROWS else 1)
        squares = torch.bfloat16 if short < _TWO_WIDE_STEPS_ROWS else torch.float32
        late = Stage(form, steps - first, torch.bfloat16, torch.bfloat16)
        return (Stage(form, first, torch.float32, squares), *([late] if late.steps else []))
    if algorithm == "gram" or (algorithm == "auto" and wide and (dtype is None or dtype in _RUN)):
        dtype = dtype or (torch.float16 if device == "cuda" else torch.float32)
        run = _RUN[dtype]
        lengths = [run] * (steps // run) + [steps % run] * (steps % run > 0)
        return tuple(Stage("gram", length, dtype, dtype) for length in lengths or [0])
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    return (Stage("standard", steps, dtype, dtype),)


def is_fine(stages: Sequence[Stage]) -> bool:
    """Whether X keeps its bits until the first step is taken: a σ near the end of a set's range must not be rounded.

    On diagonal matrices of 16 rows, whose roundings do not average out, sets for which 0.2 to 0.4 % between the steps
    is too much end at 2e3 to 2e10 in bfloat16, and at 1.0625 or below in float16 or with a first step in float32.

    Nor is float32 where torch may cut it to bfloat16 for a product. With that imitated, diagonal matrices of 16 x 32
    end at 230 with `ROBUST_FINE` and at 1.058 with `ROBUST`.
    """
    first = stages[0].dtype
    return not (first == torch.bfloat16 or (first == torch.float32 and _float32_may_be_cut()))


def _float32_may_be_cut() -> bool:
    """Whether `torch.set_float32_matmul_precision("medium")`, or its like for CPUs, lets float32 products be cut."""
    precision: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision == "bf16"


# A compiler that traces `is_fine` takes the answer for a constant: it cannot ask.
vars(_float32_may_be_cut)["_dynamo_marked_constant"] = True
