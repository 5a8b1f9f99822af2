"""One test for each private API of Dash that the dashboard uses, so that an upgrade says what broke.

The private APIs in the browser are tested in `tests/browser/test_private_apis.py`.
"""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output
from dash.backends import _fastapi
from fastapi import FastAPI
from starlette.requests import Request

requests: Any = _fastapi
REQUEST = Request({"type": "http", "method": "GET", "path": "/r/1", "headers": [], "query_string": b""})


def own_app() -> Any:
    """A Dash app, as `app.dashboard` makes it."""
    server: Any = FastAPI()
    dash = Dash("own", server=server, backend="fastapi", assets_folder="")
    dash.layout = []
    return dash


def test_dash_backends_fastapi_sets_the_request_for_which_an_index_is_made() -> None:
    """`app._answer_pages` sets the current request as Dash's catch-all route does, and resets it afterwards."""
    token = requests.set_current_request(REQUEST)
    assert requests.get_current_request() is REQUEST
    own_app().index()
    requests.reset_current_request(token)
    assert requests._current_request_var.get() is None


def test_dash_setup_server_collects_the_callbacks() -> None:
    """`app.dashboard` calls `_setup_server`, because the callbacks of an app would else go to the next app."""
    dash = own_app()
    dash.callback(Output("a", "children"), Input("b", "children"))(str)
    dash._setup_server()
    assert [callback["output"] for callback in dash._callback_list] == ["a.children"]
    later = own_app()
    later._setup_server()
    assert later._callback_list == []
