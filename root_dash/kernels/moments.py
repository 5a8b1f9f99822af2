"""Sums over gradient and momentum on a GPU, all in one pass over both.

In plain torch every sum is a pass of its own over the entries, and most passes write what the next pass reads: for the
124 M parameters of a GPT-2, 50 GB a step. The Triton kernel reads each entry once. A program takes a piece of a row,
block by block, and keeps a block in registers for all its sums. Each block is scaled by a power of two, so that nothing
over- or underflows. The blocks' moments are merged in float64 (Pébay, "Formulas for robust, one-pass parallel
computation of covariances and arbitrary-order statistical moments", SAND2008-6212). On other devices the same sums are
plain torch.

The caller names the fields of each quantity in any order. The kernel has a parameter for each field that it stores, and
refuses a caller who names other fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor

from root_dash.kernels.loader import available, kernel

PIECE_WIDTH = 2**16
"""Entries of a row that are summed in float32, exact to 1e-6; the host adds up the pieces in float64."""

BLOCK = 2**12
_WARPS = 8
_FIELD = "AT_"
"""Prefix of the kernel's parameters that give the column of a field."""

tl: Any = None  # triton.language, once a kernel is launched


def takes(*tensors: Tensor | None) -> bool:
    """Return whether the kernel takes these tensors: Triton must drive their device, and their shapes must be equal."""
    given = [tensor for tensor in tensors if tensor is not None]
    return bool(given) and all(available(tensor) and tensor.shape == given[0].shape for tensor in given)


def stored_fields() -> tuple[str, ...]:
    """Return the fields that the kernel stores, as `quantity.field`, in the order of its parameters."""
    names = (name.removeprefix(_FIELD).lower() for name in _parameters() if name.startswith(_FIELD))
    return tuple(name.replace("_", ".", 1) for name in names)


