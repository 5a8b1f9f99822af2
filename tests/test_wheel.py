"""What `pip install` brings to a user."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.waiting import LIMIT_SECONDS

TREE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree") / "root-dash"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.db")
    tree.mkdir()
    for name in ("root_dash", "server", "frontend", "tests"):
        shutil.copytree(TREE / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", "."]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tree.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.heavy
def test_the_wheel_adds_one_name(files: set[str]) -> None:
    """Nothing but `root_dash` and the wheel's own description lands beside a user's packages."""
    names = {name.split("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {"root_dash"}


@pytest.mark.heavy
def test_the_wheel_is_not_named_as_the_index_s_package(files: set[str]) -> None:
    """The index's `root-dash` is another project: installing the one never replaces the other."""
    (described,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    assert described.partition("-")[0] == "root_dashboard"


@pytest.mark.heavy
def test_the_wheel_holds_every_module_and_asset(files: set[str]) -> None:
    """The server and the dashboard behind the two links included."""
    expected = {
        path.relative_to(TREE).as_posix()
        for folder in ("root_dash", "root_dash/server", "root_dash/frontend")
        for path in (TREE / folder).rglob("*")
        if path.suffix in {".py", ".js", ".css", ".svg", ".gz", ".typed"}
    }
    assert {"root_dash/server/app.py", "root_dash/frontend/app.py", "root_dash/frontend/assets/stream.js"} <= expected
    assert expected <= files
