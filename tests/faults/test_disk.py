"""A disk that is full, a folder and a file that may not be written, and a file that is damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import root_dash
from root_dash.exceptions import NotRecorded, RootDashError
from root_dash.store import Store, examine
from tests.store.frames import record
from tests.waiting import until
from tests.zygote import Forked
from tests.zygote import run as forked


def run(code: str, *arguments: str | Path) -> None:
    """Run Python where the package and the tests can be imported; it has to succeed."""
    done = forked("-c", code, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a filesystem can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# Fills the disk beside the database while a model trains, and makes room again.
FULL = """
import sys, time, torch, root_dash
from pathlib import Path
from tests.monitor.training import EVERY_STEP, Model, root, train
place = Path(sys.argv[1])
alone, model = Model(), Model()
steppers = root(alone); train(alone, steppers, 3); train(alone, steppers, 37)
optimizers = root(model)
run = root_dash.watch(model, optimizers, db=place / "runs.db", cadence=EVERY_STEP, max_overhead=1e9)
train(model, optimizers, 3, run.log)
while run.pending > 1: time.sleep(0.01)
with open(place / "ballast", "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(b"x" * 2**16)
    except OSError:
        pass
train(model, optimizers, 37, run.log)
assert torch.equal(alone.square.weight, model.square.weight)
assert run.active and run.pending > 10, run.pending
print("trained", flush=True)
sys.stdin.readline()
(place / "ballast").unlink()
while run.pending > 1: time.sleep(0.01)
train(model, optimizers, 2, run.log)
run.close()
assert (run.stored, run.lost, run.failures) == (42, 0, 0), (run.stored, run.lost, run.failures)
"""


@pytest.mark.heavy
def test_a_full_disk_is_waited_for(small_disk: Path) -> None:
    """Training goes on to the same bit; what waited is stored when there is room again, and the recording tells."""
    log = small_disk.with_name("log")
    with log.open("w") as stderr:
        trainer = Forked("-c", FULL, small_disk, stdin=subprocess.PIPE, stderr=stderr)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "trained\n", log.read_text()
    until(lambda: "recording waits" in log.read_text(), "a try to store that failed")
    trainer.communicate("\n")
    assert trainer.returncode == 0, log.read_text()
    assert log.read_text().count("recording waits") == 1
    assert "full" in log.read_text()
    with sqlite3.connect(small_disk / "runs.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with root_dash.open(small_disk / "runs.db") as store:
        (recorded,) = store.runs()
        assert (recorded.frames, recorded.last_step, recorded.lost) == (42, 42, 0)
        waits = [event for event in store.events(recorded.id) if event.kind == "queue"]
        assert len(waits) >= 1
        assert "nothing could be stored for" in waits[0].text


# The same by a limit on the size of files, where no filesystem can be mounted: writes fail with EFBIG.
LIMITED = """
import resource, signal, sys, time, root_dash
from pathlib import Path
from tests.monitor.training import EVERY_STEP, Model, root, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = Model(); optimizers = root(model)
run = root_dash.watch(model, optimizers, db=sys.argv[1], cadence=EVERY_STEP, max_overhead=1e9)
train(model, optimizers, 3, run.log)
while run.pending > 1: time.sleep(0.01)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1] + "-wal").stat().st_size, hard))
train(model, optimizers, 20, run.log)
assert run.active and run.pending > 10, run.pending
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
run.close()
assert (run.stored, run.lost, run.failures) == (23, 0, 0), (run.stored, run.lost, run.failures)
"""


@pytest.mark.heavy
def test_a_limit_on_files_is_waited_for_too(tmp_path: Path) -> None:
    """What was committed stays, and the rest comes when the limit is lifted."""
    run(LIMITED, tmp_path / "runs.db")
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with root_dash.open(tmp_path / "runs.db") as store:
        assert store.run(1).frames == 23


# As another user where the tests are root's, who may write anywhere.
NOBODY = """
import os, sys
from pathlib import Path
from root_dash.exceptions import StoreError, StoreNotFound
from root_dash.store import Store, examine, prune
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
folder = Path(sys.argv[1])
with Store.open(folder / "closed" / "runs.db") as store:
    assert store.run(1).frames == 3
