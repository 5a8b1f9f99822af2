"""The process that serves: API and dashboard behind one guard, on one socket. Importing this module is quick."""

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
    """Return the whole server as one ASGI application: the API, the dashboard, and the guard in front of both.

    `stopping` ends the streams when set, so that a server can shut down without waiting for the streams. `inbox` takes
    recordings. If `inbox` is None, recordings are refused.
    """
    from root_dash.frontend.app import mount
    from root_dash.server.app import create_app
    from root_dash.server.compression import Compressed
    from root_dash.server.guard import Guard
    from root_dash.server.limits.bodies import WholeBodies

    api = create_app(settings, store, stopping, inbox)
    mount(api, store, replay=api.state.replays.verdicts)
    return Guard(WholeBodies(Compressed(api)), settings)


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens on the host and port of the settings.

    Raises:
        RootDashError: the port is taken, or this machine does not have the host.
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
            text = f"port {settings.port} is taken: name another port with --port, or 0 for any free port"
            raise RootDashError(text) from None
        reason = (error.strerror or str(error)).lower()
        raise RootDashError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from None
    except UnicodeError:
        raise RootDashError(f"cannot listen on {settings.host}: this is no host name") from None
    return listener


def _open_files() -> int:
    """Return how many files the process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def page_address(settings: Settings) -> str:
    """Return the URL of the dashboard, with the token if the server asks for a token."""
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (compared with)
    host = f"[{host}]" if ":" in host else host
    token = "" if settings.token is None else f"?token={quote(settings.token.get_secret_value(), safe='')}"
    return f"http://{host}:{settings.port}/{token}"


def run_server(settings: Settings, store: Store, *, open_browser: bool = False) -> None:
    """Serve the store until Ctrl-C or SIGTERM.

    The command prints the address of the dashboard, and the arguments of `watch` for trainers on other machines.

    Raises:
        RootDashError: the server cannot listen on the host and port of the settings.
    """
    import uvicorn

    from root_dash.health import Health
    from root_dash.server.ingest import Inbox
    from root_dash.server.limits.connections import Limits, divide_files, protocol
    from root_dash.server.limits.log_rate_limit import LogRateLimit
    from root_dash.store import Store

    listener = listen(settings)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    stopping = threading.Event()
    inbox = None if settings.read_only else Inbox(lambda: Store.create(settings.db, judge=Health))

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            stopping.set()
            super().handle_exit(sig, frame)

    strangers, concurrent = divide_files(_open_files())
    with listener:
        config = uvicorn.Config(
            compose(settings, store, stopping, inbox),
            http=protocol(Limits(strangers=strangers)),  # httptools refuses requests that h11 lets pass
            limit_concurrency=concurrent,
            access_log=False,  # the line of the first request would hold the token
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        logging.getLogger("uvicorn.error").addFilter(LogRateLimit())
        url = page_address(settings)
        typer.echo(f"root-dash: {url}")
        if inbox is not None:
            address, token = url.partition("/?")[0].removesuffix("/"), settings.write_token.get_secret_value()
            typer.echo(f'root-dash: record from elsewhere with watch(..., server="{address}", token="{token}")')
        if open_browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # uvicorn shuts down first, and then raises the signal that ended the server
        finally:
            if inbox is not None:
                inbox.close()
