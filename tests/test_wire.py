"""Messages over the wire: bit for bit there and back, and nothing else gets in."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from root_dash import wire
from root_dash.exceptions import Malformed
from root_dash.records import Attempt, Layer, Run, statistic, statistic_names
from root_dash.wire import End
from tests.store.frames import CADENCE, make_layers
from tests.store.read.test_frames import same_frames, trained

RUN = Run(
    "u" * 32, "a run", 1.7e9, {"lr": 0.1, "deep": {"list": [1, None, "x"]}}, {"masks": 3}, {"name": "ROOT"}, rank=3
)
ATTEMPT = Attempt("a" * 32, 1.7e9, pid=7, host="far")
ODD = float(np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\xff", np.float64)[0])
"""A NaN that carries bits of its own."""

SENT = sum(not statistic(name).judged for name in statistic_names("statistics"))
"""Statistics that travel: the server makes those of the diagnosis itself."""


def packed(message: Any) -> bytes:
    """Any message, as it travels."""
    return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(message))


def plain(content: bytes) -> Any:
    """What travels, in plain types."""
    return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(content))


@pytest.mark.parametrize("kinds", [None, *([kind] for kind in CADENCE)])
def test_frames_arrive_bit_for_bit(kinds: list[Any] | None) -> None:
    """All kinds together and each alone: NaNs with their bits, estimates, events, losses."""
    frames = [trained(seq, kinds) for seq in range(3)]
    frames[0].statistics.view(np.uint32)[:1, 3:5] = 0x7FC00001, 0xFFA00000
    arrived = list(wire.unpack_batch(wire.pack_batch(map(wire.pack_frame, frames))))
    assert len(arrived) == 3
    assert all(map(same_frames, arrived, frames))


@given(st.floats(width=64) | st.just(ODD))
def test_every_float_arrives(value: float) -> None:
    """A number that was logged keeps its bits."""
    frame = trained(0, ["scalars"])
    frame.scalars["odd"] = value  # type: ignore[index]
    (arrived,) = wire.unpack_batch(wire.pack_batch([wire.pack_frame(frame)]))
    assert np.float64(arrived.scalars["odd"]).tobytes() == np.float64(value).tobytes()


def test_the_beginning_and_the_end_arrive() -> None:
    """The run with its config, the layers and the attempt; and what is said at its end."""
    assert wire.unpack_begin(wire.pack_begin(RUN, make_layers(6), ATTEMPT)) == (RUN, tuple(make_layers(6)), ATTEMPT)
    for end in (End(1.5, 3, None), End(None, 0, 4), End(1.5, 0, 2**63 - 1)):
        assert wire.unpack_end(wire.pack_end(end)) == end


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (packed({"frames": []})[:-1], "cannot be read"),
        (packed({"frames": []}) + b"x", "cannot be read"),
        (zstandard.ZstdCompressor().compress(b"\xc1"), "cannot be read"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"\x80"), "must say its size"),
        (zstandard.ZstdCompressor().compress(bytes(2**20) * 513), "at most 536870912 bytes"),
    ],
)
def test_what_is_no_message_is_refused(content: bytes, says: str) -> None:
    """Nothing, text, half a message, one and a half, and one that would unpack to more than there may be."""
    with pytest.raises(Malformed, match=says):
        wire.unpack_batch(content)


def test_deeply_nested_configs_are_refused() -> None:
    """A config nested a hundred thousand times is refused, and stops no server."""
    nested = b"\x91" * 100_000 + b"\x90"
    begin = b"\x81" + msgspec.msgpack.encode("run") + b"\x81" + msgspec.msgpack.encode("config") + b"\x81\xa1x" + nested
    with pytest.raises((Malformed, ValueError)):
        wire.unpack_begin(zstandard.ZstdCompressor().compress(begin))


def test_little_that_unpacks_to_many_objects_is_refused() -> None:
    """A config of 16 million empty lists travels as a kilobyte, and would take a gigabyte of the server's memory."""
    nested = b"\xdd" + (2**24).to_bytes(4, "big") + b"\x90" * 2**24
    begin = b"\x81" + msgspec.msgpack.encode("run") + b"\x81" + msgspec.msgpack.encode("config") + b"\x81\xa1x" + nested
    content = zstandard.ZstdCompressor().compress(begin)
    assert len(content) < 1000
    for unpack in (wire.unpack_begin, wire.unpack_end):
        with pytest.raises(Malformed, match="at most 16777216 bytes"):
            unpack(content)


