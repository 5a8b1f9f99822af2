"""The quantile threshold and the split of M into its base and its outliers.

ROOT soft-thresholds M into outliers O = sign(M) max(|M| - ε, 0) and orthogonalizes the rest, B = M - O, which is
clamp(M, -ε, ε) exactly: one operation, and no rounding in B.
"""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(magnitude: Tensor, quantile: float) -> Tensor:
    """The exact quantile of each matrix of a batch, as NumPy defines it by default.

    `magnitude` is (L, ...) and not negative, the result (L,) of the same dtype. The quantile lies between the two order
    statistics around position quantile * (n - 1), by linear interpolation. Both are the ends of the few largest
    entries, so a partial selection finds them: 24 x 512 x 128 on two cores in 8 ms, where `kthvalue` and a masked
    minimum take 13 ms, a radix selection over the bits of the floats 20 ms, a sort 63 ms. Nothing waits for the device.
    NaN in a matrix makes its threshold NaN.

    Raises:
        ValueError: a quantile outside [0, 1].
    """
    check_quantile(quantile)
    flat = magnitude.flatten(1)
    n = flat.shape[1]
    if n == 0:
        return flat.new_full((len(flat),), torch.nan)
    position = quantile * (n - 1)
    below = int(position)
    weight = position - below
    largest = flat.topk(n - below, dim=1, sorted=False).values
    if weight == 0:
        lower = largest.amin(1)
    else:
        lower, upper = largest.topk(2, dim=1, largest=False).values.unbind(1)
        # lerp makes NaN of the infinite.
        lower = torch.where(upper.isinf(), upper, lower.lerp(upper, weight))
    return torch.where(largest.amax(1).isnan(), torch.nan, lower)


def split(matrix: Tensor, eps: Tensor) -> Tensor:
    """The base B = clamp(M, -ε, ε) of each matrix of a batch (L, m, n), given its ε (L,); the outliers are M - B."""
    eps = eps.view(-1, *[1] * (matrix.ndim - 1))
    return matrix.clamp(-eps, eps)


def check_quantile(quantile: float) -> None:
    """Refuse what is no quantile with a `ValueError`."""
    if not 0 <= quantile <= 1:
        raise ValueError(f"outlier_quantile must be in [0, 1], got {quantile!r}")
