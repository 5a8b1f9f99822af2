"""What the doctor finds in damaged databases, and that it finds nothing in a database that is well."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from root_dash.records import Run
from root_dash.store import Store, examine, repair
from root_dash.store.admin.doctor import Finding
from root_dash.store.admin.filesystem import filesystem, is_network
from root_dash.store.backends.sqlite_file import log_size
from tests.store.frames import make_frame, make_layers, record


def _bad(found: list[Finding]) -> list[tuple[str, str, str]]:
    # What the machine is made of is no fault of the file.
    return [
        (f.level, f.what, f.text)
        for f in found
        if f.level != "ok" and f.what not in ("SQLite", "PostgreSQL", "filesystem")
    ]


def _change(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("thorough", [False, True])
def test_a_finished_run_is_well(thorough: bool, tmp_path: Path) -> None:
    """Every check of a whole file says ok, and each is named."""
    found = examine(record(tmp_path / "x.db", 100), thorough=thorough)
    assert _bad(found) == []
    assert {f.what for f in found} >= {"SQLite", "schema", "write-ahead log", "integrity", "run 1, a run"}


def test_losses_and_gaps_are_counted_by_run(tmp_path: Path) -> None:
    """Frames that the recording lost, frames that are missing, and attempts without an end, of each run its own."""
    path, layers, rng = record(tmp_path / "x.db", 5), make_layers(1), np.random.default_rng(0)
    with Store.create(path) as store:
        recording = store.begin(Run("u-2", "second", 2.0), layers)
        for seq in (0, 1, 4, 5, 7):
            recording.append(make_frame(seq, seq, layers, rng, ["statistics"]))
        recording.end(9.0, lost=4)
        store.begin(Run("u-2", "second", 2.0), layers).close()
    assert _bad(examine(path)) == [
        (
            "warning",
            "run 2, second",
            "4 frames were lost, as the recording itself says; 3 frames are missing between its first and its last; "
            "1 of 2 attempts have no end: still running, or killed",
        )
    ]


def test_another_schema_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    """Another schema, a file that is not a database, and a missing file are one error each, which says what to do."""
    newer = record(tmp_path / "newer.db", 1)
    _change(newer, "PRAGMA user_version=4")
    [(level, what, said)] = _bad(examine(newer))
    assert (level, what) == ("error", "database")
    assert "written by a newer root-dash (schema 4, this one knows 3): upgrade" in said
    (tmp_path / "text").write_text("x" * 100)
    assert _bad(examine(tmp_path / "text"))[0][0] == "error"
    assert "there is no database" in _bad(examine(tmp_path / "none"))[0][2]


def test_damage_is_found(tmp_path: Path) -> None:
    """Overwritten pages, and rows whose frame is gone, are errors."""
    path = record(tmp_path / "x.db", 60)
    _change(path, "DELETE FROM frames WHERE id = 7")
    [error] = [f for f in examine(path) if f.what == "integrity"]
    assert error.level == "error"
    assert "belong to a row of frames that is gone" in error.text
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
    path.write_bytes(content)
    assert any(f.level == "error" for f in examine(path))


def test_views_that_lack_frames_are_found_and_repaired(tmp_path: Path) -> None:
    """Frames that are in no bucket of the pyramid are an error; making it anew brings them back."""
    path = record(tmp_path / "x.db", 200)
    with Store.open(path) as store:
        before = store.history(1, "grad_norm")
    _change(path, "DELETE FROM pyramid WHERE kind = 0 AND level = 0 AND bucket = 1")
    assert [(level, what) for level, what, _ in _bad(examine(path))] == [("error", "run 1, a run")]
    assert "the views of its statistics hold 136 of 200 frames" in _bad(examine(path))[0][2]
    assert repair(path) == 1
    assert _bad(examine(path)) == []
    with Store.open(path) as store:
        after = store.history(1, "grad_norm")
    assert np.array_equal(after.values, before.values)


def test_a_total_that_is_wrong_is_found_and_repaired(tmp_path: Path) -> None:
    """A run that is listed with another number of frames than it has is an error; counting them anew mends it."""
    path = record(tmp_path / "x.db", 20)
    _change(path, "UPDATE pyramid SET frames = 17 WHERE kind = -1")
    [(level, what, said)] = _bad(examine(path))
    assert (level, what) == ("error", "run 1, a run")
    assert "listed with 17 of 20 frames" in said
    assert repair(path) == 1
    assert _bad(examine(path)) == []


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw,relatime shared:2 master:1 - nfs4 server:/home rw
31 30 0:41 / /home/with\\040space rw - fuse.sshfs host: rw
32 22 0:42 / /scratch rw - tmpfs tmpfs rw
33 22 0:43 / /scratch rw - lustre lustre rw
"""


def test_the_filesystem_is_read_from_the_mounts(tmp_path: Path) -> None:
    """The deepest mount counts, and of two mounts on one point the later. Network filesystems are recognized."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    expected = {
        "/var/x.db": "ext4",
        "/home/me/x.db": "nfs4",
        "/home/with space/x.db": "fuse.sshfs",
        "/homework/x.db": "ext4",
        "/scratch/x.db": "lustre",
    }
    assert {path: filesystem(Path(path), mounts) for path in expected} == expected
    assert filesystem(Path("/x"), tmp_path / "none") is None
    assert [kind for kind in (*expected.values(), "tmpfs", "xfs", "btrfs", "overlay", "cifs") if is_network(kind)] == [
        "nfs4",
        "fuse.sshfs",
        "lustre",
        "cifs",
    ]


def test_the_log_of_a_linked_file_is_found(tmp_path: Path) -> None:
    """SQLite keeps it beside the file that the link leads to."""
    link = tmp_path / "link.db"
    (tmp_path / "there").mkdir()
    link.symlink_to(tmp_path / "there" / "x.db")
    with Store.create(link) as store:
        store.begin(Run("run-1", "a run", 1.7e9), make_layers(1)).append(
            make_frame(0, 0, make_layers(1), np.random.default_rng(0))
        )
        assert log_size(link) == (tmp_path / "there" / "x.db-wal").stat().st_size > 0
        assert "0.0 MiB" not in next(f.text for f in examine(link) if f.what == "write-ahead log")
