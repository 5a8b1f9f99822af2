"""The API as an application on a store."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from root_dash.settings import Settings
from root_dash.store import Store
from root_dash.version import __version__

from . import ingest, layers, liveness, problems, runs, stream
from .judging import Replays
from .responses import ANYWHERE, BEHIND_TOKEN
from .responses import problems as describe_problems

DOCS = "/api/docs"
"""Path of the API's documentation. The scripts of the page come from this server, not from other people's servers."""

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_DESCRIPTION = """Everything that was recorded, as JSON. NaN is null, an infinity the string Infinity or -Infinity.

Errors are `application/problem+json`. A connection that exceeds a limit of its own, such as too many requests that wait
for an answer, is ended with a status 408, 413, 429, 431 or 503 in plain text."""

# These dependencies only describe the tokens in the documentation. The guard checks the tokens.
_TOKEN = Depends(HTTPBearer(scheme_name="token", description="The token of `root-dash serve`.", auto_error=False))
_WRITE_TOKEN = Depends(
    HTTPBearer(scheme_name="write token", description="The write token of `root-dash serve`.", auto_error=False)
)


def create_app(
    settings: Settings,
    store: Store,
    stopping: threading.Event | None = None,
    inbox: ingest.Inbox | None = None,
) -> FastAPI:
    """Return the API on an open store, to be used behind `guard.Guard`. Mount a dashboard after the API.

    The caller closes store and inbox. `stopping` ends the streams when set. `inbox` takes recordings. If `inbox` is
    None, recordings are refused.
    """
    app = FastAPIOffline(
        title="root-dash",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=DOCS,
        redoc_url=None,
        static_url=f"{DOCS}/static",
        swagger_ui_oauth2_redirect_url=f"{DOCS}/oauth2-redirect",
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0},
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.store = store
    app.state.stopping = threading.Event() if stopping is None else stopping
    app.state.inbox = inbox
    app.state.replays = Replays(store, app.state.stopping)
    problems.register(app)
    app.include_router(liveness.router, responses=describe_problems(*ANYWHERE))
    for router in (runs.router, layers.router, stream.router):
        app.include_router(router, dependencies=[_TOKEN], responses=describe_problems(*ANYWHERE, *BEHIND_TOKEN))
    app.include_router(
        ingest.router, dependencies=[_WRITE_TOKEN], responses=describe_problems(*ANYWHERE, *BEHIND_TOKEN)
    )
    _document_problem_media_type(app)

    # Last, because a dashboard that is mounted later answers every other path with a page.
    @app.api_route("/api", methods=_METHODS, include_in_schema=False)
    @app.api_route("/api/{path:path}", methods=_METHODS, include_in_schema=False)
    def unknown(request: Request) -> None:
        if any(route.matches(request.scope)[0] is Match.PARTIAL for route in request.app.router.routes):
            raise HTTPException(405)
        raise HTTPException(404, "there is nothing at this path")

    return app


def _document_problem_media_type(app: FastAPI) -> None:
    """Document errors as `application/problem+json`, and not with the media type of the route's other answers."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()  # FastAPI keeps the document in app.openapi_schema
            for path in schema["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        if status >= "4":
                            (content,) = response["content"].values()
                            response["content"] = {problems.Problem.media_type: content}
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]