def test_frames_are_made_one_at_a_time() -> None:
    """As objects those of a batch may take many times its size: the first is there before the next is looked at."""
    frames = wire.unpack_batch(
        packed({"frames": [plain(wire.pack_batch([wire.pack_frame(trained(0))]))["frames"][0], 1]})
    )
    assert same_frames(next(frames), trained(0))
    with pytest.raises(ValueError, match="Expected `object`, got `int`"):
        next(frames)


def wrong(path: tuple[Any, ...], value: Any) -> bytes:
    """A batch of one frame in which one field is another."""
    batch = plain(wire.pack_batch([wire.pack_frame(trained(1))]))
    place = batch["frames"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return packed(batch)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("extra",), 1, "unknown field `extra`"),
        (("seq",), -1, ">= 0"),
        (("seq",), 2**63, "<= 9223372036854775807"),
        (("seq",), "1", "Expected `int`"),
        (("step",), 1.5, "Expected `int`"),
        (("time",), math.nan, "Expected `float` >= 0.0"),
        (("time",), math.inf, "Expected `float` <= 250000000000.0"),
        (("lost",), 2**31, "<= 2147483647"),
        (("names", 0), "nothing", "no such statistic: nothing"),
        (("layers",), bytes(7), "whole entries of 8 bytes, got 7 bytes .*layers"),
        (("layers",), bytes(48), "must ascend"),
        (("statistics",), bytes(8), f"statistics must be {6 * SENT} entries"),
        (("histograms", 0, "gradient", "counts"), bytes(4), "a histogram must have 515 counts"),
        (("histograms", 0, "weight"), {"counts": bytes(2060), "nan": 0, "inf": 0}, "Invalid enum value"),
        (("quantiles", 0, "momentum", "values"), b"", "quantiles must have 65 values"),
        (("spectra", 0, "base"), bytes(5), "whole entries of 4 bytes, got 5 bytes .*base"),
        (("masks", 0, "rows"), 2**31, "<= 2147483647"),
        (("masks", 0, "rows"), 17, "a mask of 17 x 24 must have as many row and column totals"),
        (("masks", 0, "row_totals"), b"", "a mask of 16 x 24 must have as many row and column totals"),
        (("masks", 0, "largest"), bytes(16), "largest entries must be"),
        (("masks", 0, "pooled"), bytes(4), "the map of a mask must be 64 entries, got 1"),
        (("masks", 0, "packed"), bytes(4), "a packed mask of 16 x 24 must have one bit for each entry, got 4 bytes"),
        (("layers",), [1], "must be bytes of whole entries of 8 bytes, got list"),
        (("scalars", "x" * 70_000), 1.0, "length <= 65536"),
        (("events", 0), {"kind": "k", "text": "t", "step": 0}, "missing required field `time`"),
    ],
)
def test_wrong_fields_are_refused(path: tuple[Any, ...], value: Any, says: str) -> None:
    """A field too many, a number out of its range, an array of another size: each is named."""
    with pytest.raises(ValueError, match=says):
        list(wire.unpack_batch(wrong(path, value)))


def test_statistics_are_recognized_by_their_names() -> None:
    """A trainer that knows fewer statistics than the server leaves the others NaN."""
    batch = plain(wire.pack_batch([wire.pack_frame(trained(2))]))
    frame = batch["frames"][0]
    frame["names"] = ["momentum_norm", "grad_norm"]
    frame["statistics"] = np.arange(12, dtype="<f4").tobytes()
    (arrived,) = wire.unpack_batch(packed(batch))
    assert arrived.statistics[:, :2].tolist() == [[2 * at + 1, 2 * at] for at in range(6)]
    assert np.isnan(arrived.statistics[:, 2:]).all()


def test_a_layer_has_a_shape_of_sizes() -> None:
    """A negative size is refused."""
    with pytest.raises(ValueError, match=">= 0"):
        wire.unpack_begin(wire.pack_begin(RUN, [Layer("a", (-1,), "root")], ATTEMPT))
