"""Messages from a trainer to a server: records in strict MessagePack, compressed as a zstd frame.

`pack_*` and `unpack_*` are each other's inverse bit for bit, NaNs included. A message may come from anyone: every size,
name and number is checked before a record is made, and unknown fields are refused. The structs below hold the fields of
the records that may travel, with their limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import zstandard
from msgspec import Meta, Raw, Struct
from msgspec.structs import asdict
from numpy.typing import NDArray

from root_dash import records
from root_dash.exceptions import Malformed
from root_dash.records import TENSORS, TensorName, statistic, statistic_names
from root_dash.records.validation import checked

LIMIT = 512 * 2**20
"""Largest size in bytes of a message, packed or not. A mask has a bit for each entry, and a frame travels whole."""

ATTEMPTS = "/api/v1/ingest/attempts"
"""The path below which a server takes attempts."""

MEDIA_TYPE = "application/vnd.msgpack"
ENCODING = "zstd"

_DESCRIPTION_LIMIT = 2**24
"""Largest unpacked size in bytes of the first and last message of an attempt. Python objects take up to 80 times as
much memory."""

_SENT = tuple(name for name in statistic_names("statistics") if not statistic(name).judged)
"""Statistics that travel. The others are made where the frame is stored."""

_SENT_COLUMNS = [statistic_names("statistics").index(name) for name in _SENT]

_LEVEL = 1  # zstd's quickest: the cores of the trainer's machine belong to the training
_NAME = 2**16  # characters
_MANY = 100_000  # layers, scalars or events

_Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Lost = Annotated[int, Meta(ge=0, le=2**31 - 1)]  # the store adds up the losses of a run, in 64 bits
_Time = Annotated[float, Meta(ge=0.0, le=2.5e11)]  # seconds since the epoch, of years that calendars have
_Step = Annotated[int, Meta(ge=-(2**62), le=2**62)]  # the ends of the step's bucket fit 64 bits then
_Name = Annotated[str, Meta(max_length=_NAME)]
_Text = Annotated[str, Meta(max_length=2**20)]
_Uid = Annotated[str, Meta(min_length=1, max_length=64)]
_Statistics = Annotated[dict[_Name, float], Meta(max_length=64)]

if TYPE_CHECKING:
    _Floats: TypeAlias = records.Float32Array
    _Counts: TypeAlias = records.CountArray
    _Ints: TypeAlias = records.IntArray
else:

    class _ArrayType(type):
        """The type of an annotation. Every array is an instance, because msgspec checks what `_to_array` returns."""

        def __instancecheck__(cls, value):
            return isinstance(value, np.ndarray)

    class _Floats(metaclass=_ArrayType):
        form = "<f4"

    class _Counts(metaclass=_ArrayType):
        form = "<u4"

    class _Ints(metaclass=_ArrayType):
        form = "<i8"


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
    counts: _Counts
    nan: _Count
    inf: _Count


class _Quantiles(_Strict):
    values: _Floats
    count: _Count


class _Spectrum(_Strict):
    momentum: _Floats
    base: _Floats
    update: _Floats
    estimated: bool
    statistics: _Statistics


class _Mask(_Strict):
    rows: _Index
    cols: _Index
    map_rows: _Index
    map_cols: _Index
    pooled: _Counts
    row_totals: _Counts
    col_totals: _Counts
    largest: _Ints
    largest_values: _Floats
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
    layers: _Ints
    statistics: _Floats
    histograms: Annotated[dict[_Index, dict[TensorName, _Histogram]], Meta(max_length=_MANY)]
    quantiles: Annotated[dict[_Index, dict[TensorName, _Quantiles]], Meta(max_length=_MANY)]
    spectra: Annotated[dict[_Index, _Spectrum], Meta(max_length=_MANY)]
    masks: Annotated[dict[_Index, _Mask], Meta(max_length=_MANY)]
    scalars: Annotated[dict[_Name, float], Meta(max_length=_MANY)]
    events: Annotated[tuple[_Event, ...], Meta(max_length=_MANY)]
    lost: _Lost
    cost: float


class _Batch(_Strict):
    frames: Annotated[list[Raw], Meta(max_length=_MANY)]


class End(_Strict):
    """The end of an attempt: `lost` frames after the last stored frame, whose `seq` is `last_seq`.

    If `time` is None the attempt goes on, and the server writes what has arrived to its disk.
    """

    time: _Time | None
    lost: _Lost
    last_seq: _Count | None


class Stored(_Strict):
    """The answer to every message, as JSON: what the server has stored of an attempt."""

    attempt: str
    run: int
    last_seq: int | None
    ended_at: float | None


_Message = TypeVar("_Message", _Begin, _Batch, _Frame, End)
_Part = TypeVar("_Part", bound=Struct)


def pack_begin(run: records.Run, layers: Sequence[records.Layer], attempt: records.Attempt) -> bytes:
    """Return the message that begins an attempt. The config of the run must have JSON's types, as in a store."""
    described = {name: dict(getattr(run, name)) for name in ("config", "cadence", "optimizer")}
    parts = tuple(_struct(_Layer, layer) for layer in layers)
    return _pack(_Begin(_struct(_Run, run, **described), parts, _struct(_Attempt, attempt)))


