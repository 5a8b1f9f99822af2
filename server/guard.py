"""The outermost layer of the server: who may send requests, and from where. What is not allowed is refused."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from root_dash.settings import Settings

from .problems import Problem

INGEST = "/api/v1/ingest/"
"""The path below which the server takes recordings."""

HEALTH = "/healthz"
"""The only path that needs no token."""

ADMIT = "root_dash.admit"
"""Key in a request's `state` of the function to call when the request has shown a token. The connection then keeps its
place."""

HEAD_BYTES = 2**15
"""Largest size in bytes of a request's headers and address together. A browser sends about 1 KiB."""

Refusal: TypeAlias = tuple[int, str]
"""The status and the reason of an answer that refuses a request."""

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_WILDCARDS = {"0.0.0.0", "::", ""}  # noqa: S104 (compared with, not bound to)

_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "frame-ancestors 'none'",
}

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>root-dash</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 36em; margin: 20vh auto; padding: 0 1em;
color-scheme: light dark; }}</style>
<h1>{title}</h1><p>{detail}</p></html>
"""


class Guard:
    """An ASGI application that checks every request before the application inside sees the request.

    The guard also adds the security headers to every response. The checks, in this order:

    - Headers and address take at most 32 KiB.
    - There is exactly one `Host`, with a name of this server. The name of another site that points to this machine (DNS
      rebinding) is refused.
    - If a browser sends an `Origin` with a WebSocket or an unsafe method, the origin is the server's own.
    - The request shows the token: as `Authorization: Bearer`, as a cookie, or once as `?token=` of a page. The answer
      to `?token=` sets the cookie and redirects to the same page without the token. Only `/healthz` needs no token.
    - A request with recordings shows the write token, as `Authorization: Bearer`. The write token opens nothing else.

    Responses pass through message by message, so that a stream stays a stream.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "::1", *(host.lower() for host in settings.allowed_hosts)}
        self._any_address = settings.host in _WILDCARDS
        # A rebound name is never an address. A server on all interfaces can therefore answer to any address.
        self._hosts.add(socket.gethostname().lower() if self._any_address else settings.host.lower())
        self._cookie = f"root_dash_{settings.port}"  # browsers send a cookie to every port of a host
        self._token = None if settings.token is None else settings.token.get_secret_value().encode()
        self._write_token = settings.write_token.get_secret_value().encode()
        # The cookie proves that its owner knew the token, and does not contain the token.
        self._proof = hashlib.sha256(b"root-dash cookie " + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] not in ("http", "websocket"):
            return None
        send = _with_security_headers(scope, send)
        request = HTTPConnection(scope)
        refusal = _size_refusal(request) or self._host_refusal(request) or self._origin_refusal(request)
        if refusal is None and self._brings_token(request):
            _admit(request)
            return await self._welcome(request)(scope, receive, send)
        refusal = refusal or self._token_refusal(request)
        if refusal is not None:
            return await _refuse(scope, receive, send, *refusal)
        if scope["path"] != HEALTH:
            _admit(request)
        await self._app(scope, receive, send)

    def _host_refusal(self, request: HTTPConnection) -> Refusal | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1:
            return 400, "a request must have one Host header"
        name = _hostname(hosts[0])
        if name in self._hosts or (self._any_address and _is_address(name)):
            return None
        return 421, "this server does not go by that name: add it to ROOT_DASH_ALLOWED_HOSTS"

    def _origin_refusal(self, request: HTTPConnection) -> Refusal | None:
        if request.scope.get("method") in _SAFE_METHODS:
            return None
        host = request.headers["host"].lower()
        origins = request.headers.getlist("origin")
        # The origin must equal the host; with https too, because a proxy in front may end the encryption.
        if len(origins) <= 1 and all(origin.lower() in (f"http://{host}", f"https://{host}") for origin in origins):
            return None
        return 403, "the request came from another site's page"

    def _token_refusal(self, request: HTTPConnection) -> Refusal | None:
        scope = request.scope
        if scope["type"] == "http" and scope["path"].startswith(INGEST):
            if _bears(request, self._write_token):
                return None
            if self._token is not None and self._shows_token(request):
                return 403, "this token is for looking: sending takes the write token"
            return 401, "the write token is required"
        if scope["path"] == HEALTH or self._token is None or self._shows_token(request):
            return None
        return 401, "a token is required" if _is_api(scope) else "open the URL that root-dash serve printed"

    def _brings_token(self, request: HTTPConnection) -> bool:
        """Return whether the request asks for a page and has the token in its address."""
        scope = request.scope
        page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] != HEALTH and not _is_api(scope)
        if not page or self._token is None:
            return False
        tokens = request.query_params.getlist("token")
        return len(tokens) == 1 and hmac.compare_digest(tokens[0].encode(), self._token)

    def _shows_token(self, request: HTTPConnection) -> bool:
        """Return whether the request has the token in its `Authorization`, or else its proof in the cookie."""
        assert self._token is not None
        if "authorization" in request.headers:
            return _bears(request, self._token)
        return hmac.compare_digest(request.cookies.get(self._cookie, "").encode(), self._proof.encode())

    def _welcome(self, request: HTTPConnection) -> Response:
        """Return the redirect to the same page without the token, which sets the cookie."""
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        # One slash: two slashes would name another host.
        path = "/" + quote(request.scope["path"].lstrip("/"), safe="/:@!$&'()*+,;=~-._")
        response = RedirectResponse(f"{path}?{rest}" if rest else path, 303, {"cache-control": "no-store"})
        secure = request.scope.get("scheme") == "https"
        response.set_cookie(self._cookie, self._proof, httponly=True, samesite="strict", secure=secure)
        return response


