"""Find a Chromium for the browser tests, or get one; `python -m tests.browser.chromium` says what it did.

In this order: a `chromium`, `chromium-browser` or `google-chrome` on PATH; playwright's own build, fetched into the
user's cache if that is possible; the system's package. The system's package is installed only after a yes on the
terminal, or with `INSTALL=1`, or under `CI`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FETCH_SECONDS = 240

# As root Chromium has no sandbox. The other options keep it from calling home, which a closed network refuses.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def on_path() -> str | None:
    """Return the first Chromium on PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def of_playwright() -> str | None:
    """Return playwright's own Chromium, if it was fetched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def find() -> str | None:
    """Return a Chromium that is already there."""
    return on_path() or of_playwright()


def may_install(environment: Mapping[str, str], *, terminal: bool) -> bool | None:
    """Decide if the system's package may be installed; None if a person has to be asked, which takes a terminal."""
    if environment.get("CI") or environment.get("INSTALL") == "1":
        return True
    return None if terminal else False


def _tried(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=FETCH_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _say(line: str) -> None:
    sys.stdout.write(f"browser tests: {line}\n")
    sys.stdout.flush()


def _asked() -> bool:
    sys.stdout.write("browser tests: install the system's package chromium with apt-get? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _install_package() -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        _say("the system's package can be installed by root with apt-get alone: install a Chromium yourself")
        return None
    _say("installing the system's package chromium")
    _tried(["apt-get", "update", "-qq"])
    for package in NAMES[:2]:
        if _tried(["apt-get", "install", "-y", "-qq", package]) and (path := on_path()):
            return path
    _say("the system's package could not be installed")
    return None


def main() -> int:
    """Find or get a Chromium, and say in one line each what was done; 1 if there is none."""
    path = find()
    if path is None:
        _say("fetching playwright's Chromium into the user's cache")
        path = of_playwright() if _tried([sys.executable, "-m", "playwright", "install", "chromium"]) else None
    if path is None:
        allowed = may_install(os.environ, terminal=sys.stdin.isatty())
        if allowed is None:
            allowed = _asked()
        elif not allowed:
            _say("no Chromium: put one on PATH, or let the system's package be installed with INSTALL=1")
            return 1
        path = _install_package() if allowed else None
    if path is None:
        _say("no Chromium: put one on PATH")
        return 1
    _say(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
