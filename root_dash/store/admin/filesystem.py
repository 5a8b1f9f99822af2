"""The filesystem that a file lies on, and whether SQLite can rely on it."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"(nfs\d*|cifs|smb\d*|smbfs|ncpfs|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|panfs|orangefs|pvfs2|virtiofs|fuse\..+)"
)


def filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of the filesystem that a path lies on, or None if the machine does not say."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        place = path.resolve()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        fields = line.split()
        if "-" not in fields[6:]:
            continue
        # A space in a mount point is written as an octal escape.
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        depth = len(point.parts)
        # If two filesystems are mounted on one point, the later one hides the earlier.
        if place.is_relative_to(point) and (best is None or depth >= best[0]):
            best = depth, fields[fields.index("-", 6) + 1]
    return None if best is None else best[1]


def is_network(kind: str) -> bool:
    """Return whether a filesystem of that type may lie on another machine. A write-ahead log does not work there."""
    return _NETWORK.fullmatch(kind) is not None
