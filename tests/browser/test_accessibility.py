"""axe-core on every page, in both themes, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from root_dash.frontend import ids
from tests.browser.conftest import running, tab
from tests.browser.test_dashboard import LAYER_GRAPHS, PATIENCE, wait_until_filled
from tests.store.frames import make_layers, record

pytestmark = [pytest.mark.heavy, pytest.mark.browser, pytest.mark.long]

axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a finished run of three layers."""
    folder = tmp_path_factory.mktemp("axe")
    db = record(folder / "runs.db", 60, make_layers(5))
    with running(["serve", str(db), "--port", "0", "--no-open", "--no-token"], folder / "serve.log") as url:
        yield url.rstrip("/")


def violations(page: Page) -> list[str]:
    """Return what axe-core objects to: the rule, and the first part of the page that breaks it."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_a_rule_of_axe(browser: Browser, base: str, width: int, height: int, scheme: str) -> None:
    """Names, roles, headings, contrast: on the pages of a layer and of no run, with the keys and a picker open."""
    with tab(browser, width, height, scheme, expected="404 |console: Failed to load resource") as opened:
        page = opened.page
        page.goto(f"{base}/r/1/l/1?step=20")
        wait_until_filled(page, LAYER_GRAPHS)
        assert violations(page) == []
        page.keyboard.press("?")
        page.locator(f"#{ids.SHORTCUTS}").wait_for(timeout=PATIENCE)
        assert violations(page) == []
        page.keyboard.press("Escape")
        page.locator(f"#{ids.RUN_PICKER}").click()
        page.get_by_role("option").first.wait_for(timeout=PATIENCE)
        assert violations(page) == []
        page.goto(f"{base}/r/99")
        page.locator(".notice").wait_for(timeout=PATIENCE)
        assert violations(page) == []
