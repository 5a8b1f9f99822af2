"""The one process that serves: API and dashboard behind one guard, on one socket.

Importing this module is quick: what it serves is imported when it does.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

from root_dash.exceptions import RootDashError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from root_dash.server.ingest import Inbox
    from root_dash.settings import Settings
    from root_dash.store import Store


def compose(
    settings: Settings, store: Store, stopping: threading.Event | None = None, inbox: Inbox | None = None
) -> ASGIApp:
    """The whole server as one ASGI application: the API, the dashboard, and the guard in front of both.

    Setting `stopping` ends the streams, and lets a server shut down without waiting for them. Recordings go into the
    inbox, and are refused where there is none.
    """
    from root_dash.frontend.app import mount
    from root_dash.server.app import create_app
    from root_dash.server.bodies import WholeBodies
    from root_dash.server.guard import Guard

    api = create_app(settings, store, stopping, inbox)
    mount(api, store)
    return Guard(WholeBodies(api), settings)


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        RootDashError: the port is taken or the host is not one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RootDashError(
                f"port {settings.port} is taken: name another with --port, or 0 for a free one"
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise RootDashError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from None
    except UnicodeError:
        raise RootDashError("cannot listen on that host: it is no host name") from None
    return listener


def _open_files() -> int:
    """How many files the process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def address_of(settings: Settings) -> str:
    """The URL to open, the token in it where there is one."""
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (compared with)
    host = f"[{host}]" if ":" in host else host
    token = "" if settings.token is None else f"?token={quote(settings.token.get_secret_value(), safe='')}"
    return f"http://{host}:{settings.port}/{token}"


def run_server(settings: Settings, store: Store, *, open_browser: bool = False) -> None:
    """Serve the store until Ctrl-C or SIGTERM, and print where, and what trainers elsewhere need to send recordings.

    Raises:
        RootDashError: it cannot listen where the settings say.
    """
    import uvicorn

    from root_dash.server.connections import Limits, limited, shares
    from root_dash.server.ingest import Inbox
    from root_dash.server.log_rate_limit import LogRateLimit
    from root_dash.store import Store

    listener = listen(settings)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    stopping = threading.Event()
    inbox = None if settings.read_only else Inbox(lambda: Store.create(settings.db))

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            stopping.set()
            super().handle_exit(sig, frame)

    strangers, concurrent = shares(_open_files())
    with listener:
        config = uvicorn.Config(
            compose(settings, store, stopping, inbox),
            http=limited(Limits(strangers=strangers)),  # on httptools: refuses malformed requests that h11 lets pass
            limit_concurrency=concurrent,
            access_log=False,  # the first request's line would hold the token
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        logging.getLogger("uvicorn.error").addFilter(LogRateLimit())
        url = address_of(settings)
        typer.echo(f"root-dash: {url}")
        if inbox is not None:
            place, token = url.partition("/?")[0].removesuffix("/"), settings.write_token.get_secret_value()
            typer.echo(f'root-dash: record from elsewhere with watch(..., server="{place}", token="{token}")')
        if open_browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # uvicorn has shut down and then raises the signal that it was asked with
        finally:
            if inbox is not None:
                inbox.close()
