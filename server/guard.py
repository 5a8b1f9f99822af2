"""The outermost layer: who may ask, and from where. Deny by default, for HTTP and for WebSockets alike."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import parse_qsl, quote, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from root_dash.settings import Settings

INGEST = "/api/v1/ingest/"
"""Below this path recordings are taken."""

HEALTH = "/healthz"
"""What is answered without a token."""

ADMIT = "root_dash.admit"
"""In a request's `state`: what to call when the request has shown a token, so that its connection keeps its place."""

HEAD_BYTES = 2**15
"""What a request's headers and its address may take together; a browser's take about one."""

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_WILDCARDS = {"0.0.0.0", "::", ""}  # noqa: S104 (compared with, not bound to)

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>root-dash</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 36em; margin: 20vh auto; padding: 0 1em;
color-scheme: light dark; }}</style>
<h1>{title}</h1><p>{detail}</p></html>
"""


class Guard:
    """Checks every request's host, origin and token before the application sees it, and adds the security headers.

    - Headers and address of 32 KiB at most.
    - Exactly one `Host`, of a known name: another site's name that was made to point here is not answered.
    - `Origin`, where a browser sends one with a WebSocket or an unsafe method, is the server's own.
    - The token: as `Authorization: Bearer`, as cookie, or once as `?token=` of a page, which sets the cookie and
      redirects to the same page without it. `/healthz` alone is open.
    - Where recordings are taken, the write token, as `Authorization: Bearer`; it opens nothing else.

    Responses pass through message by message: a stream stays a stream.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "::1", *(host.lower() for host in settings.allowed_hosts)}
        self._any_address = settings.host in _WILDCARDS
        # A rebound name is never an address, so that on all interfaces any address may be asked for.
        self._hosts.add(socket.gethostname().lower() if self._any_address else settings.host.lower())
        self._cookie = f"root_dash_{settings.port}"  # cookies do not tell ports apart
        self._token = None if settings.token is None else settings.token.get_secret_value().encode()
        self._write_token = settings.write_token.get_secret_value().encode()
        # The cookie proves the token without holding it.
        self._proof = hashlib.sha256(b"root-dash cookie " + (self._token or b"")).hexdigest().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] not in ("http", "websocket"):
            return None
        refusal = _size_refusal(scope) or self._host_refusal(scope) or self._origin_refusal(scope)
        if refusal:
            return await _refuse(scope, send, *refusal)
        if scope["type"] == "http" and scope["path"].startswith(INGEST):
            if not _bears(scope, self._write_token):
                if self._token is not None and self._shows_token(scope):
                    return await _refuse(scope, send, 403, "this token is for looking: sending takes the write token")
                return await _refuse(scope, send, 401, "the write token is required")
        elif scope["path"] != HEALTH and self._token is not None:
            page = scope["type"] == "http" and scope["method"] == "GET" and not _is_api(scope)
            shown = [value for name, value in _query(scope) if name == "token"] if page else []
            if len(shown) == 1 and hmac.compare_digest(shown[0].encode(), self._token):
                _admit(scope)
                return await self._welcome(scope, send)
            if not self._shows_token(scope):
                detail = "open the URL that root-dash serve printed" if not _is_api(scope) else "a token is required"
                return await _refuse(scope, send, 401, detail)
        if scope["path"] != HEALTH:
            _admit(scope)
        await self._app(scope, receive, _with_headers(scope, send))

    def _host_refusal(self, scope: Scope) -> tuple[int, str] | None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1:
            return 400, "a request must have one Host header"
        name = _hostname(hosts[0])
        if name in self._hosts or (self._any_address and _is_address(name)):
            return None
        return 421, "this server does not go by that name: add it to ROOT_DASH_ALLOWED_HOSTS"

    def _origin_refusal(self, scope: Scope) -> tuple[int, str] | None:
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return None
        origins = _values(scope, b"origin")
        host = _values(scope, b"host")[0].lower()
        # By equality; https too, for a proxy in front that ends the encryption.
        if all(origin.lower() in (f"http://{host}", f"https://{host}") for origin in origins) and len(origins) <= 1:
            return None
        return 403, "the request came from another site's page"

    def _shows_token(self, scope: Scope) -> bool:
        assert self._token is not None
        if _values(scope, b"authorization"):
            return _bears(scope, self._token)
        for header in _values(scope, b"cookie"):
            for pair in header.split(";"):
                name, _, value = pair.strip().partition("=")
                if name == self._cookie and hmac.compare_digest(value.encode("latin-1"), self._proof):
                    return True
        return False

    async def _welcome(self, scope: Scope, send: Send) -> None:
        rest = urlencode([(name, value) for name, value in _query(scope) if name != "token"])
        # One slash: two would name another host.
        location = "/" + quote(scope["path"].lstrip("/"), safe="/:@!$&'()*+,;=~-._") + (f"?{rest}" if rest else "")
        cookie = f"{self._cookie}={self._proof.decode()}; HttpOnly; SameSite=Strict; Path=/"
        if scope.get("scheme") == "https":
            cookie += "; Secure"
        headers = [(b"location", location.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await _respond(scope, send, 303, b"", headers)


def _admit(scope: Scope) -> None:
    admit = scope.get("state", {}).get(ADMIT)
    if admit is not None:
        admit()


def _bears(scope: Scope, token: bytes) -> bool:
    headers = _values(scope, b"authorization")
    if len(headers) != 1:
        return False
    scheme, _, value = headers[0].partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode("latin-1"), token)


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": _secured(scope, message.get("headers", ()))}
        await send(message)

    return send_with_headers


def _secured(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    ours = {
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"content-security-policy": b"frame-ancestors 'none'",
    }
    if _is_api(scope):
        ours[b"cache-control"] = b"no-store"
    return [(name, value) for name, value in headers if name.lower() not in ours] + list(ours.items())


async def _refuse(scope: Scope, send: Send, status: int, detail: str) -> None:
    title = HTTPStatus(status).phrase
    if _is_api(scope) or scope["type"] == "websocket":
        content = json.dumps({"title": title, "status": status, "detail": detail}).encode()
        kind = b"application/problem+json"
    else:
        content = _PAGE.format(title=title, detail=detail[0].upper() + detail[1:] + ".").encode()
        kind = b"text/html; charset=utf-8"
    headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _respond(scope, send, status, content, headers)


async def _respond(scope: Scope, send: Send, status: int, content: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    prefix = ""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        prefix = "websocket."
    headers = _secured(scope, [*headers, (b"content-length", str(len(content)).encode())])
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    body = b"" if scope.get("method") == "HEAD" else content
    await send({"type": f"{prefix}http.response.body", "body": body})


def _size_refusal(scope: Scope) -> tuple[int, str] | None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    size += len(scope["path"]) + len(scope.get("query_string", b""))
    return (431, f"headers and address take at most {HEAD_BYTES // 2**10} KiB") if size > HEAD_BYTES else None


def _is_api(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/api" or path.startswith("/api/")


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == wanted]


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _hostname(host: str) -> str:
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
