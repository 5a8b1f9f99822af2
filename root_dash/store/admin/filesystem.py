"""The filesystem of a file, and whether SQLite can rely on the filesystem."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"(nfs\d*|cifs|smb\d*|smbfs|ncpfs|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|panfs|orangefs|pvfs2|virtiofs|fuse\..+)"
)


def filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of a path's filesystem, or None if the type is unknown."""
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
        # Of two filesystems on the same mount point, the later hides the earlier.
        if place.is_relative_to(point) and (best is None or depth >= best[0]):
            best = depth, fields[fields.index("-", 6) + 1]
    return None if best is None else best[1]


def is_network(kind: str) -> bool:
    """Return whether a filesystem of this type may lie on another machine, where a write-ahead log does not work."""
    return _NETWORK.fullmatch(kind) is not None
