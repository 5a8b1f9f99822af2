"""How many lines are logged when many requests are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing

import pytest

from root_dash.server.limits.log_rate_limit import LogRateLimit
from tests.server.served import STRANGE, Served, pour


def test_refusals_do_not_flood_the_log(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """If many requests are cut off or refused for the same reason, one line is logged."""
    server = serve()
    limit, logger = LogRateLimit(), logging.getLogger("uvicorn.error")
    logger.addFilter(limit)
    try:
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            for _ in range(20):
                server.ask(b"NONSENSE / HTTP/1.1\r\n\r\n")
                with closing(server.connect()) as peer:
                    pour(peer, b"GET / HTTP/1.1\r\na: " + b"a" * 2**16)
                server.ask(b"GET / HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n" + STRANGE + b"\r\n")
    finally:
        logger.removeFilter(limit)
    messages = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert 2 <= len(messages) == len(set(messages)), messages


def test_the_next_line_says_how_many_were_left_out() -> None:
    """After the minute a line is logged with the number left out; every error with a traceback is logged."""
    limit = LogRateLimit(60.0)

    def message(created: float, line: int = 1, error: bool = False) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "x.py", line, "cut %s", ("off",), None)
        record.created = created
        if error:
            record.exc_info = ValueError, ValueError(), None
        return record.getMessage() if limit.filter(record) else None

    assert [message(0.0), message(1.0), message(59.0), message(2.0, line=2)] == ["cut off", None, None, "cut off"]
    assert [message(3.0, error=True), message(3.0, error=True)] == ["cut off"] * 2
    assert [message(60.0), message(61.0)] == ["cut off (2 more like it since the last)", None]
