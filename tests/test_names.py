"""The public names of root_dash, and the way out of a recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import root_dash
from root_dash.sending import sync
from tests.store.frames import record


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_every_public_name_stays_what_it_is_when_its_module_is_imported() -> None:
    """A module that bore the name of a function, such as root_dash/watch.py, would hide the function."""
    code = """
import importlib, pkgutil, root_dash
for module in pkgutil.iter_modules(root_dash.__path__, "root_dash."):
    importlib.import_module(module.name)
import root_dash.optim.root, root_dash.monitor.limits.cadence
print([type(getattr(root_dash, name)).__name__ for name in sorted(root_dash.__all__)])
"""
    assert run(code) == "['type', 'type', 'str', 'function', 'function']"


def test_a_public_name_imports_no_more_than_it_needs() -> None:
    """A dashboard host has no torch: reading, and describing a cadence, work without torch."""
    code = """
import sys, root_dash
sys.modules["torch"] = None
print(root_dash.open.__name__, root_dash.Cadence(masks=0).masks)
"""
    assert run(code) == "open 0"
    assert run("import sys, root_dash; print('numpy' in sys.modules)") == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`from root_dash import typo` fails as for any module."""
    with pytest.raises(AttributeError, match="module 'root_dash' has no attribute 'typo'"):
        root_dash.typo  # noqa: B018


def test_open_reads_what_its_argument_or_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument comes first, then ROOT_DASH_DB, then root-dash.db in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, frames in (("given.db", 1), ("environment.db", 2), ("root-dash.db", 3)):
        record(tmp_path / name, frames)
    monkeypatch.setenv("ROOT_DASH_DB", "environment.db")
    for given, frames in ((tmp_path / "given.db", 1), ("given.db", 1), (None, 2)):
        with root_dash.open(given) as store:
            assert store.runs()[0].frames == frames
    monkeypatch.delenv("ROOT_DASH_DB")
    with root_dash.open() as store:
        assert store.runs()[0].frames == 3


@pytest.mark.parametrize("given", [0, b"postgresql://me:secret@host/runs", [], False])
def test_a_path_of_a_wrong_type_is_a_type_error(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is no path is refused by argument and type; a false one does not open the default database."""
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "root-dash.db", 1)
    with pytest.raises(TypeError, match="path must be a path or the URL of a PostgreSQL database, got <class") as error:
        root_dash.open(given)
    assert "secret" not in str(error.value)
    with pytest.raises(TypeError, match="spool must be a path, got"):
        list(sync(given, "http://localhost:1", "token"))


def test_a_token_of_a_wrong_type_is_a_type_error(tmp_path: Path) -> None:
    """The message shows the type alone, because the value may be the secret."""
    with pytest.raises(TypeError, match="token must be a str, got <class 'bytes'>"):
        list(sync(tmp_path, "http://localhost:1", b"secret"))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["mysql://me:secret@host/runs", "postgresql:/host/runs"])
def test_a_url_of_a_wrong_value_is_a_value_error(given: str) -> None:
    """A URL of another database is refused, and its password is not repeated."""
    with pytest.raises(ValueError, match="db must be") as error:
        root_dash.open(given)
    assert "secret" not in str(error.value)
