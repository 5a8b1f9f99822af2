"""SQLite files without SQLAlchemy: the file at a path, connections to the file, and its write-ahead log."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from root_dash.exceptions import StoreForeign, StoreNotFound

_MAGIC = b"SQLite format 3\0"
_NO_CHECKPOINT_ON_CLOSE = 1006  # SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE
_RETRY_SECONDS = 0.005


def sqlite_has_wal_reset_bug(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Return whether a version of SQLite can damage a WAL database on which two connections checkpoint.

    The bug is fixed in 3.51.3 and in the backports 3.44.6 and 3.50.7 (https://sqlite.org/wal.html#walresetbug); 3.52.0
    was withdrawn. Here one process writes and checkpoints, and viewers only read, which avoids the bug.
    """
    if version == (3, 52, 0):
        return True
    if version[:2] in ((3, 44), (3, 50)):
        return version[2] < {44: 6, 50: 7}[version[1]]
    return (3, 7, 0) <= version < (3, 51, 3)


def primary_code(error: BaseException | None) -> int:
    """Return the primary result code of an error of SQLite: the low byte of the extended code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def connect(path: Path, query: str, *pragmas: str, lock_seconds: float) -> sqlite3.Connection:
    """Open a connection to a file with the parameters of a URI, and run our pragmas and then the given pragmas."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=lock_seconds,
        isolation_level=None,  # the engine's "begin" event begins the transactions
        check_same_thread=False,  # the pool hands a connection to one thread at a time
    )
    try:
        for pragma in ("PRAGMA foreign_keys=ON", "PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON", *pragmas):
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, lock_seconds: float) -> sqlite3.Connection:
    """Open a read-only connection, also if the folder of the file is read-only."""
    connection = connect(path, "mode=ro", "PRAGMA query_only=ON", lock_seconds=lock_seconds)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if primary_code(error) not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or log_size(path):
            raise
        return connect(path, "mode=ro&immutable=1", "PRAGMA query_only=ON", lock_seconds=lock_seconds)
    return connection


def set_wal(cursor: Any, lock_seconds: float) -> str:
    """Switch a database to a write-ahead log and return its new journal mode.

    If two processes switch a new file at once, SQLite tells one of them immediately that the file is busy, whatever the
    timeout, because each holds what the other waits for. So this function tries again.
    """
    until = time.monotonic() + lock_seconds
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_RETRY_SECONDS)


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file at a path, or None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def log_size(path: Path) -> int:
    """Return the bytes of the write-ahead log. If the path is a link, the log lies beside the target of the link."""
    try:
        return os.stat(f"{os.path.realpath(path)}-wal").st_size
    except OSError:
        return 0


def abandon(connection: Any) -> None:
    """Close a connection whose file was deleted or replaced, without the tidying up of SQLite.

    Closing the last connection to a file removes the write-ahead log by its path. If another file has taken the place,
    that path names the log of the other file.
    """
    set_config = getattr(connection, "setconfig", None)
    if set_config is not None:
        set_config(_NO_CHECKPOINT_ON_CLOSE, True)  # nothing is removed either
        connection.close()
    else:
        # Python before 3.12 has no such setting: the connection is never closed, also not when Python ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def check_file(path: Path, *, empty_is_ours: bool = False) -> None:
    """Check that a path names a readable SQLite database.

    Raises:
        StoreNotFound: the path names no file, a directory, or a file that cannot be read.
        StoreForeign: the file is not a SQLite database.
    """
    try:
        if path.is_dir():
            raise StoreNotFound(f"{path} is a directory, not a database")
        if path.exists() and not path.is_file():
            raise StoreNotFound(f"{path} is not a regular file")  # opening a pipe would wait for its other end
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFound(f"there is no database at {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreNotFound(f"{path} cannot be read: {reason.lower()}") from None
    if start != _MAGIC and not (empty_is_ours and not start):
        raise StoreForeign(f"{path} is {'empty' if not start else 'not a root-dash database'}")


def check_writable(path: Path) -> None:
    """Make a missing file, and check that the file and its folder can be written.

    Raises:
        StoreNotFound: the file cannot be made, or the file or its folder cannot be written.
    """
    rule = "give a path in a folder that you may write to"
    for place in (path, path.parent):  # the folder too: the write-ahead log lies in it
        if place.exists() and not os.access(place, os.W_OK):
            raise StoreNotFound(f"{path} cannot be written, permission denied to {place}: {rule}")
    try:
        # Only a new file is opened: closing a file releases the locks that SQLite holds on the file in this process.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        pass
    except (OSError, ValueError) as error:  # a folder of the system such as /proc, a name that is too long
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreNotFound(f"{path} cannot be made, {reason.lower()}: {rule}") from None
