"""The API as one application, made for one store."""

from __future__ import annotations

import threading

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.routing import Match

from root_dash.settings import Settings
from root_dash.store import Store
from root_dash.version import __version__

from . import ingest, layers, liveness, problems, runs, stream

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(
    settings: Settings,
    store: Store,
    stopping: threading.Event | None = None,
    inbox: ingest.Inbox | None = None,
) -> FastAPI:
    """The API on an open store, which stays its owner's to close; `stopping`, once set, ends the streams.

    Recordings are taken into `inbox`, its owner's to close too; without one they are refused.

    It stands behind `guard.Guard`, and before whatever else answers the paths that it does not know.
    """
    app = FastAPI(
        title="root-dash",
        version=__version__,
        description="What was recorded, as JSON: NaN is null, an infinity the string Infinity or -Infinity.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # the usual documentation pages load their scripts from other people's servers
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.store = store
    app.state.stopping = threading.Event() if stopping is None else stopping
    app.state.inbox = inbox
    problems.register(app)
    for router in (liveness.router, runs.router, layers.router, stream.router, ingest.router):
        app.include_router(router)

    # Last: a dashboard that is mounted later answers every path that is left, with a page.
    @app.api_route("/api", methods=_METHODS, include_in_schema=False)
    @app.api_route("/api/{path:path}", methods=_METHODS, include_in_schema=False)
    def unknown(request: Request) -> None:
        if any(route.matches(request.scope)[0] is Match.PARTIAL for route in request.app.router.routes):
            raise HTTPException(405)
        raise HTTPException(404, "there is nothing at this path")

    return app
