"""Compressed answers: what is compressed, and what never is."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from root_dash.server.compression import Compressed

TEXT = "a figure " * 1000


async def data(_request: object) -> PlainTextResponse:
    """Answer with data."""
    return PlainTextResponse(TEXT)


async def page(_request: object) -> HTMLResponse:
    """Answer with a page, which holds a name that Dash signed."""
    return HTMLResponse(TEXT)


async def events(_request: object) -> StreamingResponse:
    """Answer with a long event."""
    return StreamingResponse(iter([f"data: {TEXT}\n\n"]), media_type="text/event-stream")


APP = Compressed(Starlette(routes=[Route("/data", data), Route("/page", page), Route("/events", events)]))


@pytest.mark.parametrize(("path", "encoding"), [("/data", "gzip"), ("/page", None), ("/events", None)])
def test_data_is_compressed_and_pages_and_streams_are_not(path: str, encoding: str | None) -> None:
    """gzip would hold events back, and nothing secret may be compressed."""
    with TestClient(APP) as client:
        for accepted, expected in (("gzip", encoding), ("identity", None)):
            answer = client.get(path, headers={"accept-encoding": accepted})
            assert answer.headers.get("content-encoding") == expected
            assert TEXT in answer.text
