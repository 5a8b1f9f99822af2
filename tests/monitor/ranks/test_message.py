"""The message in which a process sends what it measured, as bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_dash.monitor.frames import LayerGroup
from root_dash.monitor.ranks.message import Bytes, RankMessage, decode_message, encode_message

NAMED = st.dictionaries(
    st.text(max_size=8),
    st.builds(
        lambda dtype, shape: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape),
        st.sampled_from(["f8", "f4", "i8", "i4", "u1"]),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    max_size=4,
)
ARRAYS = st.dictionaries(st.text(max_size=8), NAMED.filter(bool), max_size=3)
GROUPS = st.builds(
    LayerGroup,
    st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)),
    ARRAYS,
    st.none() | st.integers(1, 2**50),
)


@given(step=st.integers(0, 2**50), groups=st.lists(GROUPS, max_size=3).map(tuple))
def test_what_is_packed_is_unpacked(step: int, groups: tuple[LayerGroup, ...]) -> None:
    """Every array comes back to the bit, with its name, dtype, shape and layers."""
    part = decode_message(encode_message(RankMessage(step, groups)))
    assert part.step == step
    assert len(part.groups) == len(groups)
    for ours, theirs in zip(part.groups, groups, strict=True):
        assert (ours.positions, ours.shape, ours.entries) == (theirs.positions, theirs.shape, theirs.entries)
        assert list(ours.arrays) == list(theirs.arrays)
        for quantity, named in theirs.arrays.items():
            assert list(ours.arrays[quantity]) == list(named)
            for name, array in named.items():
                assert ours.arrays[quantity][name].dtype == array.dtype
                np.testing.assert_array_equal(ours.arrays[quantity][name], array)


def message(text: bytes) -> Bytes:
    """A message of that description, and no arrays."""
    length = np.array([len(text)], "<u8").tobytes()
    return np.frombuffer(length.ljust(16, b"\0") + text, np.uint8)


def described(dtype: str, shape: list[int]) -> bytes:
    group = {"positions": [0], "shape": [2, 3], "entries": None, "arrays": [["x", "y", dtype, shape]]}
    return json.dumps({"step": 1, "groups": [group]}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"step": "x", "groups": []}',
        b'{"step": 1, "groups": 3}',
        described("|O", [1]),
        described("<f4", [100]),
        described("<f4", [-1]),
        described("<f4", [2**62, 2**62]),
    ],
)
def test_what_is_no_part_is_refused(text: bytes) -> None:
    """Refused are a missing or wrong description, arrays of objects, and arrays longer than the message."""
    with pytest.raises(ValueError, match="data must be an encoded RankMessage"):
        decode_message(message(text))


def test_bytes_at_random_are_refused() -> None:
    """Random bytes are refused, and so is an empty message."""
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 100, 1000):
        with pytest.raises(ValueError, match=f"got {size} bytes"):
            decode_message(generator.integers(0, 256, size, np.uint8))
