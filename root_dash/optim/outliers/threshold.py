"""The quantile threshold and the split of M into its base and its outliers.

ROOT soft-thresholds M into outliers O = sign(M) max(|M| - ε, 0) and orthogonalizes the rest, B = M - O, which is
clamp(M, -ε, ε) exactly: one operation, and no rounding in B.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from root_dash.checks import one_of, satisfies
from root_dash.optim.outliers.radix_select import (
    bucket_center,
    partition_neighbours,
    radix_neighbours,
    topk_neighbours,
)

QuantileMethod: TypeAlias = Literal["exact", "histogram", "sampled"]
QUANTILE_METHODS: tuple[QuantileMethod, ...] = get_args(QuantileMethod)

_SAMPLE = 2**16  # the least entries of a sample
_FEW = 2**16  # the most entries for which, on a GPU, the counts of a second radix pass are larger than the matrix


def threshold(matrices: Tensor, quantile: float, method: QuantileMethod = "exact") -> Tensor:
    """Return the quantile of the magnitudes in each matrix of a batch, with NumPy's default definition.

    `matrices` is (L, ...), M or |M|, because signs are ignored. The result is (L,) of the same dtype. The quantile is
    the linear interpolation between the two order statistics around position quantile * (n - 1), with the same bits as
    `kthvalue` and `lerp` of |M|. If both order statistics are infinite, the quantile is infinite. NaN in a matrix makes
    its quantile NaN. On a GPU the host does not wait for the device, and no shape depends on the data.

    - `"exact"`: this quantile.
    - `"histogram"`: the center of the bucket of the lower order statistic, in which floats share their first 16 bits.
      In float32 the center is at most 2^-8 off (the worst of the matrices below was 0.26 % off). On a GPU this method
      takes one pass, and `"exact"` takes two; on the CPU it saves nothing. In 16-bit dtypes the center is the lower
      order statistic itself, and in float64 the center is at most 2^-21 off.
    - `"sampled"`: the exact quantile of every k-th entry, of at least 65,536 entries if there are as many. k and the
      number of columns have no common divisor, so that all columns are visited. On 30 matrices of 1024 x 2048 the
      0.9-quantile was up to 0.8 % off for normal entries, and 1.2 % for Student-t entries with two degrees of freedom.

    Raises:
        TypeError: a quantile or a method of a wrong type.
        ValueError: a quantile outside [0, 1], or an unknown method.
    """
    satisfies("outlier_quantile", quantile, "in [0, 1]", lambda q: 0 <= q <= 1)
    one_of("quantile_method", method, QUANTILE_METHODS)
    flat = matrices.detach().flatten(1)
    if method == "sampled":
        flat = flat[:, :: _stride(flat.shape[1], matrices.shape[-1])]
    n = flat.shape[1]
    if n == 0:
        return flat.new_full((len(flat),), torch.nan)
    rank, weight = _position(quantile, n)
    if flat.is_cpu and not torch.compiler.is_compiling():
        pair = partition_neighbours(flat, rank)
    elif n <= _FEW:
        pair = topk_neighbours(flat, rank)
    else:
        pair = radix_neighbours(flat, rank, coarse=method == "histogram")
    return _between(pair, weight, method)


def _position(quantile: float, n: int) -> tuple[int, float]:
    """Return the rank of the order statistic below the quantile, from 0, and the weight of the next order statistic."""
    position = quantile * (n - 1)
    rank = int(position)
    return rank, position - rank


def _between(pair: Tensor, weight: float, method: QuantileMethod) -> Tensor:
    """Return the quantile (L,) by a method from two neighbouring order statistics (L, 2)."""
    lower, upper = pair.unbind(1)
    if method == "histogram":
        return bucket_center(lower)
    if weight == 0:
        return lower
    # lerp of infinite numbers is NaN.
    return torch.where(upper.isinf(), upper, lower.lerp(upper, weight))


def _stride(n: int, columns: int) -> int:
    """Return the longest step through n entries that leaves a full sample and is prime to the number of columns."""
    stride = max(n // _SAMPLE, 1)
    while _common(stride, columns) > 1:
        stride -= 1
    return stride


def _common(a: int, b: int) -> int:
    """Return the greatest common divisor. `torch.compile` cannot trace `math.gcd` if shapes are symbols."""
    while b:
        a, b = b, a % b
    return a


def split(matrix: Tensor, eps: Tensor) -> Tensor:
    """Return the base B = clamp(M, -ε, ε) of each matrix of a batch (L, m, n), with ε (L,). The outliers are M - B.

    If ε is NaN, the base is NaN.
    """
    eps = eps.view(-1, *[1] * (matrix.ndim - 1))
    if matrix.is_cuda:
        return matrix.clamp(-eps, eps)  # one pass
    return torch.maximum(matrix, -eps).clamp_max_(eps)  # on a CPU three times faster than a clamp between tensors
