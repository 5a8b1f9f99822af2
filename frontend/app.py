"""The dashboard on an API: one process, one port, everything served from the machine itself."""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dash import Dash

from root_dash.exceptions import NotRecorded
from root_dash.frontend import callbacks, layout

if TYPE_CHECKING:
    from fastapi import FastAPI

    from root_dash.store import Store

ASSETS = Path(__file__).parent / "assets"

# The theme's script stands in the head and runs before anything is painted: no white flash on dark paper.
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


def mount(api: FastAPI, store: Store) -> None:
    """Serve the dashboard on every path that `api` does not answer itself.

    The API's own routes, and a 404 for what it does not know below its prefix, are registered before: Dash answers
    every path that is left.
    """
    dash = dashboard(api, store)
    _answer_pages(api, dash)


def dashboard(api: FastAPI, store: Store) -> Any:
    """The Dash app on that API, with its layout and callbacks."""
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
    callbacks.register(dash, store)
    # Dash collects its styles and scripts when the first request of its own comes; `_answer_pages` may be asked before.
    dash._setup_server()
    return dash


def _log(error: Exception) -> None:
    """Say in the log why a callback failed, which Dash alone would not, and let the server answer with the error.

    What is not recorded is no fault of the server: a page may be open on a run that is gone.
    """
    if not isinstance(error, NotRecorded):
        logging.getLogger(__name__).error("a panel could not be drawn", exc_info=error)
    raise error


def _answer_pages(api: FastAPI, dash: Any) -> None:
    """Routes of our own for the pages: Dash's catch-all belongs to the app of this process that was made last."""
    from dash.backends import _fastapi
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response

    requests: Any = _fastapi  # as Dash's own catch-all does: the index is made for a request

    async def index(request: Request) -> Response:
        token = requests.set_current_request(request)
        try:
            return HTMLResponse(dash.index())
        finally:
            requests.reset_current_request(token)

    api.add_route("/r/{rest:path}", index, methods=["GET"], include_in_schema=False)
