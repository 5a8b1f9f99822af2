"""The dashboard on an API: in the same process, on the same port, with all files from this machine."""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dash import Dash

from root_dash.exceptions import NotRecorded
from root_dash.frontend import callbacks, layout
from root_dash.frontend.panels import PANELS, Panels

if TYPE_CHECKING:
    from fastapi import FastAPI

    from root_dash.store import Store

ASSETS = Path(__file__).parent / "assets"

# The theme's script stands in the head and runs before the first paint, so that dark paper does not flash white.
_INDEX = """<!DOCTYPE html>
<html lang="en">
  <head>
    {%metas%}
    <title>{%title%}</title>
    {%favicon%}
    <script src="__THEME__"></script>
    {%css%}
  </head>
  <body>
    {%app_entry%}
    <footer>{%config%}{%scripts%}{%renderer%}</footer>
  </body>
</html>"""


def mount(api: FastAPI, store: Store, panels: Panels = PANELS) -> None:
    """Serve the dashboard on every path that `api` does not answer.

    Register the API's routes first, and a 404 for unknown paths below the API's prefix: Dash answers every other path.
    """
    dash = dashboard(api, store, panels)
    _answer_pages(api, dash)


def dashboard(api: FastAPI, store: Store, panels: Panels = PANELS) -> Any:
    """Make the Dash app on an API, with its layout and its callbacks."""
    dash: Any = Dash(
        "root_dash.frontend",
        server=cast(Any, api),
        backend="fastapi",
        assets_folder=str(ASSETS),
        assets_ignore=r"theme\.js",
        serve_locally=True,
        title="root-dash",
        update_title="",
        description="A microscope for people who train networks with matrix optimisers",
        suppress_callback_exceptions=True,  # the pages come and go: their components are not in the first layout
        use_pages=False,
        enable_mcp=False,
        add_log_handler=False,
        on_error=_log,
    )
    dash.index_string = _INDEX.replace("__THEME__", escape(str(dash.get_asset_url("theme.js"))))
    dash.layout = layout.shell
    callbacks.register(dash, store, panels)
    # Dash collects its styles and scripts at the first request to a route of Dash; a page's route may be asked before.
    dash._setup_server()
    return dash


def _log(error: Exception) -> None:
    """Log why a callback failed, which Dash does not do, and let the server answer with the error.

    A missing recording is no fault of the server and is not logged: a page may be open on a deleted run.
    """
    if not isinstance(error, NotRecorded):
        logging.getLogger(__name__).error("a panel could not be drawn", exc_info=error)
    raise error


def _answer_pages(api: FastAPI, dash: Any) -> None:
    """Add a route for the pages: Dash's catch-all route serves only the last app that this process has made."""
    from dash.backends import _fastapi
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response

    requests: Any = _fastapi  # Dash makes an index for the current request, which its own catch-all route sets

    async def index(request: Request) -> Response:
        token = requests.set_current_request(request)
        try:
            return HTMLResponse(dash.index())
        finally:
            requests.reset_current_request(token)

    api.add_route("/r/{rest:path}", index, methods=["GET"], include_in_schema=False)
