"""The rules that others ship, on the same recordings: what `Health` is measured beside.

Each rule is a function from frames to alarms, `(step, layer)`, with the defaults of its source. An alarm that goes on,
or comes back within `QUIET` samples, is one alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from root_dash.records import Frame, statistic_names

QUIET = 8
Alarm = tuple[int, int | None]
"""The step at which it begins, and the layer; None for the run."""

_GRAD_NORM = statistic_names("statistics").index("grad_norm")


def zscore(frames: Sequence[Frame]) -> list[Alarm]:
    """Each layer's gradient norm beyond 3 standard deviations of its last 100, at least 30 of them."""
    alarms: list[Alarm] = []
    last: dict[int, int] = {}
    count = 1 + max((int(frame.layers.max()) for frame in frames if len(frame.layers)), default=-1)
    past = np.full((100, count), np.nan)
    seen = np.zeros(count, np.int64)
    for sample, frame in enumerate(frames):
        layers, values = frame.layers, frame.statistics[:, _GRAD_NORM].astype(np.float64)
        finite = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            filled = np.where(np.isnan(past), 0.0, past).sum(0) / np.maximum(np.minimum(seen, 100), 1)
            squares = np.where(np.isnan(past), 0.0, (past - filled) ** 2).sum(0) / np.maximum(np.minimum(seen, 100), 1)
            far = np.abs(values - filled[layers]) > 3.0 * np.sqrt(squares[layers])
        for layer in layers[~finite | (far & (seen[layers] >= 30))].tolist():
            _ring(alarms, last, layer, sample, frame.step)
        kept = layers[finite]
        past[seen[kept] % 100, kept] = values[finite]
        seen[kept] += 1
    return alarms


def zclip(frames: Sequence[Frame]) -> list[Alarm]:
    """ZClip (arXiv 2504.02507): the global norm's z above 2.5 on moving averages of 0.97 after 25 samples."""
    alarms: list[Alarm] = []
    last: dict[int, int] = {}
    warm: list[float] = []
    mean = variance = 0.0
    for sample, frame in enumerate(frames):
        norm = _global_norm(frame)
        if norm is None:
            continue
        if not math.isfinite(norm):
            _ring(alarms, last, -1, sample, frame.step)
            continue
        if len(warm) < 25:
            warm.append(norm)
            mean, variance = float(np.mean(warm)), float(np.var(warm))
            continue
        z = (norm - mean) / (math.sqrt(variance) + 1e-6)
        if z > 2.5:
            _ring(alarms, last, -1, sample, frame.step)
            norm = mean + 2.5**2 / z * math.sqrt(variance)  # what it is clipped to, and learns from
        mean = 0.97 * mean + 0.03 * norm
        variance = 0.97 * variance + 0.03 * (norm - mean) ** 2
    return alarms


def olmo(frames: Sequence[Frame]) -> list[Alarm]:
    """OLMo-core's StabilityMonitor: loss or global norm above the mean of the last 128 by 6 standard deviations."""
    alarms: list[Alarm] = []
    last: dict[int, int] = {}
    pasts = (deque[float](maxlen=128), deque[float](maxlen=128))
    for sample, frame in enumerate(frames):
        for past, value in zip(pasts, (frame.scalars.get("loss"), _global_norm(frame)), strict=True):
            if value is None:
                continue
            if not math.isfinite(value):
                _ring(alarms, last, -1, sample, frame.step)
                continue
            if len(past) == 128 and value > np.mean(past) + 6.0 * np.std(past):
                _ring(alarms, last, -1, sample, frame.step)
            past.append(value)
    return alarms


def cusum(frames: Sequence[Frame]) -> list[Alarm]:
    """CUSUM on the loss, as in trainscope: h = 6, k = 1, scaled by the MAD of the last 200, at least 30."""
    alarms: list[Alarm] = []
    last: dict[int, int] = {}
    past = deque[float](maxlen=200)
    total = 0.0
    for sample, frame in enumerate(frames):
        loss = frame.scalars.get("loss")
        if loss is None:
            continue
        if not math.isfinite(loss):
            _ring(alarms, last, -1, sample, frame.step)
            continue
        if len(past) >= 30:
            middle = float(np.median(past))
            scale = 1.4826 * float(np.median(np.abs(np.array(past) - middle))) or 1e-12
            total = max(0.0, total + (loss - middle) / scale - 1.0)
            if total > 6.0:
                _ring(alarms, last, -1, sample, frame.step)
                total = 0.0
        past.append(loss)
    return alarms


RIVALS: dict[str, Callable[[Sequence[Frame]], list[Alarm]]] = {
    "z-score of each norm": zscore,
    "ZClip": zclip,
    "OLMo-core, 6 sd of 128": olmo,
    "CUSUM on the loss": cusum,
}


def _global_norm(frame: Frame) -> float | None:
    return float(np.sqrt((frame.statistics[:, _GRAD_NORM] ** 2).sum())) if len(frame.layers) else None


def _ring(alarms: list[Alarm], last: dict[int, int], layer: int, sample: int, step: int) -> None:
    if layer not in last or sample - last[layer] > QUIET:
        alarms.append((step, None if layer < 0 else layer))
    last[layer] = sample


def first_alarms(alarms: Sequence[Alarm]) -> Iterator[Alarm]:
    """Yield the alarms in the order of their steps."""
    yield from sorted(alarms, key=lambda alarm: (alarm[0], -1 if alarm[1] is None else alarm[1]))
