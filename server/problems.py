"""Errors as RFC 9457 problem details. An answer never repeats what was sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from root_dash.exceptions import AlreadyRecorded, Malformed, NotRecorded, StoreBusy, StoreError, StoreFull


class Problem(JSONResponse):
    """A response that describes an error. Its title is the status in words."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        content = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
        super().__init__(content, status, headers)


def register(app: FastAPI) -> None:
    """Let the application answer each kind of error with its status."""

    @app.exception_handler(NotRecorded)
    def not_recorded(request: Request, error: NotRecorded) -> Problem:
        return Problem(404, str(error))

    @app.exception_handler(AlreadyRecorded)
    def already_recorded(request: Request, error: AlreadyRecorded) -> Problem:
        return Problem(409, str(error))

    @app.exception_handler(Malformed)
    def malformed(request: Request, error: Malformed) -> Problem:
        return Problem(400, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Problem:
        # `loc` names our own parameters and `msg` our rules; pydantic's `input` and `ctx` hold the caller's values.
        errors = [
            {"in": str(e["loc"][0]), "name": str(e["loc"][-1]), "rule": e["msg"].removeprefix("Value error, ")}
            for e in error.errors()
        ]
        detail = "; ".join(f"{e['name']}: {e['rule']}" for e in errors)
        return Problem(422, detail, errors=errors)

    @app.exception_handler(ValueError)
    def out_of_range(request: Request, error: ValueError) -> Problem:
        return Problem(422, "an argument is out of range")

    @app.exception_handler(StoreBusy)
    def busy(request: Request, error: StoreBusy) -> Problem:
        return Problem(503, "the database is held by another process", {"Retry-After": "5"})

    @app.exception_handler(StoreFull)
    def full(request: Request, error: StoreFull) -> Problem:
        return Problem(507, "the disk of the database is full", {"Retry-After": "30"})

    @app.exception_handler(StoreError)
    def unreadable(request: Request, error: StoreError) -> Problem:
        return Problem(503, str(error))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Problem:
        return Problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Problem:
        return Problem(500, "the server made a mistake: its log says which")