def unpack_begin(content: bytes) -> tuple[records.Run, tuple[records.Layer, ...], records.Attempt]:
    """Return the run, the layers and the attempt of a message that begins an attempt.

    Raises:
        Malformed: the content is not such a message.
        ValueError: the message has wrong fields.
    """
    begin = _unpack(content, _Begin)
    layers = tuple(records.Layer(**asdict(layer)) for layer in begin.layers)
    return records.Run(**asdict(begin.run)), layers, records.Attempt(**asdict(begin.attempt))


def pack_frame(frame: records.Frame) -> bytes:
    """Return a frame from a store as a part of a batch. The size of the part counts before the compression."""
    return _encoder.encode(
        _struct(
            _Frame,
            frame,
            names=_SENT,
            statistics=np.ascontiguousarray(frame.statistics[:, _SENT_COLUMNS]),
            histograms={at: _by_tensor(_Histogram, held) for at, held in frame.histograms.items()},
            quantiles={at: _by_tensor(_Quantiles, held) for at, held in frame.quantiles.items()},
            spectra={at: _struct(_Spectrum, one, statistics=named) for at, (one, named) in frame.spectra.items()},
            masks={
                at: _struct(_Mask, one, map_rows=len(one.pooled), map_cols=one.pooled.shape[1], statistics=named)
                for at, (one, named) in frame.masks.items()
            },
            scalars=dict(frame.scalars),
            events=tuple(_struct(_Event, event) for event in frame.events),
        )
    )


def pack_batch(frames: Iterable[bytes]) -> bytes:
    """Return a message of packed frames."""
    return _pack(_Batch([Raw(frame) for frame in frames]))


def unpack_batch(content: bytes) -> Iterator[records.Frame]:
    """Return an iterator over the frames of a batch, because unpacked frames take many times the memory.

    Raises:
        Malformed: the content is not a batch.
        ValueError: when a frame is yielded, the frame has wrong fields, or arrays that do not fit each other.
    """
    return (_to_frame(_decoded(frame, _Frame)) for frame in _unpack(content, _Batch, LIMIT).frames)


def pack_end(end: End) -> bytes:
    """Return the message that ends an attempt."""
    return _pack(end)


def unpack_end(content: bytes) -> End:
    """Return the end of an attempt.

    Raises:
        Malformed: the content is not such a message.
        ValueError: the message has wrong fields.
    """
    return _unpack(content, End)


def _to_bytes(array: NDArray[Any]) -> bytes:
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.uint32, np.int64):
        raise TypeError(f"a message holds arrays of float32, uint32 and int64, got {array!r}")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()