for path, denied in (("closed/runs.db", "closed/runs.db"), ("closed/new.db", "closed"), ("file.db", "file.db")):
    path, denied = folder / path, folder / denied
    try:
        Store.create(path)
    except StoreNotFound as error:
        text = f"{path} cannot be written, permission denied to {denied}: give a path in a folder that you may write to"
        assert str(error) == text, error
    else:
        raise AssertionError(path)
assert not any(finding.level == "error" for finding in examine(folder / "file.db"))
try:
    Store.open(folder / "secret.db")
except StoreNotFound as error:
    assert str(error) == f"{folder / 'secret.db'} cannot be read: permission denied", error
else:
    raise AssertionError
"""


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="not a POSIX system")
def test_what_may_not_be_written_is_readable_and_said_to_be_so() -> None:
    """A folder and a file: a finished run in them is read, a recording is refused in one line; so is a secret file."""
    folder = Path(tempfile.mkdtemp())  # other users may not enter pytest's
    try:
        (folder / "closed").mkdir()
        record(folder / "closed" / "runs.db", 3)
        record(folder / "file.db", 3).chmod(0o444)
        record(folder / "secret.db", 3).chmod(0o000 if os.geteuid() else 0o600)
        folder.chmod(0o755)
        (folder / "closed").chmod(0o555)
        run(NOBODY, folder)
    finally:
        (folder / "closed").chmod(0o755)
        shutil.rmtree(folder)


def read_all(path: Path) -> None:
    """Every verb of the store, as far as it gets; what is raised is the caller's to judge."""
    with Store.open(path) as store:
        for one in store.runs():
            store.frames(one.id), store.events(one.id), store.latest(one.id)
            store.grid(one.id, "grad_norm", buckets=8)
            for name in store.scalar_names(one.id):
                store.scalar(one.id, name)
            for layer in store.layers(one.id):
                for verb in (store.statistics, store.histogram, store.quantiles, store.spectrum, store.mask):
                    try:
                        verb(layer.id)
                    except NotRecorded:
                        pass
                store.histograms(layer.id), store.spectra(layer.id), store.history(layer.id, "grad_norm")
                store.history(layer.id, "sigma_max", 8), store.steps(layer.id, "masks")


@pytest.mark.heavy
@pytest.mark.parametrize("damage", ["bits", "bytes", "pages", "cut"])
def test_a_damaged_file_is_never_more_than_an_error_of_ours(damage: str, tmp_path: Path) -> None:
    """Wherever it is damaged: opening, every read verb and the doctor answer or raise a `RootDashError`."""
    sound = record(tmp_path / "sound.db", 40).read_bytes()
    rng = np.random.default_rng(0)
    path, errors = tmp_path / "damaged.db", list[str]()
    for _ in range(25):
        content = bytearray(sound)
        if damage == "cut":
            del content[int(rng.integers(len(content))) :]
        for _ in range({"bits": 8, "bytes": 40, "pages": 2, "cut": 0}[damage]):
            place = int(rng.integers(len(content)))
            if damage == "bits":
                content[place] ^= 1 << int(rng.integers(8))
            elif damage == "bytes":
                content[place] = int(rng.integers(256))
            else:
                start = place // 4096 * 4096
                content[start : start + 4096] = rng.bytes(4096)
        path.write_bytes(content)
        for left in tmp_path.glob("damaged.db-*"):
            left.unlink()
        try:
            read_all(path)
        except RootDashError as error:
            errors.append(str(error))
        examine(path)
        examine(path, thorough=True)
    assert errors
    assert not any("\n" in error for error in errors)
