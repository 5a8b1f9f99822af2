"""Find a PostgreSQL server's programs for the tests, or get them; `python -m tests.postgresql` says what it did.

In this order: `initdb` and `postgres` on PATH; the newest under /usr/lib/postgresql; the system's package where this
user may install one. The tests start a server of their own on a free port, and end it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

PROGRAMS = ("initdb", "postgres")
INSTALL_SECONDS = 240
START_SECONDS = 60
PASSWORD = "se/cret@1"  # noqa: S105 (of a server that lives as long as the tests)

# Nothing that the tests store has to outlive a crash of the machine.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
}


def on_path() -> Path | None:
    """The folder of the programs on PATH."""
    found = [shutil.which(name) for name in PROGRAMS]
    return Path(str(found[1])).parent if all(found) else None


def packaged() -> Path | None:
    """The folder of the newest that the system's package brought."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    whole = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    return max(whole, key=lambda folder: float(re.sub(r"[^\d.]", "", folder.parent.name) or 0), default=None)


def _tried(command: list[str]) -> bool:
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_SECONDS, check=False, env=environment)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def obtain() -> tuple[Path | None, str]:
    """The folder of the programs and how it was come by; None and why there is none."""
    if folder := on_path():
        return folder, "found on PATH"
    if folder := packaged():
        return folder, "the system's package"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _tried(["apt-get", "update", "-qq"])
        if _tried(["apt-get", "install", "-y", "-qq", "postgresql"]) and (folder := packaged()):
            return folder, "installed the system's package postgresql"
    return None, "none on PATH or under /usr/lib/postgresql, and the system's package cannot be installed here"


def _user() -> pwd.struct_passwd | None:
    """Whom the server runs as where we are root, as whom it refuses to run."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("a server is not run as root, and there is neither a user postgres nor nobody")


class Server:
    """A server of our own with its data in a folder; started, stopped and killed at will, always on the same port."""

    def __init__(self, programs: Path, folder: Path, settings: Mapping[str, str] = SETTINGS) -> None:
        self._programs = programs
        self._settings = settings
        self._user = _user()
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        word = folder / "password"
        word.write_text(PASSWORD)
        if self._user is not None:
            for path in (folder, word):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        subprocess.run(
            [
                *(str(programs / "initdb"), "-D", str(self._data), "-U", "root_dash", "--auth=scram-sha-256"),
                *("--pwfile", str(word), "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as_user(),
        )

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": [], "cwd": "/"}

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [
                *(str(self._programs / "postgres"), "-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port)),
                *("-k", str(self._data), *options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as_user(),
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """Shut it down as an administrator does who does not wait for its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Let it crash: its children go with it, and what it had promised must be there after the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the administrator, and return its rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str) -> str:
        """The URL of one of its databases, password and all."""
        return f"postgresql://root_dash:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """A new database, and its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever uses it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection as the administrator, every statement on its own."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)


def started(folder: Path, say: Callable[[str], object], settings: Mapping[str, str] = SETTINGS) -> Server | None:
    """A server in an empty folder, or None where there is none to be had; says in one line what was found."""
    programs, how = obtain()
    if programs is None:
        say(f"no PostgreSQL: {how}")
        return None
    server = Server(programs, folder, settings)
    server.start()
    version = server.execute("SHOW server_version")[0][0].split()[0]
    user = "" if server._user is None else f", as {server._user.pw_name}"
    say(f"PostgreSQL: {version} of {programs} ({how}), started on 127.0.0.1:{server.port}{user}")
    return server


def main() -> int:
    """Say what was found; only under CI is finding nothing a failure."""
    folder, how = obtain()
    sys.stdout.write(
        f"PostgreSQL tests: {folder} ({how})\n" if folder else f"PostgreSQL tests will be skipped: {how}\n"
    )
    return 1 if folder is None and os.environ.get("CI") else 0


if __name__ == "__main__":
    raise SystemExit(main())
