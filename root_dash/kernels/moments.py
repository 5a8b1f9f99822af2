"""The sums of `root_dash.monitor.quantities.sums` on a GPU, all in one pass over gradient and momentum.

In plain torch every sum is a pass of its own over the entries, and most write what the next one reads: of the 124 M
parameters of a GPT-2, 50 GB a step. The Triton kernel here reads each entry once: a program takes a piece of a row,
block by block, keeps a block in registers for all sums over it, scaled by a power of two of its own so that nothing
over- or underflows, and merges the blocks' moments in float64 (Pébay, "Formulas for robust, one-pass parallel
computation of covariances and arbitrary-order statistical moments", SAND2008-6212).

Everywhere else the same sums are plain torch. Importing this module imports no Triton; the first call on a GPU does.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.loader import available
from root_dash.monitor.quantities.sums import PIECE_WIDTH

BLOCK = 2**12
_WARPS = 8
_COLUMNS = 17

tl: Any = None  # triton.language, once the kernel is needed


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernel can be given these: of equal shape, on a device that Triton drives."""
    given = [tensor for tensor in tensors if tensor is not None]
    return bool(given) and all(available(tensor) and tensor.shape == given[0].shape for tensor in given)


def sums(gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None) -> dict[str, Tensor]:
    """The sums that `gradient_sums`, `momentum_sums` and `outlier_sums` make of gradients and momenta (L, n).

    Outliers are taken by thresholds (L,), as `optim.outliers.threshold.split` cuts. In float64, of no unit; which there
    are depends on what is given.
    """
    found: Tensor = _sums(gradient, momentum, threshold)
    result = {}
    if gradient is not None:
        result["gradient"] = found[..., :9]
    if gradient is not None and momentum is not None:
        result["momentum"] = found[..., 9:12]
        result["momentum.norm"] = torch.linalg.vector_norm(found[..., 12], dim=-1).float()
    if threshold is not None:
        result["outliers"] = found[..., 12:]
    return result


