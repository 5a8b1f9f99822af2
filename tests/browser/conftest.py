"""A real Chromium, and servers for its pages."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Response, sync_playwright

from tests.browser.chromium import ARGUMENTS, find
from tests.zygote import Forked

SCREENSHOTS = Path(__file__).parent / "screenshots"
START_SECONDS = 60
_REFUSED = "ERROR:    ASGI callable returned without completing handshake.\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without a Chromium the tests are skipped, and fail under CI.

    One for each module: while Playwright runs, its event loop counts as running, and `asyncio.run` fails elsewhere.
    """
    path = find()
    if path is None:
        reason = "no Chromium: `python -m tests.browser.chromium` says why none could be had"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Tab:
    """A page, and the errors on the page."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        """Keep an error message of the console."""
        if message.type == "error":
            self.errors.append(f"console: {message.text}")

    def answered(self, response: Response) -> None:
        """Keep a response that refuses or fails, with its request."""
        if response.status >= 400:
            asked = (response.request.post_data or "")[:300]
            self.errors.append(f"{response.status} {response.url} asked {asked}")

    def failed(self, error: Error) -> None:
        """Keep an exception that no script caught."""
        self.errors.append(f"exception: {error}")

    def picture(self, name: str) -> None:
        """Take a screenshot for a person to look at."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def tab(
    browser: Browser, width: int = 1440, height: int = 900, scheme: str = "light", expected: str | None = None
) -> Iterator[Tab]:
    """Open a fresh tab; at the end, fail for every error on the page whose start does not match `expected`."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    opened = Tab(context.new_page())
    opened.page.on("console", opened.heard)
    opened.page.on("pageerror", opened.failed)
    opened.page.on("response", opened.answered)
    yield opened
    context.close()
    errors = [error for error in opened.errors if expected is None or not re.match(expected, error)]
    assert not errors, "\n".join(errors)


@contextmanager
def running(arguments: list[str], log: Path, token: str | None = None) -> Iterator[str]:
    """Run a `root-dash` command that serves, and yield the URL that the command prints; `token` is its token."""
    with log.open("w") as output:
        environment = {**os.environ, **({} if token is None else {"ROOT_DASH_TOKEN": token})}
        process = Forked("-m", "root_dash.cli", *arguments, stderr=output, env=environment)
        try:
            yield _url(process.stdout, log)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    # The server logs its faults there. uvicorn also logs a refused WebSocket of Dash, if the page has an old token.
    assert log.read_text().replace(_REFUSED, "") == ""


def _url(lines: IO[str] | None, log: Path) -> str:
    assert lines is not None
    said = ""
    for line in lines:
        said += line
        if found := re.search(r"http://\S+", line):
            return found.group()
    pytest.fail(f"no URL was printed: {said}{log.read_text()}")
