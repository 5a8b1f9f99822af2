"""What `make test` may install: nothing that nobody asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.chromium import may_install

TREE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({}, False, False),
        ({}, True, None),
        ({"INSTALL": "0"}, False, False),
        ({"INSTALL": "1"}, False, True),
        ({"CI": "true"}, False, True),
    ],
)
def test_the_system_is_changed_only_if_somebody_asked(
    environment: dict[str, str], terminal: bool, expected: bool | None
) -> None:
    """CI and INSTALL=1 allow the package, a terminal is asked, and otherwise nothing is installed."""
    assert may_install(environment, terminal=terminal) is expected


@pytest.mark.heavy
def test_without_a_terminal_one_line_names_the_option(tmp_path: Path) -> None:
    """With no Chromium, no terminal and no permission, the command fails and says what to do."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "INSTALL", "PLAYWRIGHT_BROWSERS_PATH")
    }
    # An empty PATH holds no Chromium and no package manager; an empty cache and no network hold no playwright build.
    environment |= {
        "PATH": str(tmp_path),
        "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.browser.chromium"],
        env=environment, cwd=TREE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "INSTALL=1" in done.stdout.splitlines()[-1]