def _admit(request: HTTPConnection) -> None:
    admit = request.scope.get("state", {}).get(ADMIT)
    if admit is not None:
        admit()


def _bears(request: HTTPConnection, token: bytes) -> bool:
    """Return whether the request has the token as its only `Authorization`."""
    headers = request.headers.getlist("authorization")
    if len(headers) != 1:
        return False
    scheme, _, value = headers[0].partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode("latin-1"), token)


def _with_security_headers(scope: Scope, send: Send) -> Send:
    """Return a `send` that sets the security headers of each response.

    No cache keeps an answer of the API, or an answer that does not say itself how long it may be kept: it holds data.
    """
    api = _is_api(scope)

    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers.update(_SECURITY_HEADERS)
            if api or not {"cache-control", "etag"} & set(headers):
                headers["cache-control"] = "no-store"
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
    """Answer with a problem, or with a page if a person asks; close a WebSocket if its server cannot send an answer."""
    headers = {"cache-control": "no-store"} | ({"www-authenticate": "Bearer"} if status == 401 else {})
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        if "websocket.http.response" not in scope.get("extensions", {}):
            return await websocket.close(1008)
        return await websocket.send_denial_response(Problem(status, detail, headers))
    if _is_api(scope):
        return await Problem(status, detail, headers)(scope, receive, send)
    page = _PAGE.format(title=HTTPStatus(status).phrase, detail=detail[0].upper() + detail[1:] + ".")
    return await HTMLResponse(page, status, headers)(scope, receive, send)


def _size_refusal(request: HTTPConnection) -> Refusal | None:
    size = sum(len(name) + len(value) for name, value in request.headers.raw)
    size += len(request.scope["path"]) + len(request.scope.get("query_string", b""))
    return (431, f"headers and address take at most {HEAD_BYTES // 2**10} KiB") if size > HEAD_BYTES else None


def _is_api(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/api" or path.startswith("/api/")


def _hostname(host: str) -> str:
    """Return the name in a `Host` header, without its port; an empty text if the header is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if bracket and (not port or port.startswith(":")) else "?"
    else:
        name, _, port = host.partition(":")
    return name if not port or port.isascii() and port.isdigit() else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