def columns(fields: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the column of each field by the kernel's parameter. The fields of a quantity have adjacent columns.

    Raises:
        ValueError: the kernel stores other fields.
    """
    named = [f"{quantity}.{field}" for quantity, names in fields.items() for field in names]
    stored = stored_fields()
    if sorted(named) != sorted(stored):
        missing, unknown = sorted(set(stored) - set(named)), sorted(set(named) - set(stored))
        raise ValueError(
            f"fields must be those that the kernel of kernels/moments.py stores: without {missing}, got {unknown}"
        )
    return {_FIELD + name.replace(".", "_").upper(): index for index, name in enumerate(named)}


def sums(
    gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None, fields: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Return the sums of gradients and momenta (L, n) by quantity, each (L, pieces, fields) in float64, of no unit.

    Outliers exceed the thresholds (L,), as in `optim.outliers.threshold.split`. A field that needs a missing tensor
    is 0.

    Raises:
        ValueError: the kernel stores other fields.
    """
    places = columns(fields)
    found: Tensor = _sums(gradient, momentum, threshold, [places[name] for name in _parameters() if name in places])
    widths = [len(names) for names in fields.values()]
    return dict(zip(fields, found.split(widths, -1), strict=True))


@torch.library.custom_op("root_dash::sums", mutates_args=())
def _sums(gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None, places: Sequence[int]) -> Tensor:
    """Return what the kernel stores, (L, pieces, fields), given the column of each of its fields."""
    out: Tensor = _empty(gradient, momentum, threshold, places).zero_()
    rows, pieces, _ = out.shape
    given = [None if tensor is None else tensor.contiguous() for tensor in (gradient, momentum)]
    entries = given[0] if given[0] is not None else given[1]
    assert entries is not None
    width = entries.shape[1]
    if rows == 0 or width == 0:
        return out
    limits = None if threshold is None else threshold.float().contiguous()
    fields = [name for name in _parameters() if name.startswith(_FIELD)]
    with torch.cuda.device_of(entries):  # Triton launches on the current device
        _piece[(rows * pieces,)](
            *given,
            limits,
            out,
            width,
            pieces,
            GRADIENT=given[0] is not None,
            MOMENTUM=given[1] is not None,
            CUT=limits is not None,
            PIECE=PIECE_WIDTH,
            BLOCK=BLOCK,
            FIELDS=len(places),
            **dict(zip(fields, places, strict=True)),
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return out


@_sums.register_fake
def _empty(gradient: Tensor | None, momentum: Tensor | None, threshold: Tensor | None, places: Sequence[int]) -> Tensor:
    entries = gradient if gradient is not None else momentum
    assert entries is not None
    pieces = max(1, -(-entries.shape[1] // PIECE_WIDTH))
    out: Tensor = entries.new_empty(len(entries), pieces, len(places), dtype=torch.float64)
    return out


@cache
def _parameters() -> tuple[str, ...]:
    """Return the names of the kernel's parameters, in order."""
    return tuple(inspect.signature(_piece.function).parameters)


@no_type_check
def _unit(magnitude):
    """Return the power of two that brings the largest finite of these magnitudes to [1, 2)."""
    largest = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), axis=0)  # NaN is not less
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.maximum(exponent.to(tl.float32, bitcast=True), 1.1754943508222875e-38)


@kernel(do_not_specialize=("pieces",), helpers=("_unit",))
@no_type_check
def _piece(
    G,  # (L, n)
    M,  # (L, n)
    epsilon,  # (L,) float32
    out,  # (L, pieces, FIELDS) float64
    n,
    pieces,
    GRADIENT: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CUT: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    FIELDS: tl.constexpr,  # number of columns of out, then the column of each field
    AT_MOMENTS_MEAN: tl.constexpr,
    AT_MOMENTS_SECOND: tl.constexpr,
    AT_MOMENTS_THIRD: tl.constexpr,
    AT_MOMENTS_ROOT_FOURTH: tl.constexpr,
    AT_MOMENTS_ZEROS: tl.constexpr,
    AT_MOMENTS_LARGEST: tl.constexpr,
    AT_MOMENTS_SMALLEST: tl.constexpr,
    AT_MOMENTS_NANS: tl.constexpr,
    AT_MOMENTS_INFINITIES: tl.constexpr,
    AT_ALIGNMENT_GRADIENT: tl.constexpr,
    AT_ALIGNMENT_MOMENTUM: tl.constexpr,
    AT_ALIGNMENT_PRODUCT: tl.constexpr,
    AT_OUTLIERS_MOMENTUM: tl.constexpr,
    AT_OUTLIERS_BASE: tl.constexpr,
    AT_OUTLIERS_OUTLIERS: tl.constexpr,
    AT_OUTLIERS_PRODUCT: tl.constexpr,
    AT_OUTLIERS_COUNT: tl.constexpr,
):
    """Store all sums of one piece of a row.

    The moments are of G's finite entries, and the alignment is of the finite entries of both. The outliers are of all
    entries of M: O = M - B, B = clamp(M, -ε, ε).
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
            # Merge the block with the blocks before.
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
                base_unit = _unit(tl.abs(base))  # not the unit of M: ε may be far from M, or M infinite
                w = base_unit.to(tl.float64)
                o = (m - base) / m_unit
                base /= base_unit
                kept += tl.sum(base * base, axis=0).to(tl.float64) * w * w
                cut += tl.sum(o * o, axis=0).to(tl.float64) * v * v
                both += tl.sum(base * o, axis=0).to(tl.float64) * w * v
                outliers += tl.sum((inside & (tl.abs(m) > limit)).to(tl.int32), axis=0).to(tl.float64)
    out += (row * pieces + program % pieces) * FIELDS
    if GRADIENT:
        tl.store(out + AT_MOMENTS_MEAN, mean)
        tl.store(out + AT_MOMENTS_SECOND, second)
        tl.store(out + AT_MOMENTS_THIRD, third)
        tl.store(out + AT_MOMENTS_ROOT_FOURTH, tl.sqrt(fourth))
        tl.store(out + AT_MOMENTS_ZEROS, zeros)
        tl.store(out + AT_MOMENTS_LARGEST, top)
        tl.store(out + AT_MOMENTS_SMALLEST, bottom)
        tl.store(out + AT_MOMENTS_NANS, nans)
        tl.store(out + AT_MOMENTS_INFINITIES, infinities)
    if GRADIENT and MOMENTUM:
        tl.store(out + AT_ALIGNMENT_GRADIENT, tl.sqrt(gg))
        tl.store(out + AT_ALIGNMENT_MOMENTUM, tl.sqrt(mm))
        tl.store(out + AT_ALIGNMENT_PRODUCT, gm)
    if MOMENTUM:
        tl.store(out + AT_OUTLIERS_MOMENTUM, tl.sqrt(whole))
    if CUT:
        tl.store(out + AT_OUTLIERS_BASE, tl.sqrt(kept))
        tl.store(out + AT_OUTLIERS_OUTLIERS, tl.sqrt(cut))
        tl.store(out + AT_OUTLIERS_PRODUCT, both)
        tl.store(out + AT_OUTLIERS_COUNT, outliers)
