"""What tells people how to install root-dash: from a clone, since the index's `root-dash` is another project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import root_dash
from root_dash.exceptions import RootDashError, missing_extra
from root_dash.store import Store

TREE = Path(__file__).parents[1]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]

BY_NAME = re.compile(
    r"""root-dash(?:board)?\[                              # with an extra, wherever it stands
    | \b(?:pip[\d.]*|pipx|uv|conda|mamba|poetry|pdm)\s+  # or a tool,
      (?:(?:pip|tool)\s+)? (?:install|add)\s+            # its verb,
      (?:(?!['"`]?\.)\S+\s+){0,6}?                       # its options and other packages, but no path,
      ['"`]?root[-_]dash(?:board)?\b                     # and the bare name
    """,
    re.VERBOSE,
)


def _texts() -> dict[str, str]:
    """The text files that git knows, new ones included, by their paths."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=TREE, check=True, capture_output=True, text=True).stdout.splitlines()
    texts = {}
    for name in names:
        try:
            texts[name] = (TREE / name).read_text()
        except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError):
            continue  # an image, a link to a folder, a file that was removed
    return texts


@pytest.mark.parametrize(
    ("text", "by_name"),
    [
        ("pip install 'root-" + "dash[export]'", True),
        ("pip install\n  --upgrade root-dash", True),
        ("python3 -m pip install -q root_dash", True),
        ("uv pip install root-dashboard", True),
        ("uv add root-dash", True),
        ("pip install -c constraints.txt torch root-dash==0.1", True),
        ("pip install '.[torch]' in a clone of root-dash", False),
        ("pip install . && root-dash serve", False),
        ("pip install --constraint constraints.txt '.[torch]' installs root-dash", False),
    ],
)
def test_installing_by_name_is_told_from_installing_the_clone(text: str, by_name: bool) -> None:
    """A command that would fetch the index's package is found, one that installs the clone is not."""
    assert bool(BY_NAME.search(text)) is by_name


def test_nothing_tells_to_install_root_dash_by_name() -> None:
    """No file of ours has a command that would fetch the index's package, over line ends either."""
    texts = _texts()
    assert {"README.md", "Dockerfile", "root_dash/cli/main.py"} <= texts.keys()
    del texts["tests/test_extras.py"]
    assert {name: found[0] for name, text in texts.items() if (found := BY_NAME.search(text))} == {}


def test_the_distribution_is_not_named_as_the_stranger() -> None:
    """A requirement of ours is never met by the index's package, however its name is written."""
    assert re.sub(r"[-_.]+", "-", PROJECT["name"]).lower() != "root-dash"


def test_every_message_for_a_missing_extra_names_an_extra_that_brings_the_package() -> None:
    """The modules that ask for an extra ask for one that exists, and that holds the package they miss."""
    call = re.compile(r'missing_extra\("[^"]+", "([^"]+)", "([^"]+)"\)')
    asked = {found for name, text in _texts().items() if name.startswith("root_dash/") for found in call.findall(text)}
    assert {extra for _, extra in asked} == {"torch", "postgres", "export"}
    for package, extra in asked:
        assert any(re.match(rf"{package}\b", given) for given in PROJECT["optional-dependencies"][extra])


def test_a_missing_extra_is_installed_from_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever misses a package says how to install the extra, from a clone of root-dash."""
    for package in ("torch", "torch.optim", "psycopg"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("root_dash.optim")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as root:
        root_dash.ROOT  # noqa: B018
    with pytest.raises(ImportError) as watch:
        root_dash.watch(None, None, db=tmp_path / "x.db")  # type: ignore[arg-type]
    with pytest.raises(RootDashError) as postgres:
        Store.open("postgresql://localhost/runs")
    assert str(root.value) == missing_extra("root_dash.ROOT", "torch", "torch")
    assert str(watch.value) == missing_extra("root_dash.watch", "torch", "torch")
    assert str(postgres.value) == missing_extra("PostgreSQL", "psycopg", "postgres")
    assert all("pip install '.[" in str(error.value) for error in (root, watch, postgres))
    assert all("clone of root-dash" in str(error.value) for error in (root, watch, postgres))
