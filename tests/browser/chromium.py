"""Find a Chromium for the browser tests, or get one; `python -m tests.browser.chromium` says in one line what it did.

In this order: a `chromium`, `chromium-browser` or `google-chrome` on PATH; playwright's own build, fetched where that
is possible; the system's package where this user may install one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FETCH_SECONDS = 240

# As root Chromium has no sandbox; the rest keeps it from calling home, which a closed network refuses.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def on_path() -> str | None:
    """The first Chromium on PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def of_playwright() -> str | None:
    """Playwright's own Chromium, where it was fetched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def find() -> str | None:
    """A Chromium that is already there."""
    return on_path() or of_playwright()


def _tried(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=FETCH_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def obtain() -> tuple[str | None, str]:
    """A Chromium and how it was come by; None and why there is none."""
    if path := on_path():
        return path, "found on PATH"
    if path := of_playwright():
        return path, "playwright's own"
    if _tried([sys.executable, "-m", "playwright", "install", "chromium"]) and (path := of_playwright()):
        return path, "fetched by playwright"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for package in NAMES[:2]:
            _tried(["apt-get", "update", "-qq"])
            if _tried(["apt-get", "install", "-y", "-qq", package]) and (path := on_path()):
                return path, f"installed the system's package {package}"
    return None, "none on PATH, playwright could fetch none, and the system's package cannot be installed here"


def main() -> int:
    """Say what was found; only under CI is finding nothing a failure."""
    path, how = obtain()
    sys.stdout.write(f"browser tests: {path} ({how})\n" if path else f"browser tests will be skipped: {how}\n")
    return 1 if path is None and os.environ.get("CI") else 0


if __name__ == "__main__":
    raise SystemExit(main())
