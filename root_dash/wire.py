"""Records as they travel from a trainer to a server: strict MessagePack, compressed as one zstd frame.

`pack_*` and `unpack_*` are each other's inverse bit for bit, NaNs included. What arrives may come from anyone: every
size, name and number is checked before a record is made of it, and unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import zstandard
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from root_dash import records
from root_dash.exceptions import Malformed
from root_dash.records import QUANTILE_COUNT, TENSORS, Tensor, histogram_edges, statistic_names

LIMIT = 512 * 2**20
"""Bytes of a message, packed or not: an exact mask has a bit per entry, and a frame travels whole."""

ATTEMPTS = "/api/v1/ingest/attempts"
"""The path below which a server takes attempts."""

MEDIA_TYPE = "application/vnd.msgpack"
ENCODING = "zstd"

_DESCRIBED = 2**24
"""Bytes that what begins or ends an attempt may unpack to: as objects of Python it takes up to 80 times as many."""

_LEVEL = 1  # zstd's quickest: the trainer's cores are the training's
_NAME = 2**16  # characters
_MANY = 100_000  # layers, scalars or events

_Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Lost = Annotated[int, Meta(ge=0, le=2**31 - 1)]  # a run's are added up, in 64 bits
_Time = Annotated[float, Meta(ge=0.0, le=2.5e11)]  # seconds since the epoch, of years that calendars have
_Step = Annotated[int, Meta(ge=-(2**62), le=2**62)]  # so that the ends of its bucket have 64 bits too
_Name = Annotated[str, Meta(max_length=_NAME)]
_Text = Annotated[str, Meta(max_length=2**20)]
_Uid = Annotated[str, Meta(min_length=1, max_length=64)]
_Statistics = Annotated[dict[_Name, float], Meta(max_length=64)]


class _Strict(Struct, forbid_unknown_fields=True):
    pass


class _Run(_Strict):
    uid: _Uid
    name: _Name
    started_at: _Time
    config: dict[str, Any]
    cadence: dict[_Name, _Count]
    optimizer: dict[str, Any]
    rank: _Index


class _Layer(_Strict):
    name: _Name
    shape: Annotated[tuple[_Count, ...], Meta(max_length=64)]
    algorithm: _Name
    position: _Index


class _Attempt(_Strict):
    uid: _Uid
    started_at: _Time
    pid: _Count
    host: _Name


class _Begin(_Strict):
    run: _Run
    layers: Annotated[tuple[_Layer, ...], Meta(max_length=_MANY)]
    attempt: _Attempt


class _Histogram(_Strict):
    counts: bytes
    nan: _Count
    inf: _Count


class _Quantiles(_Strict):
    values: bytes
    count: _Count


class _Spectrum(_Strict):
    momentum: bytes
    base: bytes
    update: bytes
    estimated: bool
    statistics: _Statistics


class _Mask(_Strict):
    rows: _Index
    cols: _Index
    map_rows: _Index
    map_cols: _Index
    pooled: bytes
    row_totals: bytes
    col_totals: bytes
    largest: bytes
    largest_values: bytes
    packed: bytes
    statistics: _Statistics


class _Event(_Strict):
    kind: _Name
    text: _Text
    step: _Step
    time: _Time


class _Frame(_Strict):
    seq: _Count
    step: _Step
    time: _Time
    names: Annotated[tuple[_Name, ...], Meta(max_length=256)]
    layers: bytes
    statistics: bytes
    histograms: Annotated[dict[_Index, dict[Tensor, _Histogram]], Meta(max_length=_MANY)]
    quantiles: Annotated[dict[_Index, dict[Tensor, _Quantiles]], Meta(max_length=_MANY)]
    spectra: Annotated[dict[_Index, _Spectrum], Meta(max_length=_MANY)]
    masks: Annotated[dict[_Index, _Mask], Meta(max_length=_MANY)]
    scalars: Annotated[dict[_Name, float], Meta(max_length=_MANY)]
    events: Annotated[tuple[_Event, ...], Meta(max_length=_MANY)]
    lost: _Lost
    cost: float


class _Batch(_Strict):
    frames: Annotated[list[Raw], Meta(max_length=_MANY)]


class End(_Strict):
    """That an attempt ended: `lost` frames after the last that was stored, whose `seq` is `last_seq`.

    The time is None where it goes on: all the same what has arrived outlives lost power.
    """

    time: _Time | None
    lost: _Lost
    last_seq: _Count | None


class Stored(_Strict):
    """What a server has of an attempt: the answer to everything that it is sent, as JSON."""

    attempt: str
    run: int
    last_seq: int | None
    ended_at: float | None


_Message = TypeVar("_Message", _Begin, _Batch, _Frame, End)


def pack_begin(run: records.Run, layers: Sequence[records.Layer], attempt: records.Attempt) -> bytes:
    """The message that begins an attempt; the run's config must be JSON's own types, as a store returns it."""
    return _pack(
        _Begin(
            _Run(
                run.uid,
                run.name,
                run.started_at,
                dict(run.config),
                dict(run.cadence),
                dict(run.optimizer),
                run.rank,
            ),
            tuple(_Layer(layer.name, layer.shape, layer.algorithm, layer.position) for layer in layers),
            _Attempt(attempt.uid, attempt.started_at, attempt.pid, attempt.host),
        )
    )


def unpack_begin(content: bytes) -> tuple[records.Run, tuple[records.Layer, ...], records.Attempt]:
    """The run, its layers and the attempt.

    Raises:
        Malformed: it is no such message.
        ValueError: it is one with wrong fields.
    """
    begin = _unpack(content, _Begin)
    run, attempt = begin.run, begin.attempt
    return (
        records.Run(run.uid, run.name, run.started_at, run.config, run.cadence, run.optimizer, rank=run.rank),
        tuple(records.Layer(one.name, one.shape, one.algorithm, one.position) for one in begin.layers),
        records.Attempt(attempt.uid, attempt.started_at, pid=attempt.pid, host=attempt.host),
    )


def pack_frame(frame: records.Frame) -> bytes:
    """One frame, to be put into a batch; its size is what the batch grows by before it is compressed."""
    return _encoder.encode(
        _Frame(
            seq=frame.seq,
            step=frame.step,
            time=frame.time,
            names=statistic_names("statistics"),
            layers=_bytes(frame.layers, "<i8"),
            statistics=_bytes(frame.statistics, "<f4"),
            histograms={int(at): _histograms(held) for at, held in frame.histograms.items()},
            quantiles={int(at): _quantiles(held) for at, held in frame.quantiles.items()},
            spectra={int(at): _spectrum(*held) for at, held in frame.spectra.items()},
            masks={int(at): _mask(*held) for at, held in frame.masks.items()},
            scalars=dict(frame.scalars),
            events=tuple(_Event(one.kind, one.text, one.step, one.time) for one in frame.events),
            lost=frame.lost,
            cost=frame.cost,
        )
    )


def pack_batch(frames: Iterable[bytes]) -> bytes:
    """A batch of packed frames."""
    return _pack(_Batch([Raw(frame) for frame in frames]))


def unpack_batch(content: bytes) -> Iterator[records.Frame]:
    """The frames of a batch, each made when it is asked for: as objects they take many times the memory.

    Raises:
        Malformed: it is no batch.
        ValueError: it is one, but a frame has wrong fields, or arrays that do not fit each other: when that is made.
    """
    return (_to_frame(_decoded(frame, _Frame)) for frame in _unpack(content, _Batch, LIMIT).frames)


def pack_end(end: End) -> bytes:
    """The message that ends an attempt."""
    return _pack(end)


def unpack_end(content: bytes) -> End:
    """The end of an attempt.

    Raises:
        Malformed: it is no such message.
        ValueError: it is one with wrong fields.
    """
    return _unpack(content, End)


_encoder = msgspec.msgpack.Encoder()
_decoders = {form: msgspec.msgpack.Decoder(form) for form in (_Begin, _Batch, _Frame, End)}


def _pack(message: Struct) -> bytes:
    packed: bytes = zstandard.ZstdCompressor(level=_LEVEL).compress(_encoder.encode(message))
    return packed


def _unpack(content: bytes, form: type[_Message], limit: int = _DESCRIBED) -> _Message:
    try:
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= limit:
            raise Malformed(f"a message must say its size and unpack to at most {limit} bytes, got {size}")
        plain = zstandard.ZstdDecompressor().decompress(content, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Malformed(f"the message cannot be read: {error}") from None
    return _decoded(plain, form)


def _decoded(plain: bytes | Raw, form: type[_Message]) -> _Message:
    try:
        message: _Message = _decoders[form].decode(plain)  # type: ignore[assignment]  # each decodes its own form
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"the message cannot be read: {error}") from None
    return message


def _bytes(array: NDArray[Any], form: Literal["<f4", "<i8", "<u4"]) -> bytes:
    return np.ascontiguousarray(array.astype(form, casting="same_kind", copy=False)).tobytes()


def _array(content: bytes, form: Literal["<f4", "<i8", "<u4"], what: str, count: int | None = None) -> NDArray[Any]:
    kind = np.dtype(form)
    if len(content) % kind.itemsize or (count is not None and len(content) != count * kind.itemsize):
        wanted = "whole entries" if count is None else f"{count} entries"
        raise ValueError(f"{what} must be {wanted} of {kind.itemsize} bytes, got {len(content)} bytes")
    return np.frombuffer(content, kind).astype(kind.newbyteorder("="))


def _histograms(held: Mapping[Tensor, records.Histogram]) -> dict[Tensor, _Histogram]:
    return {tensor: _Histogram(_bytes(one.counts, "<u4"), int(one.nan), int(one.inf)) for tensor, one in held.items()}


def _quantiles(held: Mapping[Tensor, records.Quantiles]) -> dict[Tensor, _Quantiles]:
    return {tensor: _Quantiles(_bytes(one.values, "<f4"), int(one.count)) for tensor, one in held.items()}


def _spectrum(spectrum: records.Spectrum, statistics: Mapping[str, float]) -> _Spectrum:
    momentum, base, update = (_bytes(one, "<f4") for one in (spectrum.momentum, spectrum.base, spectrum.update))
    return _Spectrum(momentum, base, update, spectrum.estimated, dict(statistics))


def _mask(mask: records.Mask, statistics: Mapping[str, float]) -> _Mask:
    return _Mask(
        rows=mask.rows,
        cols=mask.cols,
        map_rows=mask.pooled.shape[0],
        map_cols=mask.pooled.shape[1],
        pooled=_bytes(mask.pooled, "<u4"),
        row_totals=_bytes(mask.row_totals, "<u4"),
        col_totals=_bytes(mask.col_totals, "<u4"),
        largest=_bytes(mask.largest, "<i8"),
        largest_values=_bytes(mask.largest_values, "<f4"),
        packed=mask.packed,
        statistics=dict(statistics),
    )


def _to_frame(frame: _Frame) -> records.Frame:
    names = statistic_names("statistics")
    if unknown := set(frame.names) - set(names):
        raise ValueError(f"there is no such statistic: {', '.join(sorted(unknown))}")
    layers = _array(frame.layers, "<i8", "layers")
    if len(layers) > 1 and (np.diff(layers) <= 0).any():
        raise ValueError("the positions in layers must ascend")
    given = _array(frame.statistics, "<f4", "statistics", len(layers) * len(frame.names))
    statistics = np.full((len(layers), len(names)), np.nan, np.float32)
    statistics[:, [names.index(name) for name in frame.names]] = given.reshape(len(layers), len(frame.names))
    step = frame.step
    return records.Frame(
        seq=frame.seq,
        step=step,
        time=frame.time,
        layers=layers,
        statistics=statistics,
        histograms={at: {t: _to_histogram(h, step) for t, h in _of(held)} for at, held in frame.histograms.items()},
        quantiles={at: {t: _to_quantiles(q, step) for t, q in _of(held)} for at, held in frame.quantiles.items()},
        spectra={at: (_to_spectrum(held, step), held.statistics) for at, held in frame.spectra.items()},
        masks={at: (_to_mask(held, step), held.statistics) for at, held in frame.masks.items()},
        scalars=frame.scalars,
        events=tuple(records.Event(one.kind, one.text, one.step, one.time) for one in frame.events),
        lost=frame.lost,
        cost=frame.cost,
    )


_Held = TypeVar("_Held")


def _of(held: Mapping[Tensor, _Held]) -> list[tuple[Tensor, _Held]]:
    return [(tensor, held[tensor]) for tensor in TENSORS if tensor in held]


def _to_histogram(histogram: _Histogram, step: int) -> records.Histogram:
    counts = _array(histogram.counts, "<u4", "a histogram", len(histogram_edges()) - 1)
    return records.Histogram(counts, histogram.nan, histogram.inf, step)


def _to_quantiles(quantiles: _Quantiles, step: int) -> records.Quantiles:
    return records.Quantiles(_array(quantiles.values, "<f4", "quantiles", QUANTILE_COUNT), quantiles.count, step)


def _to_spectrum(spectrum: _Spectrum, step: int) -> records.Spectrum:
    momentum, base, update = (
        _array(content, "<f4", "a spectrum") for content in (spectrum.momentum, spectrum.base, spectrum.update)
    )
    return records.Spectrum(momentum, base, update, step, spectrum.estimated)


def _to_mask(mask: _Mask, step: int) -> records.Mask:
    values = _array(mask.largest_values, "<f4", "a mask's largest values")
    if mask.packed and len(mask.packed) != -(-mask.rows * mask.cols // 8):
        raise ValueError(f"a mask of {mask.rows} x {mask.cols} must be a bit an entry, got {len(mask.packed)} bytes")
    pooled = _array(mask.pooled, "<u4", "a mask's map", mask.map_rows * mask.map_cols)
    return records.Mask(
        rows=mask.rows,
        cols=mask.cols,
        pooled=pooled.reshape(mask.map_rows, mask.map_cols),
        row_totals=_array(mask.row_totals, "<u4", "a mask's row totals", mask.rows),
        col_totals=_array(mask.col_totals, "<u4", "a mask's column totals", mask.cols),
        largest=_array(mask.largest, "<i8", "a mask's largest entries", 2 * len(values)).reshape(-1, 2),
        largest_values=values,
        packed=mask.packed,
        step=step,
    )
