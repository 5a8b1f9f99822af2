"""Arrays to BLOBs and back: little-endian, optionally compressed, and never trusted when they are read.

`encode` and `decode` are each other's inverse bit for bit. A database may come from anyone, so `decode` checks every
size before it allocates memory.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, overload

import numpy as np
import zstandard
from numpy.typing import NDArray

from root_dash.exceptions import StoreError

ArrayFormat = Literal["<f4", "<f8", "<u4", "|u1"]
"""NumPy's name of the type of an array's entries."""

_ZSTD_LEVEL = 3  # between the levels 1 and 19 the size of a histogram differs by less than a tenth
_local = threading.local()  # (de)compressors are costly to build and not safe to share


def encode(values: NDArray[Any] | bytes, form: ArrayFormat, *, compress: bool = False) -> bytes:
    """Return an array's entries in C order as bytes; with `compress`, as a zstd frame.

    Raises:
        TypeError: the type of the array does not fit the format.
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
def decode(content: bytes, form: ArrayFormat, count: int | None = None, *, compressed: bool = False) -> NDArray[Any]:
    """Return the encoded array: flat, in the machine's own byte order.

    `count` is the required number of entries. Without a count, any number of whole entries is read; a
    compressed array is only read with a count.

    Raises:
        StoreError: the content is not such an array.
    """
    item = np.dtype(form)
    if compressed:
        if count is None:
            raise StoreError("a compressed array is read with its number of entries")
        content = decompress(content, count * item.itemsize)
    if not isinstance(content, bytes):
        raise StoreError("an array in the database is damaged: it is not a BLOB")
    if len(content) % item.itemsize or (count is not None and len(content) != count * item.itemsize):
        expected = "whole entries" if count is None else f"{count} entries"
        raise StoreError(
            f"an array in the database is damaged: {len(content)} bytes are not {expected} of {item.itemsize}"
        )
    return np.frombuffer(content, item).astype(item.newbyteorder("="), copy=True)


def decompress(content: bytes, size: int) -> bytes:
    """Return the bytes of a zstd frame, which must unpack to `size` bytes.

    Raises:
        StoreError: the content is not such a zstd frame.
    """
    if not isinstance(content, bytes):
        raise StoreError("an array in the database is damaged: it is not a BLOB")
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
    """Return a text for a database: lone surrogates and NUL, which UTF-8 columns refuse, are escaped.

    A name must never stop a training run.
    """
    return given.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
