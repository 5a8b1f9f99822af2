"""Locks of spool files, so that only one process at a time sends a spool."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

_locked: set[tuple[int, int]] = set()
"""Device and inode of the lock files that this process holds. File locks do not exclude other locks of a process."""
_mutex = threading.Lock()


class SpoolLock:
    """The right to send a spool, until `release` or the end of the process, however the process ends.

    The lock is on a file beside the spool: closing a locked spool would release the locks of SQLite. A forked child
    does not inherit locks of `fcntl.lockf`.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another process lock the spool."""
        with _mutex:
            if self._descriptor is not None:
                _locked.discard(_identity(os.fstat(self._descriptor)))
                os.close(self._descriptor)
                self._descriptor = None

    def delete(self) -> None:
        """Delete the spool, and release the lock."""
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        _lock_file(self.path).unlink(missing_ok=True)
        self.release()


def lock_spool(path: Path, *, new: bool = False) -> SpoolLock | None:
    """Lock the spool at a path; return None if the spool is locked already, or does not exist and is not `new`."""
    file = _lock_file(path)
    with _mutex:
        if file.exists() and _identity(file.stat()) in _locked:
            return None  # before the file is opened: closing it would release the lock
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not new and not path.exists():
                file.unlink(missing_ok=True)  # the last holder sent the spool meanwhile
                raise BlockingIOError
        except OSError:
            os.close(descriptor)
            return None
        _locked.add(_identity(os.fstat(descriptor)))
        return SpoolLock(path, descriptor)


def _renew_mutex() -> None:
    global _mutex
    _mutex = threading.Lock()  # in a forked child: a thread of the parent process may have held the old lock


os.register_at_fork(after_in_child=_renew_mutex)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")
