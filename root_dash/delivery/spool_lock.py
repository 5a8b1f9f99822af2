"""Spool files in a folder: whose turn it is to send one."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

_held: set[tuple[int, int]] = set()
"""Lock files of this process, by device and inode whatever they are called: its locks do not keep itself out."""
_lock = threading.Lock()


class Hold:
    """That nobody else sends a spool, until it is released or the process ends, however it does.

    The lock is on a file beside the spool's: on the spool itself, closing it would let go of SQLite's own. It is one of
    `fcntl.lockf`, which a forked child does not inherit.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another one have it."""
        with _lock:
            if self._descriptor is not None:
                _held.discard(_identity(os.fstat(self._descriptor)))
                os.close(self._descriptor)
                self._descriptor = None

    def delete(self) -> None:
        """Delete the spool, and release it."""
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        _beside(self.path).unlink(missing_ok=True)
        self.release()


def hold(path: Path, *, new: bool = False) -> Hold | None:
    """Hold the spool at that path, or None where another one does, or where it is gone and is not to be a `new` one."""
    with _lock:
        if _beside(path).exists() and _identity(_beside(path).stat()) in _held:
            return None  # before it is opened: closing it would let go of the lock
        descriptor = os.open(_beside(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not new and not path.exists():
                _beside(path).unlink(missing_ok=True)  # its last holder sent it meanwhile
                raise BlockingIOError
        except OSError:
            os.close(descriptor)
            return None
        _held.add(_identity(os.fstat(descriptor)))
        return Hold(path, descriptor)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # in a forked child: a thread of the parent's may have held it


os.register_at_fork(after_in_child=_renew_lock)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _beside(path: Path) -> Path:
    return path.with_suffix(".lock")
