"""Arrays to BLOBs and back: little-endian, optionally compressed, never trusted when read.

`encode` and `decode` are each other's inverse bit for bit. A database may come from anyone, so `decode` checks every
size before it allocates.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, TypeVar, overload

import numpy as np
import zstandard
from numpy.typing import NDArray

from root_dash.exceptions import StoreError

Scalar = TypeVar("Scalar", bound=np.generic)

Format = Literal["<f4", "<f8", "<u4", "|u1"]

_ZSTD_LEVEL = 3  # of levels 1 to 19 the counts of a histogram differ by less than a tenth in size
_local = threading.local()  # (de)compressors are costly to build and not safe to share


def encode(values: NDArray[Any] | bytes, form: Format, *, compress: bool = False) -> bytes:
    """The array's entries in C order as bytes, as one zstd frame with `compress`.

    Raises:
        TypeError: the array's type does not fit the form.
    """
    if isinstance(values, bytes):
        content = values
    else:
        content = np.ascontiguousarray(values.astype(form, casting="same_kind", copy=False)).tobytes()
    if not compress:
        return content
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    compressed: bytes = compressor.compress(content)
    return compressed


@overload
def decode(
    content: bytes, form: Literal["<f4"], count: int | None = None, *, compressed: bool = False
) -> NDArray[np.float32]: ...
@overload
def decode(
    content: bytes, form: Literal["<f8"], count: int | None = None, *, compressed: bool = False
) -> NDArray[np.float64]: ...
@overload
def decode(
    content: bytes, form: Literal["<u4"], count: int | None = None, *, compressed: bool = False
) -> NDArray[np.uint32]: ...
@overload
def decode(
    content: bytes, form: Literal["|u1"], count: int | None = None, *, compressed: bool = False
) -> NDArray[np.uint8]: ...
def decode(content: bytes, form: Format, count: int | None = None, *, compressed: bool = False) -> NDArray[Any]:
    """The array that was encoded: flat, in the machine's own byte order.

    `count` is the number of entries that must be there; without it, whatever is there in whole entries. A compressed
    array is only read with its count.

    Raises:
        StoreError: the content is not such an array.
    """
    item = np.dtype(form)
    if compressed:
        if count is None:
            raise StoreError("a compressed array is read with its number of entries")
        content = decompress(content, count * item.itemsize)
    if not isinstance(content, bytes):
        raise StoreError("an array in the database is damaged: it is no BLOB")
    if len(content) % item.itemsize or (count is not None and len(content) != count * item.itemsize):
        expected = "whole entries" if count is None else f"{count} entries"
        raise StoreError(
            f"an array in the database is damaged: {len(content)} bytes are not {expected} of {item.itemsize}"
        )
    return np.frombuffer(content, item).astype(item.newbyteorder("="), copy=True)


def decompress(content: bytes, size: int) -> bytes:
    """The bytes of one zstd frame, which must be so many.

    Raises:
        StoreError: the content is not that.
    """
    if not isinstance(content, bytes):
        raise StoreError("an array in the database is damaged: it is no BLOB")
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(content) != size:
            raise StoreError(f"an array in the database is damaged: it does not unpack to {size} bytes")
        unpacked: bytes = decompressor.decompress(content, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreError(f"an array in the database is damaged: {error}") from error
    return unpacked


def text(given: str) -> str:
    """The text as a database takes it: lone surrogates and NUL have no place in UTF-8 columns, and are written out.

    A name must never stop a training run.
    """
    return given.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
