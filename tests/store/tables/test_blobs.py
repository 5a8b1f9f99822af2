"""Arrays to BLOBs and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from root_dash.exceptions import StoreError
from root_dash.store.tables.blobs import ArrayFormat, decode, encode


@given(st.binary(max_size=400).map(lambda content: content[: len(content) // 4 * 4]), st.booleans())
def test_floats_come_back_bit_for_bit(content: bytes, compress: bool) -> None:
    """Any float32 array, NaN payloads, denormals, infinities and the empty one included, comes back bit for bit."""
    values = np.frombuffer(content, np.float32)
    back = decode(encode(values, "<f4", compress=compress), "<f4", len(values), compressed=compress)
    assert back.dtype == np.float32
    assert back.tobytes() == content


@given(hnp.arrays(np.uint32, st.integers(0, 600)), st.booleans())
def test_counts_come_back(counts: np.ndarray[Any, np.dtype[np.uint32]], compress: bool) -> None:
    """Any array of counts comes back equal."""
    back = decode(encode(counts, "<u4", compress=compress), "<u4", len(counts), compressed=compress)
    assert np.array_equal(back, counts)


@given(st.binary(max_size=200), st.sampled_from(["<f4", "<f8", "<u4", "|u1"]), st.integers(0, 40), st.booleans())
def test_any_bytes_decode_or_raise_a_store_error(content: bytes, form: Any, count: int, compressed: bool) -> None:
    """Whatever bytes a database holds, decoding gives an array of the expected size or a StoreError."""
    try:
        assert len(decode(content, form, count, compressed=compressed)) == count
    except StoreError:
        pass


def test_bytes_are_little_endian() -> None:
    """The bytes on disk are little-endian whatever the array's own order."""
    assert encode(np.array([1], ">u4"), "<u4") == b"\x01\0\0\0"
    assert encode(np.array([1], np.uint32), "<u4") == b"\x01\0\0\0"


def test_decoded_arrays_are_writable_and_own_their_memory() -> None:
    """A decoded array is the caller's to change."""
    values = decode(encode(np.ones(3, np.float32), "<f4"), "<f4")
    values[0] = 2
    assert values.flags.owndata


def test_a_strided_array_is_stored_in_its_order() -> None:
    """A transposed view is stored as it reads, not as it lies in memory."""
    values = np.arange(6, dtype=np.uint32).reshape(2, 3).T
    assert decode(encode(values, "<u4"), "<u4").tolist() == [0, 3, 1, 4, 2, 5]


def test_a_type_that_does_not_fit_is_refused() -> None:
    """Signed counts are refused rather than wrapped."""
    with pytest.raises(TypeError):
        encode(np.array([-1]), "<u4")


@pytest.mark.parametrize(
    ("content", "form", "count", "compressed"),
    [
        (b"123", "<f4", None, False),
        (b"1234", "<f4", 2, False),
        (b"12345678", "<f4", 1, False),
        (encode(np.zeros(8, np.uint32), "<u4", compress=True), "<u4", 7, True),
        (encode(np.zeros(8, np.uint32), "<u4", compress=True)[:-1], "<u4", 8, True),
        (encode(np.zeros(8, np.uint32), "<u4", compress=True) + b"x", "<u4", 8, True),
        (b"junk", "<u4", 1, True),
        (b"", "<u4", 1, True),
        ("text", "<f4", 1, False),
        (None, "<f4", 1, False),
    ],
)
def test_damaged_content_is_a_store_error(content: Any, form: ArrayFormat, count: int | None, compressed: bool) -> None:
    """Content that is not the array it should be is a StoreError that says so."""
    with pytest.raises(StoreError, match="damaged"):
        decode(content, form, count, compressed=compressed)


def test_a_bomb_is_not_unpacked() -> None:
    """A BLOB that would unpack to more than was asked for is refused by its header."""
    bomb = encode(np.zeros(50_000_000, np.uint8), "|u1", compress=True)
    with pytest.raises(StoreError, match="does not unpack"):
        decode(bomb, "|u1", 10, compressed=True)
