"""The plan of a Newton-Schulz iteration: the form and the precision of every step, from the shape and the dtype.

The plan depends neither on the values of a matrix nor on the number of matrices in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from root_dash.checks import one_of

IterationForm: TypeAlias = Literal["auto", "standard", "gram"]
FORMS: tuple[IterationForm, ...] = get_args(IterationForm)

# Steps in Gram space before R is computed from X again. Rounding makes eigenvalues of R negative that should be 0, and
# each step multiplies them by a²: by 8e4 in all, in the four updates of R in five steps of "robust". In bfloat16 three
# steps end with a singular value of 1.2 on spectra from 1 to 1e-3, so bfloat16 takes no steps in Gram space; on a GPU
# float16 is as fast.
_RUN = {torch.float64: 5, torch.float32: 5, torch.float16: 2}

# The least rows for which saving the time of float32 pays, and for which a second step in float32 is needed to keep the
# error on Gaussian square matrices under 0.05.
_MIXED_ROWS = 128
_TWO_WIDE_STEPS_ROWS = 1024

# The least ratio of the longer to the shorter side for which a detour through square matrices is cheaper.
_ASPECT = 2

# The most steps on a Cholesky factor: the factor lacks singular values under 1e-3, which more steps would bring up.
_FACTOR_STEPS = 5

# Whether this CPU has instructions for bfloat16 products; False if torch cannot tell. The CPU is asked once, because a
# compiler that traces `plan` cannot ask.
CPU_MULTIPLIES_BFLOAT16: bool = any(
    getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)


class Stage(NamedTuple):
    """Consecutive steps of one form.

    `"standard"` steps X itself. `"gram"` steps X Xᵀ and applies the product of the steps to X at the end of the stage.
    `"factor"` steps the Cholesky factor of X Xᵀ and applies the result to X at the end of all stages.
    """

    form: Literal["standard", "gram", "factor"]
    steps: int
    dtype: torch.dtype  # dtype of X, or of its factor, and of the products
    squares: torch.dtype  # dtype of the product A², which affects singular values but no singular vectors


def plan(
    short: int,
    long: int,
    steps: int,
    dtype: torch.dtype | None,
    algorithm: IterationForm,
    given: torch.dtype,
    device: str,
) -> tuple[Stage, ...]:
    """Return the stages for a matrix of these sides: at least one, with `steps` steps in all.

    On CUDA both formats of half precision cost the same. Steps in Gram space use float16, which has more bits; the
    standard form uses bfloat16, which stays finite if the coefficients let X grow.

    Raises:
        TypeError: an algorithm that is no string.
        ValueError: an unknown algorithm, or `"gram"` in a dtype that is too coarse for it.
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
    """Return whether X keeps its bits until the first step, so that a σ near the end of a set's range is not rounded.

    Some sets bear no error of 0.2 to 0.4 % between the steps. On diagonal matrices of 16 rows, whose roundings do not
    average out, such sets end at 2e3 to 2e10 in bfloat16, and at 1.0625 or below in float16 or with a first step in
    float32.

    Float32 does not count as fine if torch may cut it to bfloat16 for a product. When a product was cut so, diagonal
    matrices of 16 x 32 ended at 230 with `ROBUST_FINE` and at 1.058 with `ROBUST`.
    """
    first = stages[0].dtype
    return not (first == torch.bfloat16 or (first == torch.float32 and _float32_may_be_cut()))


def _float32_may_be_cut() -> bool:
    """Return whether `torch.set_float32_matmul_precision("medium")`, or the like for CPUs, may cut float32 products."""
    precision: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision == "bf16"


# A compiler that traces `is_fine` cannot ask, and takes the answer for a constant.
vars(_float32_may_be_cut)["_dynamo_marked_constant"] = True