@torch.library.custom_op("root_dash::sums", mutates_args=())
def _sums(gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None) -> Tensor:
    """What the kernel stores: (L, pieces, 17)."""
    out: Tensor = _empty(gradient, momentum, threshold).zero_()
    rows, pieces, _ = out.shape
    given = [None if tensor is None else tensor.contiguous() for tensor in (gradient, momentum)]
    entries = given[0] if given[0] is not None else given[1]
    assert entries is not None
    columns = entries.shape[1]
    if rows == 0 or columns == 0:
        return out
    limits = None if threshold is None else threshold.float().contiguous()
    with torch.cuda.device_of(entries):  # Triton launches on the current device
        _kernel()[(rows * pieces,)](
            *given,
            limits,
            out,
            columns,
            pieces,
            GRADIENT=given[0] is not None,
            MOMENTUM=given[1] is not None,
            CUT=limits is not None,
            PIECE=PIECE_WIDTH,
            BLOCK=BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return out


@_sums.register_fake
def _empty(gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None) -> Tensor:
    entries = gradient if gradient is not None else momentum
    assert entries is not None
    pieces = max(1, -(-entries.shape[1] // PIECE_WIDTH))
    out: Tensor = entries.new_empty(len(entries), pieces, _COLUMNS, dtype=torch.float64)
    return out


@cache
def _kernel() -> Any:
    global tl, _unit
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
    _unit = triton.jit(_unit)
    return triton.jit(_piece, do_not_specialize=["pieces"])


@no_type_check
def _unit(magnitude):
    """The power of two that brings the largest finite of these magnitudes to [1, 2)."""
    largest = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), axis=0)  # NaN is not less
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.maximum(exponent.to(tl.float32, bitcast=True), 1.1754943508222875e-38)


@no_type_check
def _piece(
    G,  # (L, n)
    M,  # (L, n)
    epsilon,  # (L,) float32
    out,  # (L, pieces, 17) float64
    n,
    pieces,
    GRADIENT: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CUT: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All sums of one piece of a row.

    Of G: mean, sums of squares and cubes of the deviations, root of that of fourth powers, zeros, maximum, minimum,
    NaNs, infinities, of the finite entries. Of both: ‖G‖, ‖M‖ and ⟨G, M⟩ of the finite ones. Of M, whatever it holds:
    ‖M‖, ‖B‖, ‖O‖, ⟨B, O⟩ and the number of outliers O = M - B, B = clamp(M, -ε, ε).
    """
    program = tl.program_id(0)
    row = (program // pieces).to(tl.int64)
    first = (program % pieces).to(tl.int64) * PIECE
    width = tl.minimum(n - first, PIECE).to(tl.int32)
    if GRADIENT:
        G += row * n + first
    if MOMENTUM:
        M += row * n + first
    zero = tl.full((), 0.0, tl.float64)
    count, mean, second, third, fourth = zero, zero, zero, zero, zero
    zeros, nans, infinities = zero, zero, zero
    top, bottom = zero, zero
    gg, mm, gm = zero, zero, zero
    whole, kept, cut, both, outliers = zero, zero, zero, zero, zero
    if CUT:
        limit = tl.load(epsilon + row)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < width
        if GRADIENT:
            g = tl.load(G + k, mask=inside, other=0.0).to(tl.float32)
            size = tl.abs(g)
            finite = inside & (size < float("inf"))
            unit = _unit(size)
            x = tl.where(finite, g, 0.0) / unit
            u = unit.to(tl.float64)
            n_b = tl.sum(finite.to(tl.int32), axis=0).to(tl.float64)
            nans += tl.sum((g != g).to(tl.int32), axis=0).to(tl.float64)
            infinities += tl.sum((size == float("inf")).to(tl.int32), axis=0).to(tl.float64)
            zeros += tl.sum((inside & (g == 0.0)).to(tl.int32), axis=0).to(tl.float64)
            top = tl.maximum(top, tl.max(x, axis=0).to(tl.float64) * u)
            bottom = tl.minimum(bottom, tl.min(x, axis=0).to(tl.float64) * u)
            center = tl.sum(x, axis=0) / tl.maximum(n_b, 1.0).to(tl.float32)
            d = tl.where(finite, x - center, 0.0)
            dd = d * d
            m_b = center.to(tl.float64) * u
            second_b = tl.sum(dd, axis=0).to(tl.float64) * u * u
            third_b = tl.sum(dd * d, axis=0).to(tl.float64) * u * u * u
            fourth_b = tl.sum(dd * dd, axis=0).to(tl.float64) * u * u * u * u
            # Two sets of entries as one.
            total = tl.maximum(count + n_b, 1.0)
            a, b = count / total, n_b / total
            shift = m_b - mean
            fourth += fourth_b + shift * shift * shift * shift * count * b * (a * a - a * b + b * b)
            fourth += 6.0 * shift * shift * (a * a * second_b + b * b * second) + 4.0 * shift * (
                a * third_b - b * third
            )
            third += third_b + shift * shift * shift * count * b * (a - b) + 3.0 * shift * (a * second_b - b * second)
            second += second_b + shift * shift * count * b
            mean += shift * b
            count += n_b
        if MOMENTUM:
            m = tl.load(M + k, mask=inside, other=0.0).to(tl.float32)
            m_unit = _unit(tl.abs(m))
            y = m / m_unit
            v = m_unit.to(tl.float64)
            whole += tl.sum(y * y, axis=0).to(tl.float64) * v * v
            if GRADIENT:
                z = tl.where(tl.abs(m) < float("inf"), y, 0.0)
                gg += tl.sum(x * x, axis=0).to(tl.float64) * u * u
                mm += tl.sum(z * z, axis=0).to(tl.float64) * v * v
                gm += tl.sum(x * z, axis=0).to(tl.float64) * u * v
            if CUT:
                base = tl.where(tl.abs(m) <= limit, m, tl.where(m > 0, limit, -limit))
                base = tl.where(m != m, m, base)
                base_unit = _unit(tl.abs(base))  # its own: ε may be far from M, or M infinite
                w = base_unit.to(tl.float64)
                o = (m - base) / m_unit
                base /= base_unit
                kept += tl.sum(base * base, axis=0).to(tl.float64) * w * w
                cut += tl.sum(o * o, axis=0).to(tl.float64) * v * v
                both += tl.sum(base * o, axis=0).to(tl.float64) * w * v
                outliers += tl.sum((inside & (tl.abs(m) > limit)).to(tl.int32), axis=0).to(tl.float64)
    out += (row * pieces + program % pieces) * 17
    if GRADIENT:
        tl.store(out, mean)
        tl.store(out + 1, second)
        tl.store(out + 2, third)
        tl.store(out + 3, tl.sqrt(fourth))
        tl.store(out + 4, zeros)
        tl.store(out + 5, top)
        tl.store(out + 6, bottom)
        tl.store(out + 7, nans)
        tl.store(out + 8, infinities)
    if GRADIENT and MOMENTUM:
        tl.store(out + 9, tl.sqrt(gg))
        tl.store(out + 10, tl.sqrt(mm))
        tl.store(out + 11, gm)
    if MOMENTUM:
        tl.store(out + 12, tl.sqrt(whole))
    if CUT:
        tl.store(out + 13, tl.sqrt(kept))
        tl.store(out + 14, tl.sqrt(cut))
        tl.store(out + 15, both)
        tl.store(out + 16, outliers)
