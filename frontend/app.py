"""The dashboard on an API: in the same process, on the same port, with all files from this machine."""

from __future__ import annotations

import asyncio
import logging
from html import escape
from typing import TYPE_CHECKING, Any, cast

from dash import Dash

from root_dash.exceptions import NotRecorded
from root_dash.frontend import callbacks, layout, routing
from root_dash.frontend.judgement import JudgeAnew
from root_dash.frontend.panels import PANELS, Panels
from root_dash.frontend.static_files import StaticFiles

if TYPE_CHECKING:
    from fastapi import FastAPI

    from root_dash.store import Store

# The theme's script stands in the head and runs before the first paint, so that dark paper does not flash white.
# Dash sets the address of plotly.js to its full bundle: the property does not take another value.
_INDEX = """<!DOCTYPE html>
<html lang="en">
  <head>
    {%metas%}
    <title>{%title%}</title>
    <link rel="icon" href="__icon.svg__">
    <link rel="preload" as="script" href="__PLOTLY__">
    <script>Object.defineProperty(window, "_dashPlotlyJSURL", { get: () => "__PLOTLY__", set() {} })</script>
    <script src="__theme.js__"></script>
    {%css%}
    __STYLES__
  </head>
  <body>
    {%app_entry%}
    <footer>{%config%}{%scripts%}__SCRIPTS__{%renderer%}</footer>
  </body>
</html>"""


def mount(api: FastAPI, store: Store, panels: Panels = PANELS, replay: JudgeAnew | None = None) -> None:
    """Serve the dashboard on every path that `api` does not answer; `replay` judges runs without stored verdicts.

    Register the API's routes first, and a 404 for unknown paths below the API's prefix: Dash answers every other path.
    """
    files = StaticFiles()
    files.serve(api)
    dash = dashboard(api, store, files, panels, replay)
    _answer_pages(api, dash, store)


def dashboard(
    api: FastAPI, store: Store, files: StaticFiles, panels: Panels = PANELS, replay: JudgeAnew | None = None
) -> Any:
    """Make the Dash app on an API, with its layout and its callbacks."""
    dash: Any = Dash(
        "root_dash.frontend",
        server=cast(Any, api),
        backend="fastapi",
        assets_folder="",  # `StaticFiles` answers for the assets
        include_assets_files=False,
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
    dash.index_string = _index(files)
    dash.layout = layout.shell
    callbacks.register(dash, store, panels, replay)
    # Dash collects callbacks at the first request to a route of Dash; a page's route may be asked before.
    dash._setup_server()
    return dash


def _log(error: Exception) -> None:
    """Log why a callback failed, which Dash does not do, and let the server answer with the error.

    A missing recording is no fault of the server and is not logged: a page may be open on a deleted run.
    """
    if not isinstance(error, NotRecorded):
        logging.getLogger(__name__).error("a panel could not be drawn", exc_info=error)
    raise error


def _index(files: StaticFiles) -> str:
    """Return the template of the page, with the addresses of our files."""
    page = _INDEX
    for name in ("icon.svg", "theme.js"):
        page = page.replace(f"__{name}__", escape(files.address(name)))
    styles = (f'<link rel="stylesheet" href="{escape(files.address(name))}">' for name in files.names(".css"))
    scripts = (f'<script src="{escape(files.address(n))}"></script>' for n in files.names(".js") if n != "theme.js")
    page = page.replace("__STYLES__", "".join(styles)).replace("__SCRIPTS__", "".join(scripts))
    return page.replace("__PLOTLY__", files.plotly)


def _answer_pages(api: FastAPI, dash: Any, store: Store) -> None:
    """Add a route for the pages: Dash's catch-all route serves only the last app that this process has made.

    The page of an address that leads nowhere says so, with the status 404.
    """
    from dash.backends import _fastapi
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response

    requests: Any = _fastapi  # Dash makes an index for the current request, which its own catch-all route sets

    async def index(request: Request) -> Response:
        status = 200 if await asyncio.to_thread(routing.leads_somewhere, store, request.url.path) else 404
        token = requests.set_current_request(request)
        try:
            return HTMLResponse(dash.index(), status)
        finally:
            requests.reset_current_request(token)

    api.add_route("/{rest:path}", index, methods=["GET"], include_in_schema=False)
