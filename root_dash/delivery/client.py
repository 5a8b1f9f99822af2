"""The client of a server: it sends requests, and turns refusals into errors."""

from __future__ import annotations

import httpx2
import msgspec

from root_dash import wire
from root_dash.exceptions import RootDashError
from root_dash.wire import Stored

LONGEST_WAIT = 300.0
"""Seconds up to which a server's Retry-After is followed."""

_LATER = (408, 425, 429)  # beside all statuses from 500 on


class Unreachable(RootDashError):
    """The server does not answer, or not now. Try again after `retry_after` seconds at the earliest."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Refused(RootDashError):
    """The server will never take what was sent."""


class IngestClient:
    """A connection that sends the messages of attempts to a server, a request at a time."""

    def __init__(self, server: str, token: str) -> None:
        self.server = checked_server(server)
        if not isinstance(token, str) or not token.strip() or not token.isprintable() or not token.isascii():
            raise ValueError("token must be the write token that `root-dash serve` prints")
        # Redirects are not followed: the token is for this server only.
        self._client = httpx2.Client(
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": wire.MEDIA_TYPE,
                "Content-Encoding": wire.ENCODING,
            },
            timeout=httpx2.Timeout(120.0, connect=5.0),
            follow_redirects=False,
        )

    def begin(self, message: bytes, uid: str) -> Stored:
        """Begin or continue an attempt, and return what the server has stored of the attempt."""
        stored = self._send("PUT", f"/{uid}", message)
        if stored is None:
            raise Refused(f"{self.server} takes no recordings: the server is no root-dash of this version")
        return stored

    def append(self, message: bytes, uid: str) -> Stored | None:
        """Send a batch of frames; return None if the attempt must be begun again first."""
        return self._send("POST", f"/{uid}/frames", message)

    def end(self, message: bytes, uid: str) -> Stored | None:
        """End an attempt; return None if frames are missing and the attempt must be begun again first."""
        return self._send("POST", f"/{uid}/end", message)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _send(self, method: str, path: str, message: bytes) -> Stored | None:
        try:
            response = self._client.request(method, f"{self.server}{wire.ATTEMPTS}{path}", content=message)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self.server} cannot be reached: {reason}") from None
        status = response.status_code
        if status in (404, 412):
            return None
        if status >= 500 or status in _LATER:
            asked = response.headers.get("retry-after", "")
            seconds = min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdigit() else 0.0
            raise Unreachable(f"{self.server} cannot take frames now ({_problem(response)})", seconds)
        if status != 200:
            raise Refused(f"{self.server} refuses the frames ({_problem(response)})")
        try:
            return msgspec.json.decode(response.content, type=Stored)
        except msgspec.DecodeError:
            raise Unreachable(f"{self.server} answers as no root-dash does") from None


def checked_server(server: str) -> str:
    """Return the address of a server without a slash at its end.

    Raises:
        ValueError: the text is not an address, or has more parts than scheme, host and port. The message does not
            repeat what may be a secret.
    """
    rule = "server must be an address as http://host:8050"
    got = "one that may hold a secret" if any(mark in server for mark in "@?#") else repr(server)
    try:
        url = httpx2.URL(server)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{rule}, got {got}: {error}" if got == repr(server) else f"{rule}, got {got}") from None
    for broken, what in (
        (url.scheme not in ("http", "https"), "which begins with http:// or https://"),
        (not url.host or any(letter.isspace() for letter in server), "which names a host"),
        (url.port is not None and not 0 < url.port < 2**16, "its port from 1 to 65535"),
        ("@" in server, "without a user and password"),
        ("?" in server or "#" in server, "without a query or fragment: the token is an argument of its own"),
        (url.path.strip("/"), "without a path"),
    ):
        if broken:
            raise ValueError(f"{rule}, {what}, got {got}")
    return server.rstrip("/")


def _problem(response: httpx2.Response) -> str:
    """Return the status of an answer, and the problem that the answer describes, if any."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return str(response.status_code)
    return f"{response.status_code}: {str(detail)[:300]}"
