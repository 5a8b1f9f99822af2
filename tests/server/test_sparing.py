"""What is logged of requests that are refused, however many they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing

import pytest

from root_dash.server.sparing import Sparing
from tests.server.served import STRANGE, Served, pour


def test_refusals_do_not_flood_the_log(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """Of many requests of one kind that are cut off or refused, one line is logged."""
    server = serve()
    sparing, logger = Sparing(), logging.getLogger("uvicorn.error")
    logger.addFilter(sparing)
    try:
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            for _ in range(20):
                server.ask(b"NONSENSE / HTTP/1.1\r\n\r\n")
                with closing(server.connect()) as peer:
                    pour(peer, b"GET / HTTP/1.1\r\na: " + b"a" * 2**16)
                server.ask(b"GET / HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n" + STRANGE + b"\r\n")
    finally:
        logger.removeFilter(sparing)
    said = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert 2 <= len(said) == len(set(said)), said


def test_a_sparing_log_tells_how_much_it_left_out() -> None:
    """After the minute the next line says how many there were; errors with a traceback are all logged."""
    sparing = Sparing(60.0)

    def said(created: float, line: int = 1, error: bool = False) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "x.py", line, "cut %s", ("off",), None)
        record.created = created
        if error:
            record.exc_info = ValueError, ValueError(), None
        return record.getMessage() if sparing.filter(record) else None

    assert [said(0.0), said(1.0), said(59.0), said(2.0, line=2)] == ["cut off", None, None, "cut off"]
    assert [said(3.0, error=True), said(3.0, error=True)] == ["cut off"] * 2
    assert [said(60.0), said(61.0)] == ["cut off (2 more like it since the last)", None]