def _to_array(kind: type[Any], content: bytes) -> NDArray[Any]:
    item = np.dtype(kind.form)
    if not isinstance(content, bytes) or len(content) % item.itemsize:
        got = f"{len(content)} bytes" if isinstance(content, bytes) else type(content).__name__
        raise ValueError(f"an array must be bytes of whole entries of {item.itemsize} bytes, got {got}")
    return np.frombuffer(content, item).astype(item.newbyteorder("="))


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_bytes)
_decoders = {form: msgspec.msgpack.Decoder(form, dec_hook=_to_array) for form in (_Begin, _Batch, _Frame, End)}


def _pack(message: Struct) -> bytes:
    packed: bytes = zstandard.ZstdCompressor(level=_LEVEL).compress(_encoder.encode(message))
    return packed


def _unpack(content: bytes, form: type[_Message], limit: int = _DESCRIPTION_LIMIT) -> _Message:
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


def _struct(form: type[_Part], record: Any, **given: Any) -> _Part:
    """Return a struct with the given fields, and with the record's fields of the other names."""
    return form(**{name: getattr(record, name) for name in form.__struct_fields__ if name not in given}, **given)


def _by_tensor(form: type[_Part], held: Mapping[TensorName, Any]) -> dict[TensorName, _Part]:
    return {tensor: _struct(form, record) for tensor, record in held.items()}


def _to_frame(frame: _Frame) -> records.Frame:
    known, step = statistic_names("statistics"), frame.step
    if unknown := set(frame.names) - set(known):
        raise ValueError(f"there is no such statistic: {', '.join(sorted(unknown))}")
    statistics = np.full((len(frame.layers), len(known)), np.nan, np.float32)
    given = _shaped(frame.statistics, "statistics", len(frame.layers), len(frame.names))
    statistics[:, [known.index(name) for name in frame.names]] = given
    parts: dict[str, Any] = {
        "histograms": {at: _records(records.Histogram, held, step) for at, held in frame.histograms.items()},
        "quantiles": {at: _records(records.Quantiles, held, step) for at, held in frame.quantiles.items()},
        "spectra": {at: _to_spectrum(held, step) for at, held in frame.spectra.items()},
        "masks": {at: _to_mask(held, step) for at, held in frame.masks.items()},
        "events": tuple(records.Event(**asdict(event)) for event in frame.events),
        "statistics": statistics,
    }
    fields = ("seq", "step", "time", "layers", "scalars", "lost", "cost")
    return checked(records.Frame(**{name: getattr(frame, name) for name in fields}, **parts))


def _records(form: type[Any], held: Mapping[TensorName, Struct], step: int) -> dict[TensorName, Any]:
    return {tensor: form(**asdict(held[tensor]), step=step) for tensor in TENSORS if tensor in held}


def _to_spectrum(spectrum: _Spectrum, step: int) -> tuple[records.Spectrum, dict[str, float]]:
    fields = asdict(spectrum)
    statistics = fields.pop("statistics")
    return records.Spectrum(**fields, step=step), statistics


def _to_mask(mask: _Mask, step: int) -> tuple[records.Mask, dict[str, float]]:
    fields = asdict(mask)
    statistics, rows, cols = (fields.pop(name) for name in ("statistics", "map_rows", "map_cols"))
    fields["pooled"] = _shaped(mask.pooled, "the map of a mask", rows, cols)
    fields["largest"] = _shaped(mask.largest, "a mask's largest entries", len(mask.largest_values), 2)
    return records.Mask(**fields, step=step), statistics


def _shaped(array: NDArray[Any], what: str, rows: int, cols: int) -> NDArray[Any]:
    if array.size != rows * cols:
        raise ValueError(f"{what} must be {rows * cols} entries, got {array.size}")
    return array.reshape(rows, cols)
